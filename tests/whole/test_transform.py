"""Reading many messages and changing their metadata, in one job."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import attrs
import pytest

from sinch_conv_async import (
    AuthenticationError,
    ConversationMessage,
    InvalidArgumentError,
    MetadataUpdate,
    NotFoundError,
    NotUpdated,
    PermissionDeniedError,
    RetryPolicy,
    ServerError,
    TransportError,
    Unchanged,
    Updated,
    merge_json,
)
from sinch_conv_async.sandbox import Sandbox
from tests.servers import client_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

QUICK = RetryPolicy(base_delay=0.001)


@pytest.fixture
async def sandbox():
    async with Sandbox(token_rate=None) as sandbox:
        for number in range(100):
            sandbox.add_message(f"m{number}", metadata=f'{{"number":{number}}}')
        yield sandbox


@pytest.fixture
async def client(sandbox):
    async with client_of(sandbox, retry=QUICK, rate_limit=None) as client:
        yield client


async def until(condition) -> None:
    """Lets the loop turn until it is so; the run's own time limit ends one that never is."""
    while not condition():
        await asyncio.sleep(0.001)


def tagged(message: ConversationMessage) -> str:
    return merge_json(message, {"tag": "x"})


async def collect(job) -> dict[str, Updated | NotUpdated | Unchanged]:
    return {outcome.update.message_id: outcome async for outcome in job}


def sent(sandbox, method: str) -> list[str]:
    return [request.message_id for request in sandbox.requests if request.method == method]


# What comes in, what comes out


async def test_each_message_is_read_transformed_and_updated(client, sandbox):
    ids = [f"m{number}" for number in range(100)]
    sandbox.hold()
    reading = asyncio.create_task(collect(client.transform_many(ids, tagged, concurrency=10)))
    await sandbox.wait_for_requests(10)
    sandbox.release()
    outcomes = await reading
    assert sorted(outcomes) == sorted(ids)
    for number, message_id in enumerate(ids):
        outcome = outcomes[message_id]
        assert isinstance(outcome, Updated)
        assert json.loads(outcome.message.metadata) == {"number": number, "tag": "x"}
        assert outcome.update == MetadataUpdate(message_id, outcome.message.metadata)
        assert outcome.attempts == 2
        assert sandbox.messages[message_id].metadata == outcome.message.metadata
    assert sandbox.peak_in_flight == 10


@pytest.mark.parametrize("answer", [None, '{"number":1}'])
async def test_what_stays_as_it_is_is_unchanged_and_nothing_is_sent(client, sandbox, answer):
    outcomes = await collect(client.transform_many(["m1"], lambda message: answer))
    outcome = outcomes["m1"]
    assert isinstance(outcome, Unchanged)
    assert outcome.ok is True
    assert outcome.error is None
    assert outcome.message.id == "m1"
    assert outcome.update == MetadataUpdate("m1", '{"number":1}')
    assert outcome.attempts == 1
    assert sent(sandbox, "PATCH") == []


async def test_a_missing_metadata_is_an_empty_one(client, sandbox):
    messages = [ConversationMessage("m1"), ConversationMessage("m2", metadata="")]
    outcomes = await collect(client.transform_many(messages, lambda message: ""))
    assert [type(outcome) for outcome in outcomes.values()] == [Unchanged, Unchanged]
    assert sandbox.requests == []


async def test_a_message_is_not_read_again(client, sandbox):
    messages = [ConversationMessage(f"m{number}", metadata="{}") for number in range(5)]
    outcomes = await collect(client.transform_many(messages, tagged))
    assert all(
        isinstance(outcome, Updated) and outcome.attempts == 1 for outcome in outcomes.values()
    )
    assert sent(sandbox, "GET") == []
    assert {sandbox.messages[f"m{number}"].metadata for number in range(5)} == {'{"tag":"x"}'}


async def test_transform_may_be_asynchronous_and_slow(client, sandbox):
    running = most = 0

    async def slow(message: ConversationMessage) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return tagged(message)

    outcomes = await collect(
        client.transform_many([f"m{number}" for number in range(40)], slow, concurrency=8)
    )
    assert all(isinstance(outcome, Updated) for outcome in outcomes.values())
    assert most == 8


