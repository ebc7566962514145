"""The fast route: this file keeps the connections that aiohttp opens, and sends requests on them.

It does for an exchange what :class:`aiohttp.ClientSession` does, without the parts that this
package does not use (cookies, redirects, header merging, streamed bodies). aiohttp resolves the
name, connects and makes TLS; its parser reads the answer. This file does the rest. Measurements
justify each part:

- Each origin has a stack of idle connections. The connection used last is used next, so that
  connections that are not needed grow old and are closed after ``KEEPALIVE`` seconds.
- A :class:`_Line` is the protocol of a connection's transport. It gives the input to a parser that
  is made for one answer, and returns the complete answer, so a call waits only once. Input that
  arrives while no answer is awaited closes the line: HTTP/1.1 matches answers to requests by their
  order alone, so a late answer would be taken for the next one. Before a line is used again, the
  kernel is asked for input that the event loop has not read.
- One timer serves all exchanges (:class:`_Deadlines`). Only the opening of a connection has a
  timeout of its own, because it must be cancelled.

``aiohttp_private`` lists the parts of aiohttp that this file needs. If they differ, this file is
not used.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import aiohttp
import aiohttp.http
from yarl import URL

from .pool import Connector, Exchange, input_of

__all__ = ["FastRoute"]

Answer = tuple[int, Mapping[str, str], bytes, bool]
"""Status, headers, body, and whether the body is complete."""


class _Line(asyncio.Protocol):
    """One connection, which carries one exchange at a time.

    ``alive``: it can carry another request. ``carried``: it has carried an answer.
    """

    __slots__ = (
        "_answer",
        "_limit",
        "_loop",
        "_message",
        "_parser",
        "_payload",
        "_pieces",
        "_size",
        "alive",
        "carried",
        "has_input",
        "idle_since",
        "transport",
    )

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport = transport
        self.has_input = input_of(transport)
        self.alive = True
        self.carried = False
        self.idle_since = 0.0
        self._loop = loop
        self._answer: asyncio.Future[Answer] | None = None
        self._message: Any = None
        transport.set_protocol(self)

    def ask(self, data: bytes, limit: int) -> asyncio.Future[Answer]:
        """Sends a request. The future's body may be longer than ``limit``: then it is not whole.

        Each answer has a parser of its own. Otherwise half a head after the answer before would
        stay in the parser, and be taken for the beginning of this answer.
        """
        protocol: Any = self  # this class has the two methods that a parser calls
        self._parser = aiohttp.http.HttpResponseParser(
            protocol, self._loop, limit, read_until_eof=True, auto_decompress=False
        )
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self._answer = answer = self._loop.create_future()
        self.transport.write(data)
        return answer

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.close()
            return
        try:
            messages, _, _ = self._parser.feed_data(data)
        except Exception:  # noqa: BLE001  # any error of the parser about a server's bytes
            self._cut(aiohttp.http.HttpProcessingError())
            self.close()
            return
        for message, payload in messages:
            if self._message is not None:
                self.alive = False  # a second answer, without a request
            # Interim answers (RFC 9110, section 15.2) precede the final one. 101 was not requested,
            # and ends the exchange.
            elif message.code >= 200 or message.code == 101:
                self._message = message
                self._payload = payload
        if self._message is not None:
            self._take()
            ended = self._payload.is_eof()
            if ended or self._size > self._limit:
                self._hand_over(whole=ended and self._size <= self._limit)

    def eof_received(self) -> None:
        self.alive = False  # the transport closes itself, some steps later

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        if self._message is not None and exc is None:
            with contextlib.suppress(aiohttp.http.HttpProcessingError):  # the body was cut short
                self._parser.feed_eof()  # the end of the connection may be the end of the body
        self._cut(exc if isinstance(exc, OSError) else aiohttp.ServerDisconnectedError())

    def pause_reading(self) -> None:
        """Called by the parser. The input is read in the same step, so nothing accumulates."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Answers :meth:`pause_reading`."""

    def close(self) -> None:
        """End the connection at once."""
        self.alive = False
        self.transport.abort()

    def expire(self) -> None:
        """The time of the exchange is over."""
        self._fail(TimeoutError())
        self.close()

    def _take(self) -> None:
        """Take the part of the body that has arrived."""
        piece = self._payload.read_nowait()
        self._pieces.append(piece)
        self._size += len(piece)

    def _cut(self, error: Exception) -> None:
        """No more input will come: the part that has come is the answer, or it is an error."""
        if self._message is None:
            self._fail(error)
            return
        self._take()
        self._hand_over(whole=self._payload.is_eof())

    def _hand_over(self, *, whole: bool) -> None:
        """End the exchange."""
        message, self._message = self._message, None
        answer, self._answer = self._answer, None
        if not whole or message.should_close or message.code == 101:
            self.alive = False
        if answer is not None and not answer.done():  # the future is done if the call was cancelled
            answer.set_result((message.code, message.headers, b"".join(self._pieces), whole))

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)


