"""A fleet on Redis: one Lua script divides the limit, four small ones keep the token.

Needs the ``[redis]`` extra. The scripts do the arithmetic of :func:`sinch_conv_async.fleet.allot`,
and the conformance suite compares the two. All times are by the clock of the Redis server.
"""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .._wire.failure import Failure
from .._wire.responses import TokenResponse
from . import (
    INTERVAL,
    KEPT_BACK,
    KEPT_BACK_FROM,
    LEASE,
    LEAST_WISH,
    MANY,
    Fleet,
    FleetError,
    ProjectKey,
    Share,
    TokenKey,
    Wish,
)
from ._tokens import FRESH, LOCK, Found, forget_token, shared_token

__all__ = ["RedisFleet"]

TIMEOUT: Final = 0.25
"""Seconds that one operation of the store may take."""

# The names are those of `allot` and its helpers. A lease is one field of a hash: "share until
# wanted limit kept_back". The new lease is written before any other change: for want of memory,
# Redis refuses a script only at its first write.
_ALLOT: Final = """
local key, member = KEYS[1], 'm:' .. ARGV[1]
local limit, wanted, holds = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local paused_for, leaves, now = tonumber(ARGV[5]), ARGV[6] == '1', tonumber(ARGV[7])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function text(number) return string.format('%.17g', number) end

local live, names, expired, own = {}, {}, {}, nil
local heard_at, learning_until, paused_until = -math.huge, -math.huge, -math.huge
local fields = redis.call('HGETALL', key)
for at = 1, #fields, 2 do
  local name, value = fields[at], fields[at + 1]
  if name == 'heard_at' then heard_at = tonumber(value)
  elseif name == 'learning_until' then learning_until = tonumber(value)
  elseif name == 'paused_until' then paused_until = tonumber(value)
  else
    local share, till, wants, most, kept = value:match('^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    local lease = {share = tonumber(share), till = tonumber(till), wanted = tonumber(wants),
                   limit = tonumber(most), kept_back = kept == '1'}
    if not lease.till or lease.till <= now then expired[#expired + 1] = name
    elseif name == member then own = lease
    else live[name] = lease; names[#names + 1] = name end
  end
end
paused_until = math.max(paused_until, now + paused_for)
local lease_seconds = LEASE * math.max(1, (#names + 1) / MANY)
if not (heard_at <= now and now < heard_at + lease_seconds) then
  learning_until = now + lease_seconds
end

local share, kept_back, members = 0, false, #names
if not leaves then
  members = #names + 1
  local lowest = limit
  for _, lease in pairs(live) do lowest = math.min(lowest, lease.limit) end
  local whole = math.max(1, math.floor(lowest))
  local capacity = whole
  if whole >= KEPT_BACK_FROM then capacity = whole - math.ceil(whole / KEPT_BACK) end
  if now >= learning_until then
    local order, lent = {}, 0
    for _, name in ipairs(names) do
      order[#order + 1] = {name = name, wanted = live[name].wanted}
      lent = lent + live[name].share
    end
    order[#order + 1] = {name = member, wanted = wanted}
    table.sort(order, function(a, b) return a.name < b.name end)
    local turn = math.floor(now / LEASE)
    for at, entry in ipairs(order) do entry.turn = (at - 1 + turn) % #order end
    table.sort(order, function(a, b)
      if a.wanted ~= b.wanted then return a.wanted < b.wanted end
      return a.turn < b.turn
    end)
    local left = capacity
    for at, entry in ipairs(order) do
      local part = math.min(entry.wanted, math.floor(left / (#order - at + 1)))
      left = left - part
      if entry.name == member then share = part end
    end
    share = math.max(0, math.min(share, capacity - lent))
  elseif own then
    share, kept_back = math.min(own.share, wanted), own.kept_back
  else
    local lent = 0
    kept_back = holds == 0
    for _, lease in pairs(live) do
      if lease.kept_back == kept_back then lent = lent + lease.share end
    end
    if kept_back then share = math.max(0, math.min(LEAST_WISH, wanted, whole - capacity - lent))
    else share = math.max(0, math.min(holds, wanted, capacity - lent)) end
  end
  redis.call('HSET', key, member, table.concat({text(share), text(now + lease_seconds),
    text(wanted),
    text(limit), kept_back and '1' or '0'}, ' '), 'heard_at', text(now),
    'learning_until', text(learning_until), 'paused_until', text(paused_until))
else
  redis.call('HSET', key, 'heard_at', text(now), 'learning_until', text(learning_until),
    'paused_until', text(paused_until))
  redis.call('HDEL', key, member)
  lease_seconds = 0
end
for at = 1, #expired do
  if leaves or expired[at] ~= member then redis.call('HDEL', key, expired[at]) end
end
redis.call('PEXPIRE', key, KEPT_FOR)
return {share, text(lease_seconds), members, text(math.max(0, paused_until - now))}
"""

