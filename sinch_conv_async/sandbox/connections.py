"""The sandbox's connections: accepting, writing by hand, breaking, and closing all of them.

aiohttp's low-level server reads the requests. The responses are written to the transport as bytes,
because a sandbox must also be able to send invalid HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl as tls
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

__all__ = ["CLOSED", "KEPT", "Listener", "refuse_unreadable", "reset", "trickle", "write"]

# Enough for a sudden burst of thousands of connections; the kernel reduces it to its own limit.
_BACKLOG: Final = 4096


def _quotes_no_request(record: logging.LogRecord) -> bool:
    # aiohttp logs a malformed request with the line that it could not read, which may contain the
    # credentials. (The exception is recognized by its module, so that only `aiohttp.web` is
    # imported.)
    return not record.exc_info or type(record.exc_info[1]).__module__ != "aiohttp.http_exceptions"


_log: Final = logging.getLogger("sinch_conv_async.sandbox")
_log.addFilter(_quotes_no_request)


class _Written(web.StreamResponse):
    """Tells aiohttp that the response has been written, and whether the connection lives on."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._lives = keep_alive

    @property
    def keep_alive(self) -> bool:
        return self._lives

    async def prepare(self, request: web.BaseRequest) -> None:
        pass

    async def write_eof(self, data: bytes = b"") -> None:
        pass


KEPT: Final = _Written(keep_alive=True)
CLOSED: Final = _Written(keep_alive=False)


class _Server(web.Server):
    """aiohttp's low-level server, which also knows the transports of its connections."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(handler, access_log=None, logger=_log)
        self.transports: dict[web.RequestHandler, asyncio.Transport] = {}
        self.peak = 0
        self.closing = False

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.transports[handler] = transport
        self.peak = max(self.peak, len(self.transports))
        if self.closing:
            # Accepted just before the listening socket was closed.
            transport.abort()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self.transports.pop(handler, None)


class Listener:
    """Listens on one address while it is open, and hands each request to `handler`.

    Opened again after :meth:`close`, it takes the same port.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        host: str,
        port: int,
        ssl: tls.SSLContext | None,
    ) -> None:
        self.host = host
        self.port = port
        self.ssl = ssl
        self._handler = handler
        self._listening: asyncio.Server | None = None
        self._server: _Server | None = None
        self._peak = 0
        self._busy: set[asyncio.Transport | None] = set()
        self._suspended: set[asyncio.Task[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._listening is not None

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return 0 if self._server is None else len(self._server.transports)

    @property
    def peak(self) -> int:
        """How many connections were open at the same time, at most."""
        return max(self._peak, 0 if self._server is None else self._server.peak)

    async def open(self) -> None:
        """Listen. Does nothing if it listens already."""
        if self._listening is not None:
            return
        server = _Server(self._serve)
        listening = await self._listen(server, self.port)
        ports = [each.getsockname()[1] for each in listening.sockets]
        if len(set(ports)) > 1:
            # Several addresses, and each took a free port of its own. Take one port on all of them.
            listening.close()
            listening = await self._listen(server, ports[0])
        self.port = ports[0]
        self._server = server
        self._listening = listening

    async def _listen(self, server: _Server, port: int) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            server, self.host, port, ssl=self.ssl, backlog=_BACKLOG
        )

    async def close(self) -> None:
        """Stop listening and abort every connection."""
        listening, self._listening = self._listening, None
        server, self._server = self._server, None
        if listening is None or server is None:
            return
        self._peak = max(self._peak, server.peak)
        server.closing = True
        # An accepted connection gets its transport after two turns of the loop, and asyncio loses
        # it if its server is closed in between. So accept no more, then wait for these turns.
        # (Windows' loop has no readers.)
        with contextlib.suppress(NotImplementedError):
            for each in listening.sockets:
                asyncio.get_running_loop().remove_reader(each.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        listening.close()
        for task in tuple(self._suspended):
            task.cancel()
        for transport in tuple(server.transports.values()):
            transport.abort()
        # aiohttp forgets a connection when its task has ended, a few turns of the loop after the
        # abort. It has no event for that.
        while server.connections:  # noqa: ASYNC110  # closing sockets call back nobody
            await asyncio.sleep(0)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        refuse_unreadable(request)
        transport = request.transport
        self._busy.add(transport)
        try:
            return await self._handler(request)
        finally:
            self._busy.discard(transport)

    def idle(self) -> list[asyncio.Transport]:
        """The connections that wait for a request now."""
        transports = () if self._server is None else self._server.transports.values()
        return [transport for transport in transports if transport not in self._busy]

    async def suspended(self, wait: Awaitable[Any]) -> None:
        """Wait in a way that closing ends at once."""
        task = asyncio.current_task()
        assert task is not None
        self._suspended.add(task)
        try:
            await wait
        finally:
            self._suspended.discard(task)


def refuse_unreadable(request: object) -> None:
    """Raise aiohttp's error for bytes that it could not read as a request; aiohttp answers 400.

    aiohttp 4 calls the handler for such bytes too, with the error in `pre_handler_error`. aiohttp 3
    calls no handler for them, and its requests have no such attribute.
    """
    error: BaseException | None = getattr(request, "pre_handler_error", None)
    if error is not None:
        raise error


def write(transport: asyncio.Transport | None, data: bytes) -> None:
    """Write, unless the caller has disconnected, because asyncio would warn then."""
    if transport is not None and not transport.is_closing():
        transport.write(data)


async def trickle(
    transport: asyncio.Transport | None, body: bytes, seconds_per_byte: float
) -> None:
    """Write a body byte by byte, with this pause after each."""
    for position in range(len(body)):
        if transport is None or transport.is_closing():
            return
        transport.write(body[position : position + 1])
        await asyncio.sleep(seconds_per_byte)


def reset(transport: asyncio.Transport | None) -> None:
    """Close with a TCP reset."""
    if transport is None:
        return
    # With a linger time of 0 the kernel sends RST instead of FIN. Windows' struct is shorter.
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