class _Deadlines:
    """One timer for all exchanges.

    The timer keeps the earliest time that it was set to. When it fires it is set again, so a busy
    client sets it once in each ``attempt_timeout``.
    """

    __slots__ = ("_at", "_loop", "_running", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: dict[_Line, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def begin(self, line: _Line, deadline: float) -> None:
        """The line's exchange begins."""
        self._running[line] = deadline
        if self._timer is None or deadline < self._at:
            self._set(deadline)

    def end(self, line: _Line) -> None:
        """The line's exchange has ended."""
        del self._running[line]

    def stop(self) -> None:
        """Cancel the timer."""
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
        later = [deadline for deadline in self._running.values() if deadline > now]
        for line, deadline in self._running.items():
            if deadline <= now:
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
    ) -> Answer:
        """Send a serialized request, and return its answer.

        Raises TimeoutError, and aiohttp's exceptions.
        """
        now = self._loop.time()
        line = self._take(origin, now)
        if line is None:
            async with asyncio.timeout_at(now + timeout):
                line = await self._open(origin)
        known.transport = line.transport
        known.connected = True
        known.reused = line.carried
        self._deadlines.begin(line, now + timeout)
        try:
            future = line.ask(data, limit)
            known.written()
            answer = await future
        except BaseException:
            if self._loop.is_closed():
                line.alive = False  # the garbage collector ends this call, and frees the connection
            else:
                line.close()
            raise
        finally:
            self._deadlines.end(line)
        known.answered = True
        if line.alive:
            self._keep(origin, line)
        else:
            line.close()
        return answer

    def close(self) -> None:
        """Close the idle connections. The others close when their exchange ends."""
        self._deadlines.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for line in self.forget():
            line.close()

    def forget(self) -> list[_Line]:
        """Discard the idle connections without closing them."""
        lines = [line for stack in self._idle.values() for line in stack]
        self._idle.clear()
        return lines

    async def _open(self, origin: str) -> _Line:
        route = self._routes.get(origin)
        if route is None:
            url = URL(origin)
            route = self._routes[origin] = aiohttp.ClientRequest("GET", url, loop=self._loop)
        protocol = await self._connector.open(route)
        if protocol.should_close:  # it is closed already, or has received input without a request
            protocol.close()
            raise aiohttp.ServerDisconnectedError
        return _Line(protocol.transport, self._loop)

    def _take(self, origin: str, now: float) -> _Line | None:
        """An idle connection on which nothing has arrived; ``None`` if one must be opened."""
        stack = self._idle.get(origin)
        while stack:
            line = stack.pop()
            if line.alive and now - line.idle_since < self._keepalive and not line.has_input():
                return line
            line.close()
        return None

    def _keep(self, origin: str, line: _Line) -> None:
        """Put a connection on the stack of idle connections."""
        line.carried = True
        line.idle_since = self._loop.time()
        stack = self._idle.get(origin)
        if stack is None:
            stack = self._idle[origin] = []
        stack.append(line)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._keepalive, self._sweep)

    def _sweep(self) -> None:
        """Close connections that were idle too long; the oldest is at the bottom of its stack."""
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
