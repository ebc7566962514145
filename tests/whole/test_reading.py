"""Reading one message and the list of them, over sockets."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

from sinch_conv_async import (
    ApiError,
    ClientStateError,
    InvalidArgumentError,
    NotFoundError,
    ResponseFormatError,
    RetryPolicy,
    ServerError,
)
from sinch_conv_async.sandbox import Sandbox
from tests.servers import AT_ONCE, ID, NEVER, client_of, http, served


@pytest.fixture
async def sandbox():
    async with Sandbox() as running:
        for number in range(25):
            running.add_message(f"m{number:02}", metadata=str(number))
        yield running


def page(*ids, token=None):
    fields = {"messages": [{"id": name} for name in ids]}
    return http(
        200, json.dumps(fields if token is None else {**fields, "next_page_token": token}).encode()
    )


def fetching():
    return [task for task in asyncio.all_tasks() if task.get_name() == "sinch_conv_async page"]


# One message


async def test_a_message_is_read_as_it_is(sandbox):
    async with client_of(sandbox) as client:
        await client.update_message_metadata("m07", "seen")
        message = await client.get_message("m07")
        assert (message.id, message.metadata) == ("m07", "seen")
        assert [(request.method, request.status) for request in sandbox.requests] == [
            ("PATCH", 200),
            ("GET", 200),
        ]
        assert len(sandbox.token_requests) == 1


async def test_a_read_is_retried_whatever_happened(sandbox):
    policy = RetryPolicy(base_delay=0, retry_maybe_sent=False)
    async with client_of(sandbox, retry=policy) as client:
        sandbox.fail_next(503)
        sandbox.drop_next()
        assert (await client.get_message("m01")).metadata == "1"
        sandbox.fail_next(503)
        with pytest.raises(ServerError):
            await client.update_message_metadata("m01", "x")


async def test_a_read_fails_as_an_update_does(sandbox):
    async with client_of(sandbox) as client:
        with pytest.raises(NotFoundError):
            await client.get_message("unknown")
        with pytest.raises(InvalidArgumentError):
            await client.get_message("../m01")
        with pytest.raises(InvalidArgumentError, match="messages_source"):
            await client.get_message("m01", messages_source="NOWHERE")
        with pytest.raises(InvalidArgumentError, match="timeout"):
            await client.get_message("m01", timeout=0)
    with pytest.raises(ClientStateError):
        await client.get_message("m01")


# The list


async def test_the_list_brings_the_messages_of_all_pages_each_once(sandbox):
    async with client_of(sandbox) as client:
        found = [message.id async for message in client.list_messages(page_size=10)]
        assert sorted(found) == [f"m{number:02}" for number in range(25)]
        assert len(sandbox.requests) == 3


async def test_nothing_is_sent_before_the_first_message_is_asked_for(sandbox):
    async with client_of(sandbox) as client:
        messages = client.list_messages(page_size=10)
        assert (
            repr(messages) == "<MessageList at its beginning: 0 messages at hand, 0 pages turned>"
        )
        await asyncio.sleep(0.01)
        assert sandbox.requests == []
        await anext(messages)
        assert repr(messages) == "<MessageList reading: 9 messages at hand, 1 pages turned>"
        async for _ in messages:
            pass
        assert repr(messages) == "<MessageList at its end: 0 messages at hand, 2 pages turned>"
        with pytest.raises(StopAsyncIteration):
            await anext(messages)


async def test_the_next_page_is_fetched_while_this_one_is_read_and_no_other(sandbox):
    async with client_of(sandbox) as client:
        messages = client.list_messages(page_size=5)
        await anext(messages)
        await sandbox.wait_for_requests(2)
        await asyncio.sleep(0.05)
        assert len(sandbox.requests) == 2
        for _ in range(4):
            await anext(messages)
        await asyncio.sleep(0.02)
        assert len(sandbox.requests) == 2
        await anext(messages)
        await sandbox.wait_for_requests(3)
        await messages.aclose()


@pytest.mark.parametrize("held", [False, True])
async def test_a_list_that_is_left_early_leaves_nothing_running(sandbox, held):
    async with client_of(sandbox) as client:
        sandbox.every(2, sandbox.hold)
        if held:
            async with client.list_messages(page_size=5) as messages:
                async for _ in messages:
                    await sandbox.wait_for_requests(2)
                    break
            assert not fetching()
            with pytest.raises(StopAsyncIteration):
                await anext(messages)
        else:
            async for _ in client.list_messages(page_size=5):
                await sandbox.wait_for_requests(2)
                break
            gc.collect()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not fetching()
        sandbox.release()


async def test_a_page_that_fails_is_retried_and_one_that_failed_is_fetched_again(sandbox):
    async with client_of(sandbox, retry=AT_ONCE) as client:
        sandbox.fail_next(503, times=2)
        assert len([message async for message in client.list_messages(page_size=10)]) == 25
    async with client_of(sandbox, retry=NEVER) as client:
        messages = client.list_messages(page_size=10)
        found = [await anext(messages)]
        await messages.__anext__()  # so that the second page is under way or there
        while len(found) < 9:
            found.append(await anext(messages))
        sandbox.fail_next(503)
        failures = 0
        while True:
            try:
                found.append(await anext(messages))
            except StopAsyncIteration:
                break
            except ApiError:
                failures += 1
        assert (len(found), failures) == (24, 1)


async def test_a_reader_that_is_cancelled_leaves_the_page_to_the_next(sandbox):
    async with client_of(sandbox) as client:
        messages = client.list_messages(page_size=5)
        async with sandbox.holding():
            reading = asyncio.create_task(anext(messages))
            await sandbox.wait_for_requests(1)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert len([message async for message in messages]) == 25
        assert len(sandbox.requests) == 5


async def test_two_readers_of_one_list_get_each_message_once(sandbox):
    async with client_of(sandbox) as client:
        messages = client.list_messages(page_size=4)

        async def read():
            found = []
            async for message in messages:
                found.append(message.id)
                await asyncio.sleep(0)
            return found

        one, other = await asyncio.gather(read(), read())
        assert sorted(one + other) == [f"m{number:02}" for number in range(25)]


async def test_closing_the_list_ends_whoever_waits_for_it(sandbox):
    async with client_of(sandbox) as client:
        messages = client.list_messages()
        async with sandbox.holding():
            reading = asyncio.create_task(anext(messages))
            await sandbox.wait_for_requests(1)
            await messages.aclose()
            await messages.aclose()
            with pytest.raises(StopAsyncIteration):
                await reading


async def test_closing_the_client_ends_the_list(sandbox):
    client = client_of(sandbox)
    messages = client.list_messages(page_size=5)
    await anext(messages)
    await client.close()
    with pytest.raises(ClientStateError):
        async for _ in messages:
            pass


async def test_pages_that_lead_round_in_a_circle_are_noticed():
    answers = iter(
        [page("a", token="1"), page("b", token="2"), page("c", token="1"), page("no", token="2")]
    )

    async def script(peer):
        while await peer.receive() is not None:
            await peer.send(next(answers))

    async with served(script) as (server, client):
        messages = client.list_messages()
        found = [(await anext(messages)).id for _ in range(3)]
        with pytest.raises(ResponseFormatError, match="names an earlier page") as caught:
            await anext(messages)
        with pytest.raises(StopAsyncIteration):
            await anext(messages)
        assert found == ["a", "b", "c"]
        assert caught.value.http_status == 200
        assert len(server.received) == 3


async def test_an_empty_page_is_not_the_end():
    answers = iter([page(token="1"), page("a", token="2"), page()])

    async def script(peer):
        while await peer.receive() is not None:
            await peer.send(next(answers))

    async with served(script) as (server, client):
        assert [message.id async for message in client.list_messages()] == ["a"]
        assert len(server.received) == 3


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"page_size": 0}, "page_size"),
        ({"page_size": 1001}, "page_size"),
        ({"channel": "PIGEON"}, "channel"),
        ({"view": "FROM_ABOVE"}, "view"),
        ({"conversation_id": 7}, "conversation_id"),
    ],
)
async def test_filters_are_checked_before_anything_is_sent(sandbox, options, problem):
    async with client_of(sandbox) as client:
        with pytest.raises(InvalidArgumentError, match=problem):
            client.list_messages(**options)


async def test_the_list_can_be_the_input_of_a_job(sandbox):
    async with client_of(sandbox) as client:
        outcomes = client.transform_many(
            client.list_messages(page_size=7), lambda message: message.metadata + "!"
        )
        assert [outcome.ok async for outcome in outcomes] == [True] * 25
        assert {
            message.metadata for message in [message async for message in client.list_messages()]
        } == {f"{number}!" for number in range(25)}
        assert (
            sum(request.method == "GET" for request in sandbox.requests) == 4 + 1
        )  # no message was read twice


def test_a_list_belongs_to_its_event_loop():
    async def begin():
        async with Sandbox() as sandbox:
            sandbox.add_message(ID, metadata="")
            sandbox.add_message("other", metadata="")
            client = client_of(sandbox)
            messages = client.list_messages(page_size=1)
            await anext(messages)
            await client.close()
            return messages

    async def go_on(messages):
        await anext(messages)

    messages = asyncio.run(begin())
    with pytest.raises(ClientStateError, match="another event loop"):
        asyncio.run(go_on(messages))
    asyncio.run(messages.aclose())
