"""The fast route: which connections are used again, when they are closed, and whose
time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import aiohttp
import aiohttp.http
import pytest

from sinch_conv_async._core.aiohttp_private import differences
from sinch_conv_async._core.fast_route import FastRoute
from sinch_conv_async._core.pool import Connector, Exchange
from tests.servers import Server, answering, http, updated

pytestmark = pytest.mark.skipif(
    bool(differences()), reason="aiohttp is not as the fast route needs it"
)

REQUEST = b"PATCH /id HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


@contextlib.asynccontextmanager
async def route_to(script, *, keepalive: float = 30.0, connector_class=Connector):
    """A server, and a function that makes one exchange with it."""
    connector = connector_class()
    fast = FastRoute(connector, keepalive=keepalive)

    async with Server(script) as server:

        async def exchange(known: Exchange | None = None, *, timeout: float = 5.0):
            known = known or Exchange()
            return await fast.exchange(server.origin, REQUEST, known, limit=1000, timeout=timeout)

        yield server, exchange
        fast.close()
        await connector.close()


async def test_a_connection_is_used_again_and_says_so():
    async with route_to(answering()) as (server, exchange):
        for reused in (False, True, True):
            known = Exchange()
            status, _headers, _body, whole = await exchange(known)
            assert (status, whole) == (200, True)
            assert (known.connected, known.answered, known.reused) == (True, True, reused)
        assert server.connections == 1


async def test_the_connection_that_was_used_last_is_used_next():
    """So that the others grow old, and are closed."""
    peers: list[int] = []

    async def script(peer):
        number = server.connections
        while True:
            await peer.receive()
            peers.append(number)
            await hold.wait()
            await peer.send(updated())

    hold = asyncio.Event()
    async with route_to(script) as (server, exchange):
        first = asyncio.create_task(exchange())
        await server.wait_for(1)
        second = asyncio.create_task(exchange())
        await server.wait_for(2)
        hold.set()
        await asyncio.gather(first, second)
        for _ in range(3):
            await exchange()
        assert len(set(peers[2:])) == 1


async def test_an_idle_connection_is_closed_after_a_while_by_itself():
    gone = asyncio.Event()

    async def script(peer):
        await peer.receive()
        await peer.send(updated())
        await peer.gone()
        gone.set()

    async with route_to(script, keepalive=0.02) as (_server, exchange):
        await exchange()
        await asyncio.wait_for(gone.wait(), 10)


@pytest.mark.skipif(os.environ.get("EVENT_LOOP") == "uvloop", reason="its clock cannot be replaced")
async def test_of_two_idle_connections_the_older_is_closed_first(monkeypatch):
    gone: list[int] = []

    async def script(peer):
        number = server.connections
        await peer.receive()
        await hold[number].wait()
        await peer.send(updated())
        await peer.gone()
        gone.append(number)

    async def closed(number: int) -> None:
        while number not in gone:
            await asyncio.sleep(0)

    hold = {1: asyncio.Event(), 2: asyncio.Event()}
    ahead = 0.0
    loop = asyncio.get_running_loop()
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + ahead)
    async with route_to(script, keepalive=100) as (server, exchange):
        calls = [asyncio.create_task(exchange(timeout=1000))]
        await server.wait_for(1)
        calls.append(asyncio.create_task(exchange(timeout=1000)))
        await server.wait_for(2)
        for number, call in enumerate(calls, 1):
            hold[number].set()
            await call
            ahead += 60
        await closed(1)
        assert gone == [1]
        ahead += 60
        await closed(2)


async def test_a_connection_that_has_been_idle_for_too_long_is_not_used():
    async with route_to(answering(), keepalive=0.02) as (server, exchange):
        await exchange()
        time.sleep(0.03)  # the event loop has no chance to close it
        await exchange()
        assert server.connections == 2


async def test_a_connection_that_the_server_has_closed_is_not_used():
    async with route_to(answering(updated(), close=True)) as (server, exchange):
        await exchange()
        await exchange()
        assert server.connections == 2


async def test_each_exchange_has_its_own_time():
    """The timer is set again for one that ends sooner, and after each that has ended."""
    answered = 0

    async def script(peer):
        nonlocal answered
        while True:
            await peer.receive()
            answered += 1
            if answered <= 3:
                await asyncio.sleep(0)
                while len(server.received) < 3:
                    await asyncio.sleep(0)
                await peer.send(updated())
            else:
                await peer.gone()
                return

    async with route_to(script) as (server, exchange):
        await asyncio.gather(exchange(), exchange(), exchange())
        patient = asyncio.create_task(exchange(timeout=0.2))
        await server.wait_for(4)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await exchange(timeout=0.02)
            assert not patient.done()
        with pytest.raises(TimeoutError):
            await patient
        assert server.connections == 3


async def test_a_time_that_is_over_in_the_middle_of_the_body_is_a_timeout():
    async def script(peer):
        await peer.receive()
        await peer.send(updated())
        await peer.receive()
        await peer.send(http(200, b"{", length=100))
        await peer.gone()

    async with route_to(script) as (_server, exchange):
        await exchange()
        with pytest.raises(TimeoutError):
            await exchange(timeout=0.02)


async def test_an_exchange_that_is_cancelled_closes_its_connection():
    gone = asyncio.Event()

    async def script(peer):
        await peer.receive()
        await peer.send(updated())
        await peer.receive()
        await peer.gone()
        gone.set()

    async with route_to(script) as (server, exchange):
        await exchange()
        call = asyncio.create_task(exchange())
        await server.wait_for(2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(gone.wait(), 5)


async def test_whatever_arrives_while_a_connection_is_idle_closes_it_at_once():
    gone = asyncio.Event()

    async def script(peer):
        await peer.receive()
        await peer.send(updated())
        await told.wait()
        await peer.send(b"H")
        await peer.gone()
        gone.set()

    told = asyncio.Event()
    async with route_to(script) as (_server, exchange):
        await exchange()
        told.set()
        await asyncio.wait_for(gone.wait(), 5)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "expected", "kept"),
    [
        ([http(200, b"{}")], (200, b"{}", True), True),
        ([http(100) + http(200, b"{}")], (200, b"{}", True), True),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", http(200, b"{}")], (200, b"{}", True), True),
        ([http(200, b"{", length=2), b"}"], (200, b"{}", True), True),
        ([CHUNKED, b"1\r\n{\r\n", b"1\r\n}\r\n", b"0\r\n\r\n"], (200, b"{}", True), True),
        ([http(200)], (200, b"", True), True),
        ([http(204)], (204, b"", True), True),
        ([http(204, length=2)], (204, b"", True), True),
        # The answer is complete, the connection is of no more use.
        ([http(200, b"{}", "Connection: close")], (200, b"{}", True), False),
        ([http(200, b"{}") + http(200, b"{}")], (200, b"{}", True), False),
        ([b"HTTP/1.1 101 Other\r\nUpgrade: x\r\n\r\n"], (101, b"", True), False),
        # There is more of it than is read.
        ([http(200, b"x" * 1001)], (200, b"x" * 1001, False), False),
        ([http(200, b"x" * 1001, length=2000)], (200, b"x" * 1001, False), False),
        ([CHUNKED, b"1\r\nx\r\n" * 1001], (200, b"x" * 1001, False), False),
        # What comes behind its head is not HTTP.
        ([CHUNKED, b"1\r\n{\r\n", b"no size\r\n"], (200, b"{", False), False),
    ],
)
async def test_an_answer_is_read_and_its_connection_kept_if_it_can_be(pieces, expected, kept):
    async def script(peer):
        while True:
            await peer.receive()
            for piece in pieces:
                await peer.send(piece)
                for _ in range(10):  # so that the pieces arrive one by one
                    await asyncio.sleep(0)

    async with route_to(script) as (server, exchange):
        for _ in range(2):
            status, _headers, body, whole = await exchange()
            assert (status, body, whole) == expected
        assert server.connections == (1 if kept else 2)


def closing(answer: bytes):
    async def script(peer):
        await peer.receive()
        await peer.send(answer)

    return script


def resetting(answer: bytes):
    async def script(peer):
        await peer.receive()
        await peer.send(answer)
        for _ in range(10):
            await asyncio.sleep(0)
        peer.reset()

    return script


UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\n\r\n{}"


@pytest.mark.parametrize(
    ("script", "whole"),
    [
        (closing(UNTIL_CLOSED), True),
        (closing(http(200, b"{}", length=3)), False),
        (closing(CHUNKED + b"2\r\n{}\r\n"), False),
        (resetting(UNTIL_CLOSED), False),
    ],
)
async def test_an_answer_that_the_end_of_the_connection_ends(script, whole):
    async with route_to(script) as (server, exchange):
        for _ in range(2):
            status, _headers, body, complete = await exchange()
            assert (status, body, complete) == (200, b"{}", whole)
        assert server.connections == 2


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (closing(b""), aiohttp.ServerDisconnectedError),
        (closing(b"HTTP/1.1 200"), aiohttp.ServerDisconnectedError),
        (resetting(b""), ConnectionResetError),
        (closing(b"220 mail\r\n"), aiohttp.http.HttpProcessingError),
    ],
)
async def test_an_exchange_without_an_answer_raises(script, error):
    async with route_to(script) as (_server, exchange):
        with pytest.raises(error):
            await exchange()


@pytest.mark.skipif(
    os.environ.get("EVENT_LOOP") == "uvloop", reason="it reads before it runs what is called soon"
)
@pytest.mark.parametrize(
    "answer", [updated(), b"no HTTP\r\n", http(200, b"{", length=2)], ids=["all", "no", "half"]
)
async def test_what_comes_for_a_call_that_was_cancelled_is_dropped(answer):
    """The answer and the cancellation come in the same step."""

    async def script(peer):
        await peer.receive()
        await peer.send(updated())
        await peer.receive()
        await peer.send(answer)
        await peer.gone()

    async with route_to(script) as (server, exchange):
        await exchange()
        call = asyncio.create_task(exchange())
        await server.wait_for(2)
        asyncio.get_running_loop().call_soon(call.cancel)
        with pytest.raises(asyncio.CancelledError):
            await call
        await exchange()
        assert server.connections == 2


class SlowOpening(Connector):
    """Hands a connection over when its other end has done something to it."""

    async def open(self, route):
        protocol = await super().open(route)
        while not protocol.should_close:
            await asyncio.sleep(0)
        return protocol


async def test_a_connection_that_the_server_used_before_it_was_asked_is_not_used():
    requests = []

    async def speaking(peer):
        await peer.send(updated())
        requests.append(await peer.receive())

    async def leaving(peer): ...

    for script in (speaking, leaving):
        async with route_to(script, connector_class=SlowOpening) as (_server, exchange):
            known = Exchange()
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await exchange(known)
            assert not known.connected
    assert not requests
