"""Scripted servers, byte by byte, and clients for them.

The sandbox answers as the API does, or fails in known ways. Everything else is scripted here over
plain sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from typing import TYPE_CHECKING, Any

import attrs

from sinch_conv_async import ConversationClient, RetryPolicy, SessionStats

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Self

    from sinch_conv_async.sandbox import Sandbox

ID = "01FC66621XXXXX119Z8PMV1QPA"
OTHER = "01FC66621XXXXX119Z8PMV1QPB"

# The usual number of retries, without pauses.
AT_ONCE = RetryPolicy(base_delay=0.0)
NEVER = RetryPolicy(max_retries=0)


def http(status: int | str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """An answer as it goes over the wire; ``length`` is what Content-Length claims."""
    line = f"{status} Reason" if isinstance(status, int) else status
    length = len(body) if length is None else length
    lines = [f"HTTP/1.1 {line}", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def message(message_id: str = ID, **fields: Any) -> bytes:
    return json.dumps({"id": message_id, "metadata": "new", **fields}).encode()


def updated(message_id: str = ID, **fields: Any) -> bytes:
    """The answer to an update that was applied."""
    return http(200, message(message_id, **fields), "Content-Type: application/json")


@attrs.frozen
class Received:
    """A request as it arrived, with the header lines in their order."""

    method: str
    target: str
    headers: dict[str, str]
    names: tuple[str, ...]
    body: bytes

    @property
    def message_id(self) -> str:
        return self.target.partition("?")[0].rpartition("/")[2]


class Peer:
    """The server's end of one connection."""

    def __init__(
        self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer

    async def receive(self) -> Received:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _version = head[0].split(" ")
        pairs = [line.partition(": ")[::2] for line in head[1:-2]]
        headers = {name.lower(): value for name, value in pairs}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        received = Received(method, target, headers, tuple(name for name, _ in pairs), body)
        self.server.received.append(received)
        self.server.news.set()
        return received

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Closes with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Returns when the client has closed its end."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


class Server:
    """Runs ``script`` for each connection; ``async with Server(script) as server``."""

    def __init__(
        self, script: Callable[[Peer], Awaitable[None]], *, ssl: tls.SSLContext | None = None
    ) -> None:
        self.script = script
        self.ssl = ssl
        self.received: list[Received] = []
        self.connections = 0
        self.news = asyncio.Event()
        self._scripts: set[asyncio.Task[None]] = set()

    @property
    def origin(self) -> str:
        return f"{'http' if self.ssl is None else 'https'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.ssl)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._listener.close()
        for task in tuple(self._scripts):
            task.cancel()
        await asyncio.gather(*self._scripts, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(Peer(self, reader, writer)))
        self._scripts.add(task)
        task.add_done_callback(self._scripts.discard)

    async def _serve(self, peer: Peer) -> None:
        try:
            # The client may end the connection at any time.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.script(peer)
        finally:
            peer.writer.transport.abort()

    async def wait_for(self, number: int) -> None:
        """Returns as soon as so many requests have arrived."""
        while len(self.received) < number:
            self.news.clear()
            await self.news.wait()


def answering(*answers: bytes, close: bool = False) -> Callable[[Peer], Awaitable[None]]:
    """A script that gives these answers in turn, over any number of connections, and then applies
    every update.
    """
    left = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            received = await peer.receive()
            if left:
                await peer.send(left.pop(0))
                if close:
                    return
            else:
                await peer.send(updated(received.message_id))

    return script


def client_of(server: Sandbox | Server, **options: Any) -> ConversationClient:
    """A client of the server. For a scripted server it has Basic credentials, so that it sends only
    updates.
    """
    if isinstance(server, Server):
        given = {
            "project_id": "project",
            "key_id": "key",
            "key_secret": "secret",
            "auth": "basic",
            "conversation_origin": server.origin,
            "auth_origin": server.origin,
        }
    else:
        given = dict(server.client_options())
    return ConversationClient(**{**given, "retry": AT_ONCE, **options})


def stats_of(client: ConversationClient) -> SessionStats:
    """The counters of the manager that a client has made."""
    return client._manager.stats()


@contextlib.asynccontextmanager
async def served(
    script: Callable[[Peer], Awaitable[None]], **options: Any
) -> AsyncIterator[tuple[Server, ConversationClient]]:
    """A scripted server and a client of it."""
    async with Server(script) as server, client_of(server, **options) as client:
        yield server, client


class Time:
    """Monotonic time that passes only during a sleep, or when a test sets it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    __call__ = clock

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