# A token is kept as "life sealed": its whole life in milliseconds tells how fresh it is.
_LOOK: Final = """
local kept = redis.call('GET', KEYS[1])
local left, life, sealed = 0, 0, false
if kept then
  left = math.max(0, redis.call('PTTL', KEYS[1]))
  life, sealed = kept:match('^(%d+) (.*)$')
  life = tonumber(life) or 0
end
local locked = 0
if ARGV[1] ~= '' and not (sealed and left > FRESH * life) then
  if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', LOCK) then locked = 1 end
end
return {sealed, left, locked}
"""

_RENEW_LOCK: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('PEXPIRE', KEYS[2], LOCK) end
"""

_STORE: Final = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return end
local life = tonumber(ARGV[3])
if life > 0 then redis.call('SET', KEYS[1], ARGV[3] .. ' ' .. ARGV[2], 'PX', life) end
redis.call('DEL', KEYS[2])
"""

_DELETE: Final = """
local kept = redis.call('GET', KEYS[1])
if kept and kept:match('^%d+ (.*)$') == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

_CONSTANTS: Final = {
    "KEPT_BACK_FROM": KEPT_BACK_FROM,
    "KEPT_BACK": KEPT_BACK,
    "KEPT_FOR": round(100 * LEASE * 1000),  # a project that nobody uses leaves nothing behind
    "LEAST_WISH": LEAST_WISH,
    "LEASE": LEASE,
    "LOCK": round(LOCK * 1000),
    "FRESH": FRESH,
    "MANY": MANY,
}


def _script(source: str) -> str:
    for name, value in _CONSTANTS.items():
        source = source.replace(name, f"{value:g}" if value < 1e5 else str(value))
    return source


class RedisFleet(Fleet):
    """Shares limit and token through one Redis server: ``SessionManager(fleet=RedisFleet("redis://..."))``.

    ``url_or_client``: a ``redis://``, ``rediss://`` or ``unix://`` URL, or a
    ``redis.asyncio.Redis`` that the caller closes. ``namespace``: what all keys begin with;
    processes with the same namespace and project share. ``timeout``: seconds that one operation may
    take before the process goes on as without the store.

    Opens nothing before its first use. Source of the commands: the Redis documentation.
    """

    def __init__(
        self,
        url_or_client: str | redis.asyncio.Redis,
        *,
        namespace: str = "sinch-conv",
        timeout: float = TIMEOUT,
    ) -> None:
        self._given = None if isinstance(url_or_client, str) else url_or_client
        self._url = url_or_client if isinstance(url_or_client, str) else ""
        self._namespace = namespace
        self._timeout = timeout
        self._client: redis.asyncio.Redis | None = self._given
        self._owner: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._scripts: dict[str, Any] = {}
        self._inherited: list[redis.asyncio.Redis] = []

    def __repr__(self) -> str:
        # The URL may hold a password.
        return f"<RedisFleet namespace={self._namespace!r}>"

    async def share(self, project: ProjectKey, wish: Wish) -> Share:
        """The share of one process: one round trip. Raises FleetError."""
        return await self.share_at(project, wish, None)

    async def share_at(self, project: ProjectKey, wish: Wish, now: float | None) -> Share:
        """The same at a given time of the store's clock. For the conformance suite."""
        arguments = [
            wish.member,
            repr(wish.limit),
            wish.wanted,
            wish.holds,
            repr(wish.paused_for),
            int(wish.leaves),
            "" if now is None else repr(now),
        ]
        key = f"{self._namespace}:share:{project.origin}:{project.project_id}"
        share, lease, members, paused_for = await self._run(_ALLOT, [key], arguments)
        seconds = float(lease)
        interval = INTERVAL * (seconds / LEASE if seconds else 1.0)
        return Share(int(share), seconds, int(members), interval, float(paused_for))

    async def token(
        self, key: TokenKey, fetch: Callable[[], Awaitable[TokenResponse | Failure]]
    ) -> TokenResponse | Failure:
        """The fleet's token for the key; without the store, what ``fetch`` gives."""
        return await shared_token(self, key, fetch)

    async def forget_token(self, key: TokenKey, access_token: str) -> None:
        """Deletes this token, to which the API answered 401, if the fleet has no other one yet."""
        await forget_token(self, key, access_token)

    async def close(self) -> None:
        """Closes the connections that the fleet has opened; a client that was given stays open."""
        client, self._client = self._client, self._given
        self._scripts.clear()
        if client is not None and client is not self._given and self._is_ours():
            await client.aclose()

    # The operations of a TokenStore

    async def look(self, name: str, owner: str) -> Found:
        """What is kept of one token; see :class:`TokenStore`."""
        sealed, left, locked = await self._run(_LOOK, self._token_keys(name), [owner])
        return Found(_text(sealed), int(left) / 1000, bool(locked))

    async def renew_lock(self, name: str, owner: str) -> None:
        """Prolongs the owner's lock."""
        await self._run(_RENEW_LOCK, self._token_keys(name), [owner])

    async def store(self, name: str, owner: str, sealed: str | None, lifetime: float) -> None:
        """Stores the owner's token, and gives the lock back."""
        life = 0 if sealed is None else round(lifetime * 1000)
        await self._run(_STORE, self._token_keys(name), [owner, sealed or "", life])

    async def delete(self, name: str, sealed: str) -> None:
        """Deletes the token if it is still this one."""
        await self._run(_DELETE, self._token_keys(name), [sealed])

    def _token_keys(self, name: str) -> list[str]:
        # One slot of a Redis cluster.
        base = f"{self._namespace}:token:{{{name}}}"
        return [base, f"{base}:lock"]

    # One round trip

    async def _run(self, source: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        client = self._connected()
        script = self._scripts.get(source)
        if script is None:
            script = self._scripts[source] = client.register_script(_script(source))
        try:
            async with asyncio.timeout(self._timeout):
                return await script(keys=keys, args=arguments)
        except (RedisError, OSError, ValueError) as error:  # TimeoutError is an OSError
            # The text of the error may quote a URL or a command.
            problem = type(error).__name__
        raise FleetError(f"Redis gave no answer: {problem}")

    def _is_ours(self) -> bool:
        return self._owner == (asyncio.get_running_loop(), os.getpid())

    def _connected(self) -> redis.asyncio.Redis:
        """The client of the running event loop and process."""
        if self._given is not None:
            return self._given
        if self._client is None or not self._is_ours():
            self._leave_behind()
            self._owner = (asyncio.get_running_loop(), os.getpid())
            self._client = redis.asyncio.from_url(
                self._url,
                socket_timeout=self._timeout,
                socket_connect_timeout=self._timeout,
                retry=Retry(NoBackoff(), 0),
                max_connections=4,
            )
        return self._client

    def _leave_behind(self) -> None:
        """Lets go of the connections of another event loop or process."""
        client, self._client = self._client, None
        self._scripts.clear()
        if client is None:
            return
        if self._owner is not None and self._owner[1] != os.getpid():
            self._inherited.append(client)  # the parent process still uses them
            return
        del client
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # freeing them closes their sockets; their event loop is closed


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return value if isinstance(value, str) else None
