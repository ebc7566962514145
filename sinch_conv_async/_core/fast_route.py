"""The fast route: requests on connections that aiohttp opens and secures, and that are kept here.

What :class:`aiohttp.ClientSession` does for an exchange, without what this package does not use
(cookies, redirects, header merging, a body that streams). aiohttp resolves the name, connects,
makes TLS and parses the answer. What is done here, each because it was measured to pay:

- Idle connections lie on a stack for each origin. The one used last is used next, so that those
  that are not needed grow old and are closed after ``KEEPALIVE`` seconds.
- A :class:`_Line` stands between the transport and aiohttp's protocol. Anything that arrives
  while the line is idle closes it: HTTP/1.1 tells which request an answer belongs to by their
  order alone, so a late answer would be taken for the next one. Input that the event loop has not
  read yet is found by asking the kernel before a line is used again.
- One timer serves all exchanges (:class:`_Deadlines`). An exchange whose time is over has its
  transport aborted; its read then fails. Only an exchange that opens a connection has a timeout
  of its own, because opening must be cancelled.

``aiohttp_private`` lists what this needs of aiohttp. Where that differs, this file is not used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
from yarl import URL

from .pool import Connector, Exchange, input_of, read_body

__all__ = ["FastRoute"]


class _Line(asyncio.Protocol):
    """One connection.

    ``alive``: it can carry another request. ``carried``: it has carried an answer. ``expired``: the
    time of its exchange was over, and its transport was aborted.
    """

    __slots__ = (
        "alive",
        "carried",
        "expired",
        "has_input",
        "idle",
        "idle_since",
        "protocol",
        "transport",
    )

    def __init__(self, protocol: Any, transport: asyncio.Transport) -> None:
        self.protocol = protocol
        self.transport = transport
        self.has_input = input_of(transport)
        self.alive = True
        self.carried = False
        self.expired = False
        self.idle = False
        self.idle_since = 0.0
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        if self.idle:
            self.close()
        else:
            self.protocol.data_received(data)

    def eof_received(self) -> bool | None:
        self.alive = False
        kept: bool | None = self.protocol.eof_received()
        return kept

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        self.protocol.connection_lost(exc)

    def close(self) -> None:
        """Ends the connection at once."""
        self.alive = False
        self.transport.abort()

    def expire(self) -> None:
        """The time of the exchange is over."""
        self.expired = True
        self.close()


class _Deadlines:
    """One timer for all exchanges.

    Exchanges with the same timeout end their time in the order in which they began, so the first of
    each timeout is the next. The timer stands at the earliest time that was ever known, and when it
    fires it is set again: a busy client sets it once in each ``attempt_timeout``.
    """

    __slots__ = ("_at", "_loop", "_running", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: dict[float, dict[_Line, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def begin(self, line: _Line, now: float, timeout: float) -> None:
        """The line's exchange begins."""
        running = self._running.get(timeout)
        if running is None:
            running = self._running[timeout] = {}
        running[line] = deadline = now + timeout
        if self._timer is None or deadline < self._at:
            self._set(deadline)

    def end(self, line: _Line, timeout: float) -> None:
        """The line's exchange has ended."""
        del self._running[timeout][line]

    def stop(self) -> None:
        """Cancels the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, at: float) -> None:
        self.stop()
        self._at = at
        self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._running = {timeout: running for timeout, running in self._running.items() if running}
        later: list[float] = []
        for running in self._running.values():
            for line, deadline in running.items():
                if deadline > now:
                    later.append(deadline)
                    break
                line.expire()
        if later:
            self._set(min(later))


class FastRoute:
    """The connections of one manager on one event loop, by origin, and the exchanges on them."""

    __slots__ = ("_connector", "_deadlines", "_idle", "_keepalive", "_loop", "_routes", "_sweeper")

    def __init__(self, connector: Connector, *, keepalive: float) -> None:
        self._connector = connector
        self._keepalive = keepalive
        self._loop = asyncio.get_running_loop()
        self._deadlines = _Deadlines(self._loop)
        self._idle: dict[str, list[_Line]] = {}
        self._routes: dict[str, aiohttp.ClientRequest] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def exchange(
        self, origin: str, data: bytes, known: Exchange, *, limit: int, timeout: float
    ) -> tuple[int, Mapping[str, str], bytes, bool]:
        """Sends a serialized request: status, headers, body, and whether that is all of the body.

        Raises TimeoutError, and what aiohttp raises.
        """
        now = self._loop.time()
        line = self._take(origin, now)
        if line is None:
            async with asyncio.timeout(timeout):
                line = await self._open(origin)
                return await self._talk(origin, line, data, known, limit)
        self._deadlines.begin(line, now, timeout)
        try:
            answer = await self._talk(origin, line, data, known, limit)
        except Exception:
            if line.expired:
                raise TimeoutError from None
            raise
        finally:
            self._deadlines.end(line, timeout)
        if line.expired and not answer[3]:
            raise TimeoutError  # it broke off in the body
        return answer

    def close(self) -> None:
        """Closes the idle connections. Those in use close when their exchange ends."""
        self._deadlines.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for line in self.forget():
            line.close()

    def forget(self) -> list[_Line]:
        """Lets go of the idle connections, which are left as they are."""
        lines = [line for stack in self._idle.values() for line in stack]
        self._idle.clear()
        return lines

    async def _open(self, origin: str) -> _Line:
        route = self._routes.get(origin)
        if route is None:
            url = URL(origin)
            route = self._routes[origin] = aiohttp.ClientRequest("GET", url, loop=self._loop)
        protocol = await self._connector.open(route)
        return _Line(protocol, protocol.transport)

    def _take(self, origin: str, now: float) -> _Line | None:
        """An idle connection on which nothing has arrived; ``None`` if one must be opened."""
        stack = self._idle.get(origin)
        while stack:
            line = stack.pop()
            if line.alive and now - line.idle_since < self._keepalive and not line.has_input():
                line.idle = False
                return line
            line.close()
        return None

    async def _talk(
        self, origin: str, line: _Line, data: bytes, known: Exchange, limit: int
    ) -> tuple[int, Mapping[str, str], bytes, bool]:
        protocol, transport = line.protocol, line.transport
        known.transport = transport
        known.connected = True
        known.reused = line.carried
        whole = False
        try:
            protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            transport.write(data)
            known.written()
            while True:
                message, payload = await protocol.read()
                # Interim answers (RFC 9110, section 15.2) come before the real one. 101 was not
                # asked for, and ends the exchange.
                if message.code >= 200 or message.code == 101:
                    break
            known.answered = True
            body, whole = await read_body(payload, limit=limit)
            return message.code, message.headers, body, whole
        finally:
            if self._loop.is_closed():
                line.alive = False  # the collector ends this call, and frees the connection
            elif whole and line.alive and not protocol.should_close:
                line.carried = line.idle = True
                line.idle_since = self._loop.time()
                self._idle.setdefault(origin, []).append(line)
                if self._sweeper is None:
                    self._sweeper = self._loop.call_later(self._keepalive, self._sweep)
            else:
                line.close()

    def _sweep(self) -> None:
        """Closes what has been idle for too long; the oldest of a stack lies at its bottom."""
        self._sweeper = None
        oldest = self._loop.time() - self._keepalive
        kept: dict[str, list[_Line]] = {}
        for origin, stack in self._idle.items():
            fresh = [line for line in stack if line.alive and line.idle_since > oldest]
            for line in stack:
                if line.idle_since <= oldest:
                    line.close()
            if fresh:
                kept[origin] = fresh
        self._idle = kept
        if kept:
            self._sweeper = self._loop.call_later(self._keepalive / 2, self._sweep)
