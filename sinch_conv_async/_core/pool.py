"""aiohttp's connection pool, with a check of each connection before it is used again.

HTTP/1.1 matches answers to requests by their order alone. If a pooled connection has received input
while idle (a late answer, or a 408 before the server closes), the next call would read that input
as its answer, and every later answer would shift. The pool closes such a connection.

A :class:`Watch` stands between each transport and aiohttp's protocol and notices what arrives while
no request is under way. The kernel is asked for input that the event loop has not read.

aiohttp's own queue is off. It is not first come, first served, and it loses a wake-up when a waiter
is cancelled. ``admission`` limits the calls that ask the pool for a connection.

aiohttp loses a connection if a trace hook raises or is cancelled between the moment in which the
connection leaves the pool and the moment in which its caller holds it. So the pool runs the hooks
of that moment itself, once the connection is held (:class:`_LateHooks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import socket
import warnings
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

__all__ = [
    "NO_TIMEOUT",
    "CheckedResolver",
    "Connector",
    "Exchange",
    "Watch",
    "current_exchange",
    "input_of",
    "read_body",
]

NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""``exchange`` has one timeout around the whole exchange."""


def _nothing() -> None:
    """For a request that no pace counts."""


class Exchange:
    """Facts about the connection of one exchange, by which the send loop judges a failure.

    ``written`` is called when the request has been written to the socket. ``connected``: a
    connection was handed over, so the request may have been sent. ``reused``: the connection has
    carried an answer before. ``answered``: the head of an answer came. ``transport``: the
    connection, kept because it is idle again before the answer is read.
    """

    __slots__ = ("answered", "connected", "reused", "transport", "written")

    def __init__(self, written: Callable[[], None] = _nothing) -> None:
        self.written = written
        self.connected = False
        self.reused = False
        self.answered = False
        self.transport: asyncio.Transport | None = None

    def abort(self) -> None:
        """Close the connection at once, because its next input cannot be trusted."""
        if self.transport is not None:
            self.transport.abort()


current_exchange: ContextVar[Exchange] = ContextVar("sinch_conv_async.exchange")
"""The exchange that the running task makes by aiohttp's session, which does not pass it to the
pool. The session calls ``connect`` in the task that sends.
"""


def input_of(transport: asyncio.Transport) -> Callable[[], bool]:
    """Ask the kernel for input that the event loop has not read: bytes or an end of stream."""
    number = transport.get_extra_info("socket").fileno()
    if not hasattr(select, "poll"):  # pragma: no cover  # Windows, where select() takes any number
        return lambda: bool(select.select([number], [], [], 0)[0])
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return lambda: bool(poll.poll(0))


class Watch(asyncio.Protocol):
    """Notices what a transport receives while no request is under way, and passes it on.

    Otherwise half a header would stay hidden in aiohttp's parser of the answer before.
    """

    def __init__(self, protocol: Any, has_input: Callable[[], bool]) -> None:
        self._protocol = protocol
        self.has_input = has_input
        self.idle = False
        self.data_received_idle = False

    def data_received(self, data: bytes) -> None:
        if self.idle:
            self.data_received_idle = True
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        kept: bool | None = self._protocol.eof_received()
        return kept

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def released(self) -> None:
        """The answer is complete, or was given up: aiohttp takes the connection back."""
        self.idle = True


class _LateHooks:
    """Replaces one of aiohttp's traces, and delays the hooks of the handing over."""

    def __init__(self, trace: Any) -> None:
        self._trace = trace
        self._late: list[Callable[[], Awaitable[None]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trace, name)

    async def send_connection_create_end(self) -> None:
        self._late.append(self._trace.send_connection_create_end)

    async def send_connection_reuseconn(self) -> None:
        self._late = [self._trace.send_connection_reuseconn]  # of the last connection tried

    async def run(self) -> None:
        """Run the delayed hooks."""
        for hook in self._late:
            await hook()


class CheckedResolver(AbstractResolver):
    """A user's resolver. An empty result is an error, because aiohttp relies on that."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not found:
            raise OSError(None, "no address")
        return found

    async def close(self) -> None:
        """Leave the user's resolver open: its maker closes it."""


class Connector(aiohttp.TCPConnector):
    """A pool without its own limit, which checks its connections."""

    def __init__(self, **options: Any) -> None:
        super().__init__(limit=0, **options)
        self._pid = os.getpid()
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    def __del__(self, _warnings: Any = warnings) -> None:
        # In a forked child aiohttp would close the parent's connections, because both share one
        # epoll.
        if self._pid == os.getpid():
            super().__del__(_warnings)

    def discard(self) -> None:
        """Discard the connections of an event loop that was closed while they were open.

        No loop is there to close them in order; freeing a transport closes its socket.
        (``asyncio.run`` never comes to this.)
        """
        with contextlib.suppress(StopIteration):
            self.close().send(None)  # forgets the connections; nothing is awaited
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self._watches.clear()
            gc.collect()

    async def connect(self, *args: Any, **options: Any) -> aiohttp.connector.Connection:
        """For aiohttp's session: a connection that has received no unrequested input.

        The arguments are aiohttp's. One exchange connects once; aiohttp asks a second time to
        repeat a request by itself.
        """
        known = current_exchange.get()
        if known.connected:
            raise aiohttp.ServerDisconnectedError
        late = options["traces"] = [_LateHooks(trace) for trace in options["traces"]]
        connection = await self._connect(known, *args, **options)
        try:
            for hooks in late:
                await hooks.run()
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connect(
        self, known: Exchange, *args: Any, **options: Any
    ) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(*args, **options)
            protocol, transport = connection.protocol, connection.transport
            assert protocol is not None  # the connection was handed over just now
            assert transport is not None
            watch = transport.get_protocol()
            known.reused = isinstance(watch, Watch)
            if not isinstance(watch, Watch):
                watch = Watch(protocol, input_of(transport))
                transport.set_protocol(watch)
                self._watches.add(watch)
            elif watch.data_received_idle or protocol.should_close or watch.has_input():
                connection.close()
                continue
            watch.idle = False
            connection.add_callback(watch.released)
            known.connected = True
            known.transport = transport
            return connection

    async def open(self, route: aiohttp.ClientRequest) -> Any:
        """A new connection, as aiohttp's protocol. For the fast route, which keeps it."""
        return await self._create_connection(route, [], NO_TIMEOUT)


async def read_body(content: aiohttp.StreamReader, *, limit: int) -> tuple[bytes, bool]:
    """The body, at most one byte more than ``limit``, and whether that is all of it."""
    if content.is_eof() and content.exception() is None:
        # The body came together with its head, as nearly always.
        body = content.read_nowait(limit + 1)
        return body, content.at_eof() and len(body) <= limit
    received = bytearray()
    try:
        while len(received) <= limit:
            received += await content.read(limit + 1 - len(received))
            if content.at_eof():
                return bytes(received), len(received) <= limit
    except aiohttp.ClientPayloadError:
        pass
    return bytes(received), False