async def test_an_asynchronous_input_of_ids_and_messages_may_be_mixed(client, sandbox):
    async def messages() -> AsyncIterator[str | ConversationMessage]:
        yield "m1"
        await asyncio.sleep(0)
        yield ConversationMessage("m2", metadata="{}")

    outcomes = await collect(client.transform_many(messages(), tagged))
    assert {message_id: outcome.attempts for message_id, outcome in outcomes.items()} == {
        "m1": 2,
        "m2": 1,
    }


async def test_the_source_is_where_messages_are_read_and_written(client, sandbox):
    await collect(client.transform_many(["m1"], tagged, messages_source="CONVERSATION_SOURCE"))
    assert [request.messages_source for request in sandbox.requests] == ["CONVERSATION_SOURCE"] * 2


# What fails


async def test_a_failed_read_is_an_outcome(client, sandbox):
    sandbox.fail_next(403, message_id="m2")
    called = []

    def transform(message: ConversationMessage) -> str:
        called.append(message.id)
        return tagged(message)

    outcomes = await collect(client.transform_many(["m1", "unknown", "m2", "../m3"], transform))
    assert isinstance(outcomes["unknown"].error, NotFoundError)
    assert outcomes["unknown"].attempts == 1
    assert outcomes["unknown"].update == MetadataUpdate("unknown", None)
    assert outcomes["m2"].error.http_status == 403
    assert isinstance(outcomes["../m3"].error, InvalidArgumentError)
    assert outcomes["../m3"].attempts == 0
    assert outcomes["m1"].ok
    assert called == ["m1"]


async def test_a_failed_update_is_an_outcome_and_the_read_is_counted_too(client, sandbox):
    sandbox.fail_next(503, times=2, message_id="m1")
    messages = [ConversationMessage("gone", metadata="{}"), "m1"]
    outcomes = await collect(client.transform_many(messages, tagged))
    assert isinstance(outcomes["gone"].error, NotFoundError)
    assert outcomes["gone"].update.metadata == '{"tag":"x"}'
    assert outcomes["m1"].ok
    assert outcomes["m1"].attempts == 4


@pytest.mark.parametrize("reading", [True, False])
async def test_the_limit_is_checked_before_anything_is_sent(client, sandbox, reading):
    given = "m1" if reading else ConversationMessage("m1", metadata="{}")
    outcomes = await collect(client.transform_many([given], lambda message: "x" * 1025))
    outcome = outcomes["m1"]
    assert isinstance(outcome.error, InvalidArgumentError)
    assert "1,024" in str(outcome.error)
    assert outcome.attempts == int(reading)
    assert sent(sandbox, "PATCH") == []


async def test_a_message_that_cannot_be_merged_into_is_an_outcome(client, sandbox):
    sandbox.add_message("text", metadata="plain text")
    outcomes = await collect(client.transform_many(["text", "m1"], tagged))
    assert isinstance(outcomes["text"].error, InvalidArgumentError)
    assert outcomes["text"].attempts == 1
    assert outcomes["m1"].ok


