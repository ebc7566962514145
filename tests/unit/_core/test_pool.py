"""The pool: a connection on which anything has arrived while it was idle is closed, not used."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import warnings

import pytest

from sinch_conv_async import NotFoundError, ServerError
from sinch_conv_async._core.pool import Connector, Exchange, Watch
from sinch_conv_async.sandbox import Sandbox
from tests.servers import ID, NEVER, OTHER, Server, answering, client_of, http, served, updated

pytestmark = pytest.mark.usefixtures("each_way")

UNSOLICITED = {
    "200": updated(ID, metadata="unsolicited"),
    "404": http(404, b"{}"),
    "500": http(500, b"{}"),
    "half a header": b"HTTP/1.1 200 OK\r\nContent-Le",
    "a header": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
    "one byte": b"H",
    "a line end": b"\r\n",
    "no HTTP": b"\x00\x01\x02\x03",
    "an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
}


def idle_then(raw: bytes, told: asyncio.Event, written: asyncio.Event):
    """Answers; when told, writes what nobody asked for; then answers whatever else is asked."""
    first = True

    async def script(peer):
        nonlocal first
        while True:
            received = await peer.receive()
            await peer.send(
                updated(received.message_id, metadata=json.loads(received.body)["metadata"])
            )
            if first:
                first = False
                await told.wait()
                await peer.send(raw)
                written.set()

    return script


@pytest.mark.parametrize("raw", UNSOLICITED.values(), ids=UNSOLICITED)
async def test_what_arrived_on_an_idle_connection_is_never_taken_for_the_next_answer(raw):
    told, written = asyncio.Event(), asyncio.Event()
    async with served(idle_then(raw, told, written), retry=NEVER) as (server, client):
        await client.update_message_metadata(ID, "one")
        told.set()
        await written.wait()
        for _ in range(3):  # the loop hands it to the connection
            await asyncio.sleep(0)
        answer = await client.update_message_metadata(ID, "two")
        assert answer.metadata == "two"
        assert server.connections == 2


@pytest.mark.parametrize("raw", UNSOLICITED.values(), ids=UNSOLICITED)
async def test_nor_when_it_arrives_in_the_tick_in_which_the_next_call_starts(raw):
    told, written = asyncio.Event(), asyncio.Event()
    async with served(idle_then(raw, told, written), retry=NEVER) as (server, client):
        await client.update_message_metadata(ID, "one")
        told.set()
        await written.wait()  # in the kernel now, and this task runs before the loop looks there
        answer = await client.update_message_metadata(ID, "two")
        assert answer.metadata == "two"
        assert server.connections == 2


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("after", [0, 0.001])
async def test_the_sandbox_second_answer_is_never_taken(status, after):
    async with Sandbox(auto_create=True) as sandbox, client_of(sandbox, retry=NEVER) as client:
        for round_ in range(1, 6):
            sandbox.unsolicited_next(status=status, after=after)
            await client.update_message_metadata(ID, "one")
            await sandbox.wait_for_unsolicited(round_)
            assert (
                await client.update_message_metadata(ID, f"two {round_}")
            ).metadata == f"two {round_}"


async def test_an_unsolicited_answer_that_left_with_the_first_is_never_taken():
    async with served(answering(updated(ID) + http(404)), retry=NEVER) as (server, client):
        await client.update_message_metadata(ID, "one")
        assert (await client.update_message_metadata(OTHER, "two")).id == OTHER
        assert server.connections == 2


async def test_errors_are_not_shifted_either():
    async with served(answering(http(404) + http(500), http(501)), retry=NEVER) as (
        _server,
        client,
    ):
        with pytest.raises(NotFoundError):
            await client.update_message_metadata(ID, "one")
        with pytest.raises(ServerError) as caught:
            await client.update_message_metadata(ID, "two")
        assert caught.value.http_status == 501


async def test_a_quiet_connection_is_used_again():
    async with served(answering()) as (server, client):
        for number in range(10):
            await client.update_message_metadata(ID, str(number))
        assert server.connections == 1


async def test_a_connection_that_the_server_closed_while_idle_is_not_used():
    async with served(answering(updated(), close=True), retry=NEVER) as (server, client):
        await client.update_message_metadata(ID, "one")
        await client.update_message_metadata(ID, "two")
        assert server.connections == 2


@pytest.mark.parametrize("times", [1, 5])
async def test_every_spoiled_connection_in_the_pool_is_passed_over(times):
    async with Sandbox(auto_create=True) as sandbox, client_of(sandbox, retry=NEVER) as client:
        async with sandbox.holding():
            calls = [
                asyncio.create_task(client.update_message_metadata(ID, "x")) for _ in range(times)
            ]
            await sandbox.wait_for_requests(times)
        await asyncio.gather(*calls)
        assert sandbox.send_unsolicited(status=404) == times
        assert (await client.update_message_metadata(ID, "y")).metadata == "y"


async def test_what_a_transport_says_of_its_buffer_reaches_aiohttp():
    told = []

    class Told(asyncio.Protocol):
        def pause_writing(self) -> None:
            told.append("pause")

        def resume_writing(self) -> None:
            told.append("resume")

    watch = Watch(Told(), lambda: False)
    watch.pause_writing()
    watch.resume_writing()
    assert told == ["pause", "resume"]


async def test_a_pool_whose_loop_was_closed_under_it_is_let_go_of():
    async def open_one() -> Connector:
        async with Server(answering()) as server:
            client = client_of(server)
            await client.update_message_metadata(ID, "x")
            return client

    def run_and_close_roughly():
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(open_one())
        finally:
            loop.close()

    client = await asyncio.to_thread(run_and_close_roughly)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await client.close()
        gc.collect()


async def test_a_forked_child_leaves_the_parents_connections_alone(monkeypatch):
    async with served(answering()) as (server, client):
        await client.update_message_metadata(ID, "one")
        connector = client._manager._binder.current.connections._connector
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            connector.__del__()
        assert not connector.closed
        await client.update_message_metadata(ID, "two")
        assert server.connections == 1


def test_an_exchange_without_a_connection_has_nothing_to_abort():
    Exchange().abort()
