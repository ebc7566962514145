"""The connection pool: aiohttp's, with a look at each connection before it is used again.

HTTP/1.1 has no way to say which request an answer belongs to but their order. A pooled connection that has received anything while idle (a late
answer, a server's goodbye) would give that to the next call, and shift every answer after it: it is closed, not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import warnings
import weakref
from contextvars import ContextVar
from typing import Any

import aiohttp
import attrs

__all__ = ["Connector", "Exchange", "exchange"]


@attrs.define(eq=False)
class Exchange:
    """What is known of one exchange's connection, for the send loop to judge a failure by.

    ``connected``: a connection was handed over, so the request may have been sent. ``reused``: it had been used before. ``transport``: kept,
    because aiohttp returns a connection to the pool as soon as the answer is complete, before anybody can have read it.
    """

    connected: bool = False
    reused: bool = False
    transport: asyncio.Transport | None = None


exchange: ContextVar[Exchange] = ContextVar("sinch_conv_async.exchange")
"""The exchange that the running task makes: aiohttp calls ``connect`` in the task that sends."""


def _has_input(transport: asyncio.Transport) -> bool:
    """Whether the kernel holds bytes, or an end of stream, that the event loop has not handed on yet."""
    number = transport.get_extra_info("socket").fileno()
    if not hasattr(select, "poll"):  # pragma: no cover  # Windows, where select() takes any socket's number
        return bool(select.select([number], [], [], 0)[0])
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))


class _Watch(asyncio.Protocol):
    """Stands between a transport and aiohttp's protocol, and notices what arrives while no request is under way.

    Half a header would not show otherwise: aiohttp's parser of the answer before swallows it.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self.idle = False
        self.data_received_idle = False

    def data_received(self, data: bytes) -> None:
        if self.idle:
            self.data_received_idle = True
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()  # type: ignore[no-any-return]  # aiohttp's protocol is Any here

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def released(self) -> None:
        """The answer is complete, or given up: aiohttp takes the connection back."""
        self.idle = True


class Connector(aiohttp.TCPConnector):
    """A pool without a limit of its own: who may use a connection is decided before one is asked for.

    aiohttp's own queue is not first come, first served, and loses a wake-up when a waiter is cancelled.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(limit=0, **options)
        self._pid = os.getpid()
        self._watches: weakref.WeakSet[_Watch] = weakref.WeakSet()

    def __del__(self, _warnings: Any = warnings) -> None:
        # In a forked child aiohttp would close the connections of the parent: the two share one epoll.
        if self._pid == os.getpid():
            super().__del__(_warnings)

    def discard(self) -> None:
        """Lets go of the connections of an event loop that was closed without ending what ran on it.

        No loop is there to close them in order; freeing a transport closes its socket. (``asyncio.run`` never comes to this.)
        """
        with contextlib.suppress(StopIteration):
            self.close().send(None)  # forgets them: it has nothing to wait for
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self._watches.clear()
            gc.collect()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        """A connection on which nothing has arrived that nobody asked for."""
        under_way = exchange.get()
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol, transport = connection.protocol, connection.transport
            assert protocol is not None  # it was handed over just now
            assert transport is not None
            watch = transport.get_protocol()
            under_way.reused = isinstance(watch, _Watch)
            if not isinstance(watch, _Watch):
                watch = _Watch(protocol)
                transport.set_protocol(watch)
                self._watches.add(watch)
            elif watch.data_received_idle or protocol.should_close or _has_input(transport):
                connection.close()
                continue
            watch.idle = False
            connection.add_callback(watch.released)
            under_way.connected = True
            under_way.transport = transport
            return connection