async def test_a_message_without_an_id_is_an_outcome(client, sandbox):
    (outcome,) = [
        o async for o in client.transform_many([ConversationMessage(metadata="{}")], tagged)
    ]
    assert isinstance(outcome.error, InvalidArgumentError)
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "raised", [LookupError("row"), StopAsyncIteration(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_an_exception_of_transform_ends_the_job_after_the_outcomes_so_far(
    client, sandbox, raised, asynchronous
):
    def transform(message: ConversationMessage) -> str:
        if message.id == "m30":
            raise raised
        return tagged(message)

    async def later(message: ConversationMessage) -> str:
        await asyncio.sleep(0)
        return transform(message)

    done = []
    ids = [f"m{number}" for number in range(100)]
    expected = RuntimeError if isinstance(raised, StopAsyncIteration) else type(raised)

    async def read() -> None:
        async for outcome in client.transform_many(
            ids, later if asynchronous else transform, concurrency=4
        ):
            done.append(outcome)  # noqa: PERF401  # one by one: what came before the error counts

    with pytest.raises(expected):
        await read()
    assert 26 <= len(done) < 50
    assert all(outcome.ok for outcome in done)
    assert not [task for task in asyncio.all_tasks() if "sinch_conv_async bulk" in task.get_name()]


async def test_a_result_that_is_no_text_ends_the_job(client, sandbox):
    with pytest.raises(
        TypeError, match="transform must return the metadata as text, or None, not dict"
    ):
        await collect(client.transform_many(["m1"], lambda message: {"tag": "x"}))
    assert sent(sandbox, "PATCH") == []


async def test_a_stray_item_is_named_by_its_position(client):
    for stray in (("m1", "x"), 7, MetadataUpdate("m1", "x")):
        with pytest.raises(InvalidArgumentError) as caught:
            await collect(client.transform_many(["m1", stray], tagged))
        assert str(caught.value).startswith(
            "item 2 of the input (index 1) must be a message id or a Conv"
        )


async def test_what_cannot_be_right_is_refused_at_once(client):
    with pytest.raises(InvalidArgumentError, match="not one text"):
        client.transform_many("m1", tagged)
    with pytest.raises(InvalidArgumentError, match="messages must be an iterable"):
        client.transform_many(7, tagged)
    with pytest.raises(InvalidArgumentError, match="transform must be a function"):
        client.transform_many([], None)
    with pytest.raises(InvalidArgumentError, match="concurrency"):
        client.transform_many([], tagged, concurrency=0)
    with pytest.raises(InvalidArgumentError, match="max_outage"):
        client.transform_many([], tagged, max_outage=-1)


# Order, outages, leaving


async def test_two_entries_of_one_id_keep_their_order(client, sandbox):
    sandbox.add_message("count", metadata="0")
    sandbox.fail_next(503, times=3, message_id="count")
    job = client.transform_many(
        ["count", "m1", "count", "COUNT"],
        lambda message: str(int(message.metadata) + 1) if message.id == "count" else None,
    )
    outcomes = [outcome async for outcome in job if outcome.update.message_id != "m1"]
    assert [outcome.update.metadata for outcome in outcomes[:2]] == ["1", "2"]
    assert [request.message_id for request in sandbox.requests][-1] in {"COUNT", "count"}


async def test_an_outage_is_waited_out_by_reads_and_updates(client, sandbox):
    ids = [f"m{number}" for number in range(60)]
    job = client.transform_many(ids, tagged, concurrency=8)
    outcomes = [await anext(job)]
    await sandbox.close()
    reading = asyncio.create_task(collect(job))
    await until(lambda: job.in_outage)
    assert isinstance(job.outage_error, TransportError)
    await sandbox.start()
    rest = await reading
    assert job.outage_error is None
    assert len(rest) + len(outcomes) == 60
    assert all(outcome.ok for outcome in rest.values())


async def test_a_read_may_be_repeated_even_if_updates_may_not(sandbox):
    sandbox.drop_next(applied=True, message_id="m1")
    retry = RetryPolicy(base_delay=0.001, retry_maybe_sent=False)
    async with client_of(sandbox, retry=retry, rate_limit=None) as client:
        outcomes = await collect(client.transform_many(["m1", "m2"], tagged))
    assert all(isinstance(outcome, Updated) for outcome in outcomes.values())


async def test_one_id_that_is_never_read_is_one_failed_outcome(client, sandbox):
    sandbox.fail_next(500, times=1_000_000, message_id="m5")
    ids = [f"m{number}" for number in range(60)]
    outcomes = await collect(client.transform_many(ids, tagged, concurrency=4))
    assert [name for name, outcome in outcomes.items() if not outcome.ok] == ["m5"]
    assert isinstance(outcomes["m5"].error, ServerError)


async def test_a_final_401_ends_the_job(client, sandbox):
    sandbox.refuse_tokens()
    with pytest.raises(AuthenticationError):
        await collect(client.transform_many(["m1"], tagged))


async def test_leaving_cancels_a_transform_and_waits_for_its_end(client, sandbox):
    ended = []

    async def endless(message: ConversationMessage) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(message.id)
        raise AssertionError

    async with client.transform_many(["m1"], endless) as outcomes:
        asking = asyncio.ensure_future(anext(outcomes))
        await sandbox.wait_for_requests(1)
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.wait([asking])
    assert ended == ["m1"]


async def test_stop_reading_lets_a_message_that_was_read_be_updated(client, sandbox):
    going = asyncio.Event()

    async def slow(message: ConversationMessage) -> str:
        await going.wait()
        return tagged(message)

    def ids() -> Iterator[str]:
        for number in range(100):
            yield f"m{number}"

    job = client.transform_many(ids(), slow, concurrency=3)
    reading = asyncio.create_task(collect(job))
    await until(lambda: len(sent(sandbox, "GET")) == 3 and sandbox.in_flight == 0)
    await asyncio.sleep(0.01)
    job.stop_reading()
    going.set()
    outcomes = await reading
    assert len(outcomes) == 3
    assert all(isinstance(outcome, Updated) for outcome in outcomes.values())


# Records with a change of their own


@attrs.frozen(kw_only=True)
class Numbered(MetadataUpdate):
    """A record that knows its own change."""

    number: int

    def changed(self, message: ConversationMessage) -> str | None:
        return merge_json(message, {"row": self.number}) if self.number else None


async def test_an_item_may_bring_its_own_change_and_its_outcome_leads_back_to_it(client, sandbox):
    records = [Numbered(f"m{number}", "change", number=number) for number in range(3)]
    records.append(Numbered("unknown", "change", number=9))
    outcomes = await collect(client.transform_many(records, tagged))
    assert {message_id: outcome.update.number for message_id, outcome in outcomes.items()} == {
        "m0": 0,
        "m1": 1,
        "m2": 2,
        "unknown": 9,
    }
    assert isinstance(outcomes["m0"], Unchanged)
    assert outcomes["m1"].update.metadata == '{"number":1,"row":1}'
    assert outcomes["unknown"].update is records[3]


# A list of messages as the input


async def test_a_list_of_messages_is_transformed_and_only_updates_are_sent(client, sandbox):
    job = client.transform_many(client.list_messages(page_size=7), tagged, concurrency=4)
    outcomes = await collect(job)
    assert len(outcomes) == 100
    assert all(
        isinstance(outcome, Updated) and outcome.attempts == 1 for outcome in outcomes.values()
    )
    assert all(json.loads(message.metadata)["tag"] == "x" for message in sandbox.messages.values())


async def test_a_job_that_is_left_has_closed_its_list(client, sandbox):
    messages = client.list_messages(page_size=7)
    async with client.transform_many(messages, tagged, concurrency=4) as outcomes:
        await anext(outcomes)
    assert "at its end" in repr(messages)


async def test_an_outage_is_waited_out_by_the_list_too(client, sandbox, monkeypatch):
    monkeypatch.setattr("sinch_conv_async._bulk.outage.PROBE_DELAYS", (0.01,))
    job = client.transform_many(client.list_messages(page_size=7), tagged, concurrency=4)
    outcomes = [await anext(job)]
    await sandbox.close()
    reading = asyncio.create_task(collect(job))
    await until(lambda: job.in_outage)
    await asyncio.sleep(0.3)  # the list fails, too
    await sandbox.start()
    assert len(outcomes) + len(await reading) == 100


async def test_a_list_that_fails_for_too_long_ends_the_job(client, sandbox, monkeypatch):
    monkeypatch.setattr("sinch_conv_async._bulk.outage.PROBE_DELAYS", (0.01,))
    await client.authenticate()
    await sandbox.close()
    with pytest.raises(TransportError):
        await collect(client.transform_many(client.list_messages(), tagged, max_outage=0.1))


async def test_a_list_that_is_refused_ends_the_job_at_once(client, sandbox):
    sandbox.fail_next(403, times=1_000)
    with pytest.raises(PermissionDeniedError):
        await collect(client.transform_many(client.list_messages(), tagged))
    assert len(sandbox.requests) == 1
