"""A fleet on Redis: one Lua script divides the limit, four small ones keep the token.

Needs the ``[redis]`` extra. The scripts do the arithmetic of :func:`sinch_conv_async.fleet.allot`,
and the conformance suite compares the two. All times are by the clock of the Redis server.
"""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from collections.abc import Sequence
from typing import Any, Final

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from . import (
    INTERVAL,
    KEPT_BACK,
    KEPT_BACK_FROM,
    LEASE,
    LEAST_WISH,
    MANY,
    FleetError,
    ProjectKey,
    Share,
    Wish,
)
from ._store import CONNECT_TIMEOUT, FRESH, LOCK, TIMEOUT, Found, StoreFleet, in_time, seen

__all__ = ["RedisFleet"]

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
    local lent, turn, count, keys, own_key = 0, math.floor(now / LEASE), #names + 1, {}, nil
    for _, lease in pairs(live) do lent = lent + lease.share end
    names[count] = member
    table.sort(names)
    -- One number says what a member wants and whose turn it is. Lua sorts numbers fast.
    for at, name in ipairs(names) do
      local wants = name == member and wanted or live[name].wanted
      keys[at] = wants * count + (at - 1 + turn) % count
      if name == member then own_key = keys[at] end
    end
    table.sort(keys)
    local left = capacity
    for at, sort_key in ipairs(keys) do
      share = math.min(math.floor(sort_key / count), math.floor(left / (count - at + 1)))
      if sort_key == own_key then break end
      left = left - share
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


class RedisFleet(StoreFleet):
    """Shares limit and token through one Redis server.

    ``SessionManager(fleet=RedisFleet("redis://..."))``.

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
        self._connecting: asyncio.Task[None] | None = None
        self._is_connected = False
        self._inherited: list[object] = []

    def __repr__(self) -> str:
        # The URL may hold a password.
        return f"<RedisFleet namespace={self._namespace!r}>"

    async def share_at(self, project: ProjectKey, wish: Wish, now: float | None) -> Share:
        """The share of one process: one round trip; see :class:`StoreFleet`."""
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

    async def close(self) -> None:
        """Closes the connections that the fleet has opened; a client that was given stays open."""
        client, self._client = self._client, self._given
        self._scripts.clear()
        if client is None or client is self._given or not self._is_ours():
            return
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self._is_connected = False
        await client.aclose()

    # A token

    async def look(self, name: str, owner: str) -> Found:
        """What is kept of one token; see :class:`StoreFleet`."""
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
        operation = seen(self._operate(source, keys, arguments))
        try:
            await in_time(operation, self._timeout)
        finally:
            if not operation.done():
                operation.cancel()
                await asyncio.wait([operation])
        failed = TimeoutError() if operation.cancelled() else operation.exception()
        if failed is None:
            return operation.result()
        if not isinstance(failed, RedisError | OSError | ValueError):
            raise failed
        self._is_connected = False
        # The text of the error may quote a URL or a command.
        raise FleetError(f"Redis gave no answer: {type(failed).__name__}")

    async def _operate(self, source: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        client = self._client_of_loop()
        if client is not self._given and not self._is_connected:
            if self._connecting is None:
                self._connecting = seen(self._connect(client))
            await asyncio.shield(self._connecting)
        script = self._scripts.get(source)
        if script is None:
            script = self._scripts[source] = client.register_script(_script(source))
        return await script(keys=keys, args=arguments)

    async def _connect(self, client: redis.asyncio.Redis) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await client.ping()
            self._is_connected = True
        finally:
            self._connecting = None

    def _is_ours(self) -> bool:
        return self._owner == (asyncio.get_running_loop(), os.getpid())

    def _client_of_loop(self) -> redis.asyncio.Redis:
        """The client of the running event loop and process."""
        if self._given is not None:
            return self._given
        if self._client is None or not self._is_ours():
            self._leave_behind()
            self._owner = (asyncio.get_running_loop(), os.getpid())
            self._client = redis.asyncio.from_url(
                self._url,
                socket_timeout=CONNECT_TIMEOUT,  # an operation is given up sooner, by _run
                socket_connect_timeout=CONNECT_TIMEOUT,
                retry=Retry(NoBackoff(), 0),
                max_connections=4,
            )
        return self._client

    def _leave_behind(self) -> None:
        """Lets go of the connections of another event loop or process."""
        client, self._client = self._client, None
        connecting, self._connecting = self._connecting, None
        self._is_connected = False
        self._scripts.clear()
        if client is None:
            return
        if self._owner is not None and self._owner[1] != os.getpid():
            self._inherited += [client, connecting]  # the parent process still uses them
            return
        del client, connecting
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # freeing them closes their sockets; their event loop is closed


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return value if isinstance(value, str) else None
