"""The floor: what asyncio alone costs for such an exchange, with no HTTP client at all.

A bare protocol that writes prepared bytes and finds the end of the answer by Content-Length; it
reads no status, checks nothing and understands nothing. One connection a worker. Variant ``json``
also runs `json.loads` on the body.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from benchmarks import sample
from benchmarks.clients import workload


class Exchange(asyncio.Protocol):
    """One connection, one exchange at a time."""

    _transport: asyncio.Transport
    _answer: "asyncio.Future[bytes]"

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes) -> "asyncio.Future[bytes]":
        self._answer = self._loop.create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._received.index(b"Content-Length: ") + 16
        length = int(self._received[at : self._received.index(b"\r", at)])
        if len(self._received) < head + 4 + length:
            return
        body, self._received = self._received[head + 4 :], b""
        self._answer.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport.abort()

    def close(self) -> None:
        self._transport.close()


@contextlib.asynccontextmanager
async def opened(given: workload.Arguments) -> AsyncIterator[workload.Call]:
    server = urlsplit(given.origin)
    assert server.hostname is not None
    assert server.port is not None
    content = json.dumps({"metadata": sample.METADATA}).encode()
    request = (
        f"PATCH {sample.path(sample.MESSAGE_ID)} HTTP/1.1\r\nHost: {server.netloc}\r\n"
        f"Authorization: Bearer {sample.TOKEN}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content

    loop = asyncio.get_running_loop()
    idle: list[Exchange] = []
    for _ in range(given.concurrency):
        _transport, exchange = await loop.create_connection(Exchange, server.hostname, server.port)
        idle.append(exchange)

    async def call(_message_id: str, _metadata: str) -> Any:
        exchange = idle.pop()
        body = await exchange.send(request)
        idle.append(exchange)
        return json.loads(body) if given.variant == "json" else body

    yield call
    for exchange in idle:
        exchange.close()


if __name__ == "__main__":
    workload.run(opened, distributions=[])
