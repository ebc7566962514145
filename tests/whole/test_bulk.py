"""A bulk job: one outcome for each update; what it reads, sends, waits for and closes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import sys
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import pytest

from sinch_conv_async import (
    AuthenticationError,
    CallTimeoutError,
    ClientStateError,
    ConversationClient,
    InvalidArgumentError,
    MessagesSource,
    MetadataUpdate,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    RetryPolicy,
    ServerError,
    SessionManager,
    TokenError,
    TransportError,
    Updated,
    UpdateOutcome,
)
from sinch_conv_async._bulk import outage as outage_module
from sinch_conv_async._core.send import Sender
from sinch_conv_async.sandbox import Sandbox
from tests.servers import AT_ONCE, NEVER, Time, client_of, stats_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

USUAL_DELAYS = outage_module.PROBE_DELAYS
QUICK = RetryPolicy(base_delay=0.001)


class Input:
    """Updates that count how many of them have been read."""

    def __init__(self, length: int | None = None) -> None:
        self.length = length
        self.read = 0
        self.done = False

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for number in itertools.count() if self.length is None else range(self.length):
            self.read += 1
            yield f"m{number}", f"metadata {number}"
        self.done = True


class Feed:
    """An input that gives an update when a test says so, and raises what a test says."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[object] = asyncio.Queue()
        self.asked = 0

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> MetadataUpdate:
        self.asked += 1
        item = await self.queue.get()
        if isinstance(item, BaseException):
            raise item
        return item  # type: ignore[return-value]  # a test may put anything in

    def put(self, *items: object) -> None:
        for item in items:
            self.queue.put_nowait(item)


def update(number: int, metadata: str = "new") -> MetadataUpdate:
    return MetadataUpdate(f"m{number}", metadata)


@pytest.fixture
async def client(sandbox):
    async with client_of(sandbox, retry=QUICK, rate_limit=None) as client:
        yield client


@pytest.fixture
def quick_probes(monkeypatch):
    monkeypatch.setattr(outage_module, "PROBE_DELAYS", (0.001, 0.002, 0.005))


async def collect(outcomes, done) -> None:
    async for outcome in outcomes:
        done.append(outcome)  # one by one: what came before an error counts


async def until(condition) -> None:
    """Lets the loop turn until it is so; the run's own time limit ends one that never is."""
    while not condition():
        await asyncio.sleep(0.001)


async def turns(number: int = 50) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def failed_requests(sandbox) -> int:
    return sum((request.status or 0) >= 500 for request in sandbox.requests)


async def first_probe_to_come(outcomes, sandbox, concurrency: int) -> None:
    """Until each of so many updates has used up its retries, and they wait for the first probe.

    The requests of each message are counted: probes of one update may fail while another update
    still retries.
    """

    def used_up() -> int:
        failed = Counter(each.message_id for each in sandbox.requests if (each.status or 0) >= 500)
        return sum(number > QUICK.max_retries for number in failed.values())

    await until(lambda: used_up() >= concurrency)
    await turns()
    assert outcomes.in_outage
    assert sandbox.in_flight == 0


def workers() -> int:
    return sum(task.get_name().startswith("sinch_conv_async bulk") for task in asyncio.all_tasks())


# What comes in, what comes out


async def test_there_is_one_outcome_for_each_update(client, sandbox):
    outcomes = [outcome async for outcome in client.update_many(Input(500), concurrency=20)]
    assert sorted(outcome.update.message_id for outcome in outcomes) == sorted(
        f"m{n}" for n in range(500)
    )
    assert all(outcome.ok and outcome.attempts == 1 for outcome in outcomes)
    assert {outcome.message.metadata for outcome in outcomes} == {
        f"metadata {n}" for n in range(500)
    }
    assert sandbox.updates_applied == 500


async def test_concurrency_is_the_managers_connections_unless_given(sandbox):
    async with (
        SessionManager(max_connections=3) as manager,
        client_of(sandbox, session_manager=manager) as client,
    ):
        sandbox.hold()
        updates, done = Input(30), []
        job = asyncio.create_task(collect(client.update_many(updates), done))
        await sandbox.wait_for_requests(3)
        assert updates.read == 3
        sandbox.release()
        await job
    assert len(done) == 30
    assert sandbox.peak_in_flight == 3


@pytest.mark.parametrize("concurrency", [1, 2, 7])
async def test_so_many_exchanges_at_a_time_and_no_more(client, sandbox, concurrency):
    sandbox.hold()
    done = []
    job = asyncio.create_task(collect(client.update_many(Input(40), concurrency=concurrency), done))
    await sandbox.wait_for_requests(concurrency)
    sandbox.release()
    await job
    assert len(done) == 40
    assert sandbox.peak_in_flight == concurrency


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_an_empty_input_has_no_outcome(client, sandbox, concurrency):
    assert [outcome async for outcome in client.update_many([], concurrency=concurrency)] == []
    assert sandbox.token_requests == []


async def test_updates_and_pairs_may_be_mixed_and_the_source_is_sent(client, sandbox):
    updates = [MetadataUpdate("m1", "a", MessagesSource.DISPATCH_SOURCE), ("m2", "b")]
    outcomes = [outcome async for outcome in client.update_many(updates)]
    assert {outcome.update.message_id: outcome.update for outcome in outcomes} == {
        "m1": updates[0],
        "m2": MetadataUpdate("m2", "b"),
    }
    assert {request.message_id: request.messages_source for request in sandbox.requests} == {
        "m1": "DISPATCH_SOURCE",
        "m2": None,
    }


async def test_messages_are_an_input_and_their_metadata_is_written(client, sandbox):
    async def closed():
        async for message in client.list_messages(page_size=2):
            yield attrs.evolve(message, metadata="closed")

    for number in range(5):
        sandbox.add_message(f"m{number}", metadata="open")
    outcomes = [outcome async for outcome in client.update_many(closed())]
    assert len(outcomes) == 5
    assert all(isinstance(outcome, Updated) for outcome in outcomes)
    assert {message.metadata for message in sandbox.messages.values()} == {"closed"}


async def test_a_list_is_an_input_and_a_message_without_metadata_wipes_nothing(client, sandbox):
    sandbox.add_message("m1", metadata="kept")
    whole = client.update_many(client.list_messages())
    assert "kept" in [outcome.message.metadata async for outcome in whole]
    bare = client.update_many(client.list_messages(view="WITHOUT_METADATA"))
    assert {type(outcome.error) async for outcome in bare} == {InvalidArgumentError}
    assert sandbox.messages["m1"].metadata == "kept"


async def test_an_asynchronous_generator_is_an_input(client):
    async def updates() -> AsyncIterator[MetadataUpdate]:
        for number in range(30):
            await asyncio.sleep(0)
            yield update(number)

    assert len([outcome async for outcome in client.update_many(updates(), concurrency=4)]) == 30


async def test_outcomes_stream_as_they_finish(client, sandbox):
    """In order of completion: the first update is answered last."""
    sandbox.delay_next(0.2, message_id="m0")
    ids = [
        outcome.update.message_id async for outcome in client.update_many(Input(20), concurrency=4)
    ]
    assert ids[-1] == "m0"


async def test_an_input_that_has_nothing_yet_keeps_no_outcome_back(client):
    feed = Feed()
    feed.put(update(1))
    async with client.update_many(feed) as outcomes:
        first = await anext(outcomes)
        assert first.update.message_id == "m1"
        feed.put(update(2), update(3), StopAsyncIteration())
        assert sorted([outcome.update.message_id async for outcome in outcomes]) == ["m2", "m3"]


async def test_invalid_updates_are_failed_outcomes_and_nothing_is_sent_for_them(client, sandbox):
    updates = [
        ("m1", "good"),
        ("../m2", "bad id"),
        ("m3", "x" * 1025),
        MetadataUpdate("m4", "source", "ELSEWHERE"),
        (5, "no text"),
        ("m6", None),
        ("m7", "good"),
    ]
    outcomes = [outcome async for outcome in client.update_many(updates)]
    failed = {outcome.update.message_id for outcome in outcomes if not outcome.ok}
    assert failed == {"../m2", "m3", "m4", 5, "m6"}
    for outcome in outcomes:
        assert outcome.ok or (
            isinstance(outcome.error, InvalidArgumentError) and outcome.attempts == 0
        )
    assert {request.message_id for request in sandbox.requests} == {"m1", "m7"}


async def test_errors_of_single_updates_are_outcomes(client, sandbox):
    sandbox.fail_next(403, message_id="m1")
    sandbox.fail_next(404, message_id="m2")
    sandbox.fail_next(501, message_id="m3")
    outcomes = {
        outcome.update.message_id: outcome async for outcome in client.update_many(Input(6))
    }
    assert isinstance(outcomes["m1"].error, PermissionDeniedError)
    assert isinstance(outcomes["m2"].error, NotFoundError)
    assert isinstance(outcomes["m3"].error, ServerError)
    assert sum(outcome.ok for outcome in outcomes.values()) == 3


async def test_what_is_tried_again_is_counted_as_attempts(client, sandbox):
    sandbox.fail_next(503, times=2, message_id="m1")
    outcomes = {
        outcome.update.message_id: outcome async for outcome in client.update_many(Input(3))
    }
    assert outcomes["m1"].ok
    assert outcomes["m1"].attempts == 3


# Reading


@pytest.mark.parametrize("concurrency", [1, 2, 10])
async def test_no_more_is_read_than_there_are_places_for(client, concurrency):
    """What is held: under way, or finished and not read. Asking for the next outcome gives the last
    one's place free.
    """
    updates = Input()
    async with client.update_many(updates, concurrency=concurrency) as outcomes:
        assert updates.read == 0, "nothing is read before the first outcome is asked for"
        for taken in range(1, 50):
            await anext(outcomes)
            await turns()
            assert updates.read <= concurrency + taken - 1
    read = updates.read
    await turns()
    assert updates.read == read


async def test_a_generator_that_never_ends_is_an_input(client):
    async with client.update_many(Input(), concurrency=5) as outcomes:
        async for outcome in outcomes:
            assert outcome.ok
            if outcome.update.message_id == "m300":
                break


async def test_there_is_never_a_task_for_each_item(client):
    most = 0
    async for _ in client.update_many(Input(300), concurrency=8):
        most = max(most, workers())
    assert most == 8


async def test_an_input_that_raises_midway_is_raised_after_the_outcomes_so_far(client, sandbox):
    def updates():
        yield from Input(10)
        raise LookupError("row 11")

    done = []
    with pytest.raises(LookupError, match="row 11"):
        await collect(client.update_many(updates(), concurrency=3), done)
    assert len(done) == 10
    assert all(outcome.ok for outcome in done)
    assert sandbox.updates_applied == 10


async def test_nothing_is_read_after_the_input_raised(client):
    """An iterator, unlike a generator, could go on."""
    feed = Feed()
    feed.put(update(1), update(2), update(3))
    outcomes = client.update_many(feed, concurrency=4)
    done = [await anext(outcomes) for _ in range(3)]
    asking = asyncio.ensure_future(anext(outcomes))
    await turns()
    asked = feed.asked
    feed.put(LookupError("bad row"), update(4))
    with pytest.raises(LookupError):
        await asking
    assert feed.asked == asked
    assert [outcome.ok for outcome in done] == [True] * 3
    assert workers() == 0


@pytest.mark.parametrize(
    ("stray", "what"), [("m2", "not str"), ({"id": "m2"}, "not dict"), (("m2",), "not tuple of 1")]
)
async def test_what_is_no_update_ends_the_job_and_is_named_by_its_position(client, stray, what):
    done = []
    with pytest.raises(InvalidArgumentError) as caught:
        await collect(client.update_many([("m1", "x"), stray, ("m3", "x")], concurrency=1), done)
    assert str(caught.value) == (
        "item 2 of the input (index 1) must be a MetadataUpdate, a pair of message id and metadata, "
        f"or a ConversationMessage, {what}"
    )
    assert len(done) == 1


def test_a_job_belongs_to_the_event_loop_that_it_began_on():
    async def begin(sandbox):
        async with sandbox, client_of(sandbox) as client:
            outcomes = client.update_many(Input())
            await anext(outcomes)

            async def elsewhere():
                await anext(outcomes)

            with pytest.raises(ClientStateError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, elsewhere())
            with pytest.raises(ClientStateError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, outcomes.aclose())
            await anext(outcomes)
            await outcomes.aclose()

    asyncio.run(begin(Sandbox(auto_create=True)))


async def test_the_error_of_an_outcome_holds_no_frames(client, sandbox):
    sandbox.fail_next(404)
    (outcome,) = [outcome async for outcome in client.update_many([("m1", "x")])]
    assert isinstance(outcome.error, NotFoundError)
    assert outcome.error.__traceback__ is None


class Cleaned:
    """Generators whose cleanup takes a while, and a note of which are closed."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.closed: list[str] = []

    def plain(self) -> Iterator[tuple[str, str]]:
        try:
            yield from Input()
        finally:
            self.closed.append("plain")

    async def asynchronous(self) -> AsyncIterator[tuple[str, str]]:
        try:
            for item in Input():
                yield item
        finally:
            await turns()
            self.closed.append("asynchronous")
            if self.error is not None:
                raise self.error

    async def waiting(self) -> AsyncIterator[tuple[str, str]]:
        """Gives one update, and has no more to give."""
        try:
            yield "m1", "x"
            await asyncio.Event().wait()
        finally:
            await turns()
            self.closed.append("waiting")


@pytest.mark.parametrize("kind", ["plain", "asynchronous", "waiting"])
async def test_a_job_that_is_left_has_closed_its_input(client, kind):
    """Also one that the caller holds: what the job has read of it ahead is gone."""
    inputs = Cleaned()
    source = getattr(inputs, kind)()
    async with client.update_many(source, concurrency=3) as outcomes:
        await anext(outcomes)
    assert inputs.closed == [kind]


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_a_job_that_is_left_before_it_began_has_closed_its_input(client, kind):
    inputs = Cleaned()
    source = getattr(inputs, kind)()
    async with client.update_many(source):
        if kind == "plain":
            next(source)
        else:
            await anext(source)
    assert inputs.closed == [kind]


async def test_a_job_that_ends_has_closed_its_input_first(client, sandbox):
    for ended_by in ("stop_reading", "an error"):
        inputs = Cleaned()
        outcomes = client.update_many(inputs.asynchronous(), concurrency=2)
        await anext(outcomes)
        if ended_by == "stop_reading":
            outcomes.stop_reading()
            await collect(outcomes, [])
        else:
            sandbox.refuse_tokens()
            with pytest.raises(AuthenticationError):
                await collect(outcomes, [])
        assert inputs.closed == ["asynchronous"], ended_by


async def test_the_inputs_cleanup_is_not_cut_by_whoever_closes_as_well(client):
    """A second cancellation would end its cleanup in the middle."""
    inputs = Cleaned()
    outcomes = client.update_many(inputs.waiting(), concurrency=3)
    await anext(outcomes)
    await turns(3)
    outcomes.stop_reading()
    await asyncio.sleep(0)
    first = asyncio.create_task(outcomes.aclose())
    await asyncio.sleep(0)
    first.cancel()
    await outcomes.aclose()
    assert inputs.closed == ["waiting"]
    assert workers() == 0


async def test_an_error_of_the_inputs_cleanup_is_raised(client):
    outcomes = client.update_many(Cleaned(LookupError("cleanup")).asynchronous(), concurrency=2)
    await anext(outcomes)
    with pytest.raises(LookupError, match="cleanup"):
        await outcomes.aclose()
    await outcomes.aclose()
    stopped = client.update_many(Cleaned(LookupError("cleanup")).asynchronous(), concurrency=2)
    await anext(stopped)
    stopped.stop_reading()
    with pytest.raises(LookupError, match="cleanup"):
        await collect(stopped, [])


async def test_an_iterator_that_can_be_closed_is_and_a_file_is_left_open(client, tmp_path):
    class Pages(Feed):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    pages = Pages()
    pages.put(update(1))
    async with client.update_many(pages) as outcomes:
        await anext(outcomes)
    assert pages.closed

    path = tmp_path / "rows"
    path.write_text("ab\n")
    with path.open() as file:
        with pytest.raises(InvalidArgumentError, match="not str"):
            await anext(client.update_many(file))
        assert not file.closed


async def test_a_pair_may_be_a_list_as_a_csv_readers_rows_are(client):
    outcomes = [outcome async for outcome in client.update_many([["m1", "x"], ["m2", "y"]])]
    assert [(outcome.ok, outcome.update.metadata) for outcome in outcomes] == [
        (True, "x"),
        (True, "y"),
    ]
    with pytest.raises(InvalidArgumentError, match="not list of 3"):
        await anext(client.update_many([["m1", "x", "CONVERSATION_SOURCE"]]))


async def test_an_input_that_raises_stop_async_iteration_does_not_look_like_one_that_ended(client):
    def updates():
        yield "m1", "x"
        raise StopAsyncIteration

    done = []
    with pytest.raises(RuntimeError, match="the input raised StopAsyncIteration"):
        await collect(client.update_many(updates()), done)
    assert len(done) == 1


async def test_an_input_that_is_cancelled_does_not_look_like_one_that_ended(client):
    feed = Feed()
    feed.put(update(1), asyncio.CancelledError(), update(2))
    done = []
    with pytest.raises(asyncio.CancelledError):
        await collect(client.update_many(feed, concurrency=3), done)
    assert [outcome.update.message_id for outcome in done] == ["m1"]
    assert workers() == 0


async def test_the_error_is_raised_once_and_then_the_iteration_is_over(client):
    feed = Feed()
    feed.put(LookupError())
    outcomes = client.update_many(feed)
    with pytest.raises(LookupError):
        await anext(outcomes)
    with pytest.raises(StopAsyncIteration):
        await anext(outcomes)


# The order of one id


async def test_updates_of_one_id_keep_their_order_also_while_the_first_is_tried_again(
    client, sandbox
):
    sandbox.fail_next(503, times=3, message_id="same")
    updates = [("same", "first"), ("other", "x"), ("same", "second"), ("same", "third")]
    outcomes = [outcome async for outcome in client.update_many(updates)]
    assert [
        outcome.update.metadata for outcome in outcomes if outcome.update.message_id == "same"
    ] == [
        "first",
        "second",
        "third",
    ]
    sent = [request.metadata for request in sandbox.requests if request.message_id == "same"]
    assert sent == ["first"] * 4 + ["second", "third"]
    assert sandbox.messages["same"].metadata == "third"


async def test_ids_that_differ_only_in_case_are_one_message(client, sandbox):
    sandbox.delay_next(0.05, message_id="same")
    updates = [("same", "first"), ("SAME", "second")]
    outcomes = [outcome async for outcome in client.update_many(updates)]
    assert [outcome.update.metadata for outcome in outcomes] == ["first", "second"]


async def test_a_failed_first_does_not_keep_the_second_from_being_sent(client, sandbox):
    sandbox.fail_next(404, message_id="same")
    outcomes = [
        outcome async for outcome in client.update_many([("same", "first"), ("same", "second")])
    ]
    assert [outcome.ok for outcome in outcomes] == [False, True]


@pytest.mark.parametrize("concurrency", [1, 2, 4])
async def test_more_updates_of_one_id_than_there_are_places(client, sandbox, concurrency):
    updates = (
        [("same", str(number)) for number in range(20)] + [("other", "x")] + [("same", "last")]
    )
    outcomes = [outcome async for outcome in client.update_many(updates, concurrency=concurrency)]
    assert len(outcomes) == 22
    same = [request.metadata for request in sandbox.requests if request.message_id == "same"]
    assert same == [*map(str, range(20)), "last"]


async def test_shuffled_ids_keep_their_order_under_faults(client, sandbox, quick_probes):
    sandbox.fail_next(503, times=30)
    updates = [(f"m{number * 7 % 5}", str(number)) for number in range(100)]
    outcomes = [outcome async for outcome in client.update_many(updates, concurrency=9)]
    assert all(outcome.ok for outcome in outcomes)
    for message_id in {message_id for message_id, _ in updates}:
        applied = [r.metadata for r in sandbox.requests if r.applied and r.message_id == message_id]
        assert applied == [metadata for name, metadata in updates if name == message_id]


# Leaving early


@pytest.mark.parametrize("concurrency", [1, 2, 6])
async def test_left_by_break_it_keeps_at_most_as_many_exchanges_and_starts_none_that_nobody_reads(
    client, sandbox, concurrency
):
    updates = Input()
    outcomes = client.update_many(updates, concurrency=concurrency)
    async for _ in outcomes:
        break
    await until(lambda: sandbox.in_flight == 0 and len(sandbox.requests) == updates.read)
    await turns()
    assert len(sandbox.requests) == concurrency
    assert updates.read == concurrency
    await outcomes.aclose()
    assert workers() == 0


async def test_a_job_that_nobody_holds_ends(client, sandbox):
    """Its tasks end, what is under way is cancelled, and the input is closed."""
    inputs = Cleaned()
    async for _ in client.update_many(inputs.asynchronous(), concurrency=5):
        sandbox.hold()
        break
    await until(lambda: not workers())
    assert inputs.closed == ["asynchronous"]
    assert stats_of(client).in_flight == 0
    sandbox.release()


async def test_a_job_that_is_let_go_of_in_another_thread_ends(client):
    held = [client.update_many(Input(), concurrency=5)]
    await anext(held[0])
    await asyncio.to_thread(held.clear)
    await until(lambda: not workers())


async def test_several_tasks_may_read_the_outcomes_of_one_job(client):
    updates = Input(200)
    outcomes = client.update_many(updates, concurrency=3)
    done: list[list[UpdateOutcome]] = [[], [], []]

    async def read(mine: list[UpdateOutcome]) -> None:
        async for outcome in outcomes:
            mine.append(outcome)
            await asyncio.sleep(0.001)

    async with asyncio.timeout(30):
        await asyncio.gather(*map(read, done))
    ids = [outcome.update.message_id for mine in done for outcome in mine]
    assert sorted(ids) == sorted(f"m{number}" for number in range(200))
    assert all(done)


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_reader_that_dies_leaves_the_rest_to_the_other(client, concurrency):
    """Its outcome has a place, and nobody comes back for more; but the other one waits already."""
    outcomes = client.update_many(Input(20), concurrency=concurrency)
    done = []

    async def die() -> None:
        async for _ in outcomes:
            raise LookupError

    readers = [asyncio.create_task(die()) for _ in range(2)]
    rest = asyncio.create_task(collect(outcomes, done))
    ended, _ = await asyncio.wait([*readers, rest], timeout=10)
    assert len(ended) == 3, "one of them hangs"
    assert all(isinstance(reader.exception(), LookupError) for reader in readers)
    assert len(done) == 18


async def test_of_several_readers_one_is_told_what_ended_the_job_and_none_hangs(client):
    feed = Feed()
    outcomes = client.update_many(feed, concurrency=3)
    readers = [asyncio.create_task(collect(outcomes, [])) for _ in range(3)]
    await turns()
    feed.put(LookupError())
    await asyncio.wait(readers, timeout=30)
    assert sorted(type(reader.exception()).__name__ for reader in readers) == [
        "LookupError",
        "NoneType",
        "NoneType",
    ]


async def test_async_with_leaves_nothing_running(client, sandbox):
    sandbox.hold()
    async with client.update_many(Input(), concurrency=5) as outcomes:
        waiting = asyncio.ensure_future(anext(outcomes))
        await sandbox.wait_for_requests(5)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert workers() == 1 + 5  # one reads
    assert workers() == 0
    assert stats_of(client).in_flight == 0
    sandbox.release()


async def test_closing_twice_and_asking_again_is_fine(client):
    outcomes = client.update_many(Input(), concurrency=3)
    await anext(outcomes)
    await outcomes.aclose()
    await outcomes.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(outcomes)


async def test_closed_before_it_began_it_reads_nothing(client):
    updates = Input()
    outcomes = client.update_many(updates)
    await outcomes.aclose()
    assert [outcome async for outcome in outcomes] == []
    assert updates.read == 0


async def test_an_error_in_the_loops_body_closes_the_job(client):
    async def job() -> None:
        async with client.update_many(Input(), concurrency=3) as outcomes:
            async for outcome in outcomes:
                assert outcome.ok
                raise LookupError

    with pytest.raises(LookupError):
        await job()
    assert workers() == 0


@pytest.mark.parametrize("moment", range(0, 60, 3))
async def test_cancelled_at_any_moment_it_leaves_nothing(client, sandbox, moment):
    sandbox.fail_next(503, times=3)

    async def job() -> None:
        async with client.update_many(Input(), concurrency=4) as outcomes:
            async for _ in outcomes:
                pass

    task = asyncio.create_task(job())
    await turns(moment)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert workers() == 0
    stats = stats_of(client)
    assert (stats.in_flight, stats.waiting) == (0, 0)


async def test_a_client_that_closes_before_the_first_update_begins_counts_no_call(client, sandbox):
    async def updates():
        yield update(1)
        await client.close()

    done = []
    with pytest.raises(ClientStateError, match="closed"):
        await collect(client.update_many(updates()), done)
    stats = stats_of(client)
    assert (done, stats.calls, dict(stats.failed), sandbox.requests) == ([], 0, {}, [])


@pytest.mark.parametrize("job", ["update_many", "transform_many"])
async def test_a_job_that_may_send_no_more_sends_nothing_more_and_says_so(client, sandbox, job):
    """A lease that ends while updates wait for their turn: none of them is sent."""
    items = [update(number) if job == "update_many" else f"ID{number}" for number in range(20)]
    more = (lambda message: "new",) if job == "transform_many" else ()
    asked = []

    def may_send() -> bool:
        asked.append(len(sandbox.requests))
        return len(asked) <= 5

    done = []
    with pytest.raises(ClientStateError, match="may send no more"):
        await collect(getattr(client, job)(items, *more, may_send=may_send), done)
    assert len(sandbox.requests) == 5
    patched = [request for request in sandbox.requests if request.method == "PATCH"]
    assert [outcome.ok for outcome in done] == [True] * len(patched)
    assert not client.closed


async def test_cancelling_one_who_asks_for_an_outcome_loses_none(client, sandbox):
    sandbox.hold()
    outcomes = client.update_many(Input(6), concurrency=2)
    for _ in range(5):
        asking = asyncio.ensure_future(anext(outcomes))
        await turns()
        asking.cancel()
        await asyncio.wait([asking])
    sandbox.release()
    assert len([outcome async for outcome in outcomes]) == 6


def test_a_job_that_is_left_when_its_event_loop_ends_ends_with_it(caplog):
    """`asyncio.run` cancels the workers; none of them hires another on its way out."""

    async def main() -> None:
        async with Sandbox(auto_create=True) as sandbox:
            client = client_of(sandbox)
            feed = Feed()
            feed.put(update(1))
            outcomes = client.update_many(feed, concurrency=5)
            await anext(outcomes)
            await turns()
            assert workers() < 5
            left.append(outcomes)

    left: list[object] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the client is not closed either
        asyncio.run(main())
        left.clear()
        gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("moment", ["input", "turn", "exchange", "probe"])
def test_an_event_loop_that_is_closed_under_a_job_is_no_error(monkeypatch, moment):
    """When the garbage collector ends its tasks, nothing of theirs needs the loop."""
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: ignored.append(found.exc_value))
    loop = asyncio.new_event_loop()
    # asyncio itself speaks of each task that was pending.
    monkeypatch.setattr(loop, "call_exception_handler", lambda context: None)

    async def begin(server: socket.socket) -> list[object]:
        host, port = server.getsockname()
        client = ConversationClient(
            project_id="project",
            key_id="key",
            key_secret="secret",
            auth="basic",
            conversation_origin=f"http://{host}:{port}",
            retry=QUICK if moment == "probe" else AT_ONCE,
        )
        if moment == "probe":
            server.close()
        job = client.update_many(Feed() if moment == "input" else Input(4), concurrency=4)
        reading = asyncio.ensure_future(collect(job, []))
        await turns(20)
        if moment == "exchange":
            await until(lambda: stats_of(client).in_flight == 4)
            await asyncio.sleep(0.05)  # and their connections are there
        elif moment == "probe":
            await until(lambda: job.in_outage)
            await turns(1000)
        return [client, job, reading]

    with socket.create_server(("127.0.0.1", 0)) as server, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # whoever closes a loop in this way leaves sockets open
        left = loop.run_until_complete(begin(server))
        loop.close()
        left.clear()
        gc.collect()
    assert ignored == []


async def test_a_job_whose_event_loop_was_closed_can_be_closed(sandbox):
    left = []

    async def begin() -> None:
        client = client_of(sandbox)
        left.extend((client, client.update_many(Feed())))
        asking = asyncio.ensure_future(anext(left[1]))
        await asyncio.sleep(0)
        asking.cancel()

    await asyncio.to_thread(asyncio.run, begin())
    client, outcomes = left
    await outcomes.aclose()
    with pytest.raises(ClientStateError, match="another event loop"):
        await anext(outcomes)
    await client.close()


async def test_an_input_that_takes_no_notice_of_the_end_is_not_sent(client, sandbox):
    asked = asyncio.Event()

    async def stubborn():
        yield update(0)
        try:
            asked.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield update(1)

    source = stubborn()
    async with client.update_many(source) as outcomes:
        await anext(outcomes)
        await asked.wait()
    await source.aclose()
    assert [request.message_id for request in sandbox.requests if request.message_id] == ["m0"]


async def test_stop_reading_finishes_what_is_under_way(client, sandbox):
    updates = Input()
    sandbox.hold()
    outcomes = client.update_many(updates, concurrency=4)
    first = asyncio.ensure_future(anext(outcomes))
    await sandbox.wait_for_requests(4)
    outcomes.stop_reading()
    assert "finishing" in repr(outcomes)
    sandbox.release()
    assert (await first).ok
    assert len([outcome async for outcome in outcomes]) == 3
    assert updates.read == 4
    assert "at rest" in repr(outcomes)


async def test_stop_reading_ends_the_wait_for_the_input(client):
    feed = Feed()
    feed.put(update(1))
    outcomes = client.update_many(feed, concurrency=4)
    await anext(outcomes)
    asking = asyncio.ensure_future(anext(outcomes))
    await turns()
    assert "reading" in repr(outcomes)
    outcomes.stop_reading()
    with pytest.raises(StopAsyncIteration):
        await asking
    assert workers() == 0


async def test_stop_reading_takes_what_waits_behind_an_earlier_update_along(client, sandbox):
    sandbox.hold()
    outcomes = client.update_many([("same", str(n)) for n in range(9)], concurrency=3)
    first = asyncio.ensure_future(anext(outcomes))
    await sandbox.wait_for_requests(1)
    outcomes.stop_reading()
    sandbox.release()
    await first
    assert [outcome.update.metadata async for outcome in outcomes] == ["1", "2"]


# What ends the whole job


async def test_a_closed_client_ends_the_job_after_what_was_finished(client, sandbox):
    sandbox.hold()
    outcomes = client.update_many(Input(), concurrency=3)
    first = asyncio.ensure_future(anext(outcomes))
    await sandbox.wait_for_requests(3)
    closing = asyncio.create_task(client.close())
    await turns()
    sandbox.release()
    await closing
    done = [await first]
    with pytest.raises(ClientStateError):
        await collect(outcomes, done)
    assert [outcome.ok for outcome in done] == [True] * 3
    assert workers() == 0


async def test_a_client_that_closes_while_the_job_waits_for_its_input_ends_it(client):
    feed = Feed()
    outcomes = client.update_many(feed)
    asking = asyncio.ensure_future(anext(outcomes))
    await turns()
    await client.close()
    with pytest.raises(ClientStateError):
        await asking
    assert workers() == 0


async def test_a_job_of_a_closed_client_does_not_begin(client):
    await client.close()
    updates = Input()
    outcomes = client.update_many(updates)
    with pytest.raises(ClientStateError):
        await anext(outcomes)
    assert updates.read == 0


async def test_a_refused_key_ends_the_job_with_one_token_request(sandbox):
    async with client_of(sandbox, key_secret="wrong") as client:
        done = []
        with pytest.raises(TokenError) as caught:
            await collect(client.update_many(Input(), concurrency=10), done)
        assert done == []
    assert caught.value.error == "invalid_client"
    assert len(sandbox.token_requests) == 1
    assert sandbox.requests == []


async def test_a_final_401_ends_the_job_after_the_outcomes_so_far(client, sandbox):
    outcomes = client.update_many(Input(), concurrency=3)
    done = [await anext(outcomes) for _ in range(20)]
    sandbox.refuse_tokens()
    with pytest.raises(AuthenticationError):
        await collect(outcomes, done)
    assert len(done) >= 20
    assert all(outcome.ok for outcome in done)
    assert workers() == 0


async def test_a_token_endpoint_that_fails_is_an_outage_and_not_the_jobs_end(
    client, sandbox, quick_probes, monkeypatch
):
    monkeypatch.setattr("sinch_conv_async._core.tokens.FETCH_FOR", 0.0)
    sandbox.fail_next_token(503, times=3)
    outcomes = [outcome async for outcome in client.update_many(Input(20), concurrency=4)]
    assert len(outcomes) == 20
    assert all(outcome.ok for outcome in outcomes)


# Outages


@pytest.mark.parametrize("concurrency", [2, 16])
async def test_an_outage_in_the_middle_loses_nothing_and_costs_few_requests(
    client, sandbox, quick_probes, concurrency
):
    """Out until it has been probed 20 times: more than a minute, at the usual delays."""
    probes = 20
    assert sum(USUAL_DELAYS) + (probes - len(USUAL_DELAYS)) * USUAL_DELAYS[-1] > 60
    outcomes = client.update_many(Input(200), concurrency=concurrency)
    done = [await anext(outcomes) for _ in range(100)]
    sandbox.fail_next(503, times=1_000_000)
    before = len(sandbox.requests)
    most = concurrency * (1 + QUICK.max_retries) + probes

    job = asyncio.create_task(collect(outcomes, done))
    await until(lambda: failed_requests(sandbox) >= most)
    assert outcomes.in_outage
    assert "outage" in repr(outcomes)
    sandbox.clear_faults()
    await job
    assert not outcomes.in_outage
    assert len(done) == 200
    assert all(outcome.ok for outcome in done)
    # One more probe may have been under way.
    assert most <= sum(request.status == 503 for request in sandbox.requests[before:]) <= most + 1


async def test_a_server_that_is_gone_is_an_outage_too(client, sandbox, quick_probes):
    outcomes = client.update_many(Input(100), concurrency=8)
    done = [await anext(outcomes) for _ in range(30)]
    await sandbox.close()

    job = asyncio.create_task(collect(outcomes, done))
    await until(lambda: outcomes.in_outage)
    await sandbox.start()
    await job
    assert len(done) == 100
    assert all(outcome.ok for outcome in done)


async def test_probes_are_made_one_at_a_time(client, sandbox, quick_probes):
    outcomes = client.update_many(Input(50), concurrency=10)
    sandbox.fail_next(503, times=1_000_000)
    job = asyncio.ensure_future(anext(outcomes))
    await first_probe_to_come(outcomes, sandbox, 10)
    sandbox.peak_in_flight = 0
    sent = len(sandbox.requests)
    await until(lambda: len(sandbox.requests) > sent + 20)
    assert sandbox.peak_in_flight == 1
    sandbox.clear_faults()
    await job
    await outcomes.aclose()


async def test_after_an_outage_the_job_is_at_full_concurrency_again(client, sandbox, quick_probes):
    sandbox.fail_next(503, times=1_000_000)
    outcomes = client.update_many(Input(), concurrency=10)
    first = asyncio.ensure_future(anext(outcomes))
    await first_probe_to_come(outcomes, sandbox, 10)
    sandbox.clear_faults()
    await first
    sandbox.hold()
    job = asyncio.create_task(collect(outcomes, []))
    await until(lambda: sandbox.in_flight == 10)
    job.cancel()
    await asyncio.wait([job])
    await outcomes.aclose()
    sandbox.release()


@pytest.mark.parametrize("concurrency", [2, 10])
async def test_an_outage_longer_than_max_outage_ends_the_job_and_says_what_to_do(
    client, sandbox, quick_probes, concurrency
):
    outcomes = client.update_many(Input(), concurrency=concurrency, max_outage=0.05)
    done = [await anext(outcomes) for _ in range(20)]
    sandbox.fail_next(503, times=1_000_000)
    with pytest.raises(ServerError) as caught:
        await collect(outcomes, done)
    assert all(outcome.ok for outcome in done)
    (note,) = caught.value.__notes__
    assert "taken no update" in note
    assert "new job" in note
    assert workers() == 0


async def test_an_outage_counts_from_the_first_failure(sandbox, quick_probes, monkeypatch):
    time = Time()
    async with (
        SessionManager() as manager,
        client_of(
            sandbox, session_manager=manager, auth="basic", retry=QUICK, rate_limit=None
        ) as client,
    ):
        monkeypatch.setattr("sinch_conv_async._core.binding.clock_of", lambda loop: time.clock)
        outcomes = client.update_many(Input(), concurrency=10, max_outage=60)
        done = [await anext(outcomes) for _ in range(20)]
        before = len(sandbox.requests)
        sandbox.fail_next(503, times=1_000_000)

        def half_a_minute_later():
            time.now += 30

        sandbox.every(1, half_a_minute_later)
        with pytest.raises(ServerError) as caught:
            await collect(outcomes, done)
        assert all(outcome.ok for outcome in done)  # and none of those under way then is spent
        assert len(sandbox.requests) - before <= 10 * (2 + QUICK.max_retries)  # and no probe
        (note,) = caught.value.__notes__
        assert int(note.split(" for ")[1].split(" s")[0]) >= 60


async def test_an_outage_lasts_as_long_as_the_api_asks_for(client, sandbox, quick_probes):
    """Retry-After is beyond the patience of a single call: the next probe comes after it, or where
    the job gives up.
    """
    sandbox.fail_next(429, times=1_000_000, retry_after=3600)
    outcomes = client.update_many(Input(), concurrency=3, max_outage=0.2)
    with pytest.raises(RateLimitedError) as caught:
        await anext(outcomes)
    assert caught.value.__notes__
    assert len(sandbox.requests) <= 3 + 2


async def test_stop_reading_does_not_wait_for_the_end_of_an_outage(client, sandbox):
    """Also not where the probe is under way at that moment."""
    sandbox.fail_next(503, times=1_000_000)
    outcomes = client.update_many(Input(), concurrency=4)
    first = asyncio.ensure_future(anext(outcomes))
    await first_probe_to_come(outcomes, sandbox, 4)
    outcomes.stop_reading()
    with pytest.raises(StopAsyncIteration):
        await first
    assert workers() == 0


async def test_a_probe_under_way_when_reading_stops_is_the_last(client, sandbox, quick_probes):
    sandbox.fail_next(503, times=1_000_000)
    outcomes = client.update_many(Input(), concurrency=4)
    first = asyncio.ensure_future(anext(outcomes))
    await first_probe_to_come(outcomes, sandbox, 4)
    sandbox.hold()
    await until(lambda: sandbox.in_flight == 1)
    outcomes.stop_reading()
    arrived = len(sandbox.requests)
    sandbox.release()
    with pytest.raises(StopAsyncIteration):
        await first
    assert len(sandbox.requests) == arrived


async def test_closing_in_an_outage_leaves_nothing(client, sandbox):
    sandbox.fail_next(503, times=1_000_000)
    async with client.update_many(Input(), concurrency=4) as outcomes:
        asking = asyncio.ensure_future(anext(outcomes))
        await until(lambda: outcomes.in_outage)
        asking.cancel()
        await asyncio.wait([asking])
    assert workers() == 0


async def test_one_that_gets_through_meanwhile_ends_the_outage(client, sandbox):
    """A straggler's answer comes while the probe still waits: nobody waits out its delay."""
    sandbox.delay_next(0.3, message_id="m0")
    sandbox.fail_next(503, times=15)
    outcomes = client.update_many(Input(4), concurrency=4)
    done = [outcome async for outcome in outcomes]
    assert len(done) == 4
    assert all(outcome.ok for outcome in done)


async def test_an_outage_that_follows_at_once_is_probed_too(client, sandbox, quick_probes):
    """Whoever was woken by the end of one outage finds the next: it waits again, and does not spend
    retries on it.
    """
    outcomes = client.update_many(Input(60), concurrency=8)
    done = []

    async def rest() -> None:
        async for outcome in outcomes:
            done.append(outcome)
            if len(done) % 10 == 0:
                sandbox.clear_faults()
                sandbox.fail_next(503, times=60)

    await rest()
    assert len(done) == 60
    assert all(outcome.ok for outcome in done)


# One update that always fails


@pytest.mark.parametrize("concurrency", [2, 3, 10])
async def test_one_id_that_always_fails_is_one_failed_outcome(
    client, sandbox, quick_probes, concurrency
):
    sandbox.fail_next(500, times=1_000_000, message_id="m5")
    outcomes = {
        o.update.message_id: o
        async for o in client.update_many(Input(100), concurrency=concurrency)
    }
    assert len(outcomes) == 100
    assert [name for name, outcome in outcomes.items() if not outcome.ok] == ["m5"]
    assert isinstance(outcomes["m5"].error, ServerError)


def unlucky(sandbox, number: int, *, times: int) -> None:
    """Each of so many updates fails once, and m30 so often: as where part of the service is out."""
    for one in range(number):
        sandbox.fail_next(503, message_id=f"m{one}")
    sandbox.fail_next(503, times=times, message_id="m30")


async def test_where_retries_help_an_update_that_meets_many_failures_is_tried_further(
    client, sandbox, quick_probes
):
    unlucky(sandbox, 60, times=20)
    outcomes = {o.update.message_id: o async for o in client.update_many(Input(300), concurrency=8)}
    assert len(outcomes) == 300
    assert all(outcome.ok for outcome in outcomes.values())
    assert outcomes["m30"].attempts == 22


async def test_where_retries_help_others_an_update_that_never_succeeds_is_a_failed_outcome_too(
    client, sandbox, quick_probes
):
    unlucky(sandbox, 60, times=1_000_000)
    outcomes = {o.update.message_id: o async for o in client.update_many(Input(300), concurrency=8)}
    assert [name for name, outcome in outcomes.items() if not outcome.ok] == ["m30"]
    assert outcomes["m30"].attempts >= 25


async def test_the_last_two_that_never_succeed_are_no_outage_for_who_saw_others_succeed(
    client, sandbox, quick_probes
):
    """In their further rounds nobody else is left; what was applied after they had failed first
    still counts.
    """
    unlucky(sandbox, 60, times=1_000_000)
    sandbox.fail_next(503, times=1_000_000, message_id="m31")
    outcomes = {o.update.message_id: o async for o in client.update_many(Input(60), concurrency=8)}
    assert [name for name, outcome in sorted(outcomes.items()) if not outcome.ok] == ["m30", "m31"]


async def test_stop_reading_does_not_wait_for_a_further_round_of_retries(
    client, sandbox, quick_probes, monkeypatch
):
    monkeypatch.setattr(Sender, "long_delay", lambda member: 3600.0)
    unlucky(sandbox, 60, times=1_000_000)
    outcomes = client.update_many(Input(100), concurrency=8)
    done = [await anext(outcomes) for _ in range(99)]
    asked = asyncio.ensure_future(anext(outcomes))
    # The hundredth has had its first round, and now pauses for an hour.
    await until(lambda: sum(request.message_id == "m30" for request in sandbox.requests) == 5)
    await until(lambda: sandbox.in_flight == 0)
    await turns()
    outcomes.stop_reading()
    with pytest.raises(StopAsyncIteration):
        await asked
    assert all(outcome.ok for outcome in done)
    assert workers() == 0


async def test_a_server_that_sends_everybody_away_for_a_day_is_asked_again_before(
    sandbox, quick_probes
):
    """At the latest after max_retry_after, as a call that meets it would have been sent away for
    good.
    """
    sandbox.fail_next(429, retry_after=86_400)
    retry = RetryPolicy(base_delay=0.001, max_retry_after=0.01)
    async with client_of(sandbox, retry=retry, rate_limit=None) as client:
        outcomes = [outcome async for outcome in client.update_many(Input(20), concurrency=4)]
    assert len(outcomes) == 20
    assert all(outcome.ok for outcome in outcomes)


async def test_a_lone_update_that_fails_is_a_failed_outcome(client, sandbox):
    """Nobody else could tell whether it is the update or the API."""
    sandbox.fail_next(503, times=1_000_000)
    (outcome,) = [outcome async for outcome in client.update_many(Input(1))]
    assert isinstance(outcome.error, ServerError)
    assert outcome.attempts == 1 + QUICK.max_retries


async def test_at_a_concurrency_of_one_an_id_that_always_fails_does_not_stop_the_rest(
    client, sandbox
):
    sandbox.fail_next(500, times=1_000_000, message_id="m5")
    outcomes = [outcome async for outcome in client.update_many(Input(20), concurrency=1)]
    assert [outcome.update.message_id for outcome in outcomes if not outcome.ok] == ["m5"]
    assert len(outcomes) == 20


async def test_at_a_concurrency_of_one_an_outage_costs_one_update(client, sandbox, quick_probes):
    outcomes = client.update_many(Input(30), concurrency=1)
    done = [await anext(outcomes) for _ in range(10)]
    sandbox.fail_next(503, times=30)
    done += [outcome async for outcome in outcomes]
    assert len(done) == 30
    assert sum(not outcome.ok for outcome in done) == 1


@pytest.mark.parametrize("patient", [False, True])
async def test_many_ids_that_always_fail_use_up_the_retry_budget_and_still_end(
    sandbox, quick_probes, monkeypatch, patient
):
    """A third of all: their retries are more than the project's budget, and no update is tried for
    ever.

    Single calls may wait for the budget. A job does not, or it would wait for an hour here.
    """
    monkeypatch.setattr("sinch_conv_async._core.retry.BUDGET_LOOKS", (3600.0, 3600.0))
    poison = {f"m{number}" for number in range(0, 150, 3)}
    for message_id in poison:
        sandbox.fail_next(500, times=1_000_000, message_id=message_id)
    retry = RetryPolicy(base_delay=0, wait_for_budget=patient)
    async with client_of(sandbox, retry=retry) as client:
        outcomes = [outcome async for outcome in client.update_many(Input(300), concurrency=24)]
    assert len(outcomes) == 300
    assert {outcome.update.message_id for outcome in outcomes if not outcome.ok} == poison
    print(f"{len(sandbox.requests)} requests for 250 good updates and 50 that always fail")


async def test_without_retries_a_failure_is_an_outcome_at_once(sandbox):
    sandbox.fail_next(503, times=3)
    async with client_of(sandbox, retry=NEVER) as client:
        outcomes = [outcome async for outcome in client.update_many(Input(10), concurrency=2)]
    assert sum(not outcome.ok for outcome in outcomes) == 3
    assert len(sandbox.requests) == 10


ONCE = {
    "no retries": NEVER,
    "no repeats": RetryPolicy(base_delay=0.001, retry_maybe_sent=False),
}


@pytest.mark.parametrize("retry", ONCE.values(), ids=ONCE)
async def test_an_outage_does_not_use_up_updates_that_are_sent_only_once(
    sandbox, quick_probes, retry
):
    async with client_of(sandbox, retry=retry, rate_limit=None) as client:
        outcomes = client.update_many(Input(500), concurrency=4)
        done = [await anext(outcomes) for _ in range(100)]
        sandbox.fail_next(503, times=1_000_000)
        job = asyncio.create_task(collect(outcomes, done))
        await until(lambda: outcomes.in_outage)
        counted = failed_requests(sandbox)
        await until(lambda: failed_requests(sandbox) >= counted + 4 + 20)
        sandbox.clear_faults()
        await job
    assert len(done) == 500
    failed = [outcome for outcome in done if not outcome.ok]
    # Those that told of it, those that were under way, one for each probe, and the one that was
    # under way at the end.
    assert len(failed) <= 10 + 4 + 4 + 20 + 1
    assert all(outcome.attempts == 1 for outcome in failed)


async def test_updates_that_are_sent_only_once_end_the_job_when_the_outage_lasts(
    sandbox, quick_probes
):
    sandbox.fail_next(503, times=1_000_000)
    done = []
    async with client_of(sandbox, retry=NEVER, rate_limit=None) as client:
        with pytest.raises(ServerError) as caught:
            await collect(client.update_many(Input(500), concurrency=4, max_outage=0.05), done)
    assert "The API has taken no update" in caught.value.__notes__[0]
    assert 10 <= len(done) == len(sandbox.requests)
    assert not any(hasattr(outcome.error, "__notes__") for outcome in done)


async def test_a_certificate_that_is_refused_does_not_use_up_the_input(sandbox, quick_probes):
    """It is no answer, and the next update meets it as well."""
    done = []
    async with (
        SessionManager(
            proxy=sandbox.origin
        ) as manager,  # which knows no CONNECT, and says so with a 4xx
        client_of(
            sandbox,
            session_manager=manager,
            conversation_origin="https://api.example",
            auth="basic",
        ) as client,
    ):
        with pytest.raises(TransportError, match="the proxy answered 4"):
            await collect(client.update_many(Input(500), concurrency=4, max_outage=0.05), done)
    assert 10 <= len(done) < 100
    assert all(isinstance(outcome.error, TransportError) for outcome in done)


async def test_what_could_not_be_sent_for_want_of_a_token_is_not_used_up_either(
    sandbox, quick_probes, monkeypatch
):
    monkeypatch.setattr("sinch_conv_async._core.tokens.FETCH_FOR", 0.0)
    sandbox.fail_next_token(503, times=3)
    async with client_of(sandbox, retry=NEVER, rate_limit=None) as client:
        outcomes = [outcome async for outcome in client.update_many(Input(20), concurrency=4)]
    assert len(outcomes) == 20
    assert all(outcome.ok for outcome in outcomes)


async def test_what_may_not_be_repeated_is_not(sandbox):
    sandbox.drop_next(applied=True, message_id="m1")
    async with client_of(sandbox, retry=RetryPolicy(retry_maybe_sent=False)) as client:
        outcomes = {
            o.update.message_id: o async for o in client.update_many(Input(4), concurrency=2)
        }
    assert isinstance(outcomes["m1"].error, TransportError)
    assert sum(request.message_id == "m1" for request in sandbox.requests) == 1


# Timeouts


async def test_a_server_that_hangs_is_an_outage(sandbox, quick_probes):
    async with client_of(sandbox, attempt_timeout=0.05, retry=QUICK, rate_limit=None) as client:
        outcomes = client.update_many(Input(30), concurrency=3)
        done = [await anext(outcomes)]
        sandbox.hold()
        job = asyncio.create_task(collect(outcomes, done))
        await until(lambda: outcomes.in_outage)
        sandbox.release()
        await job
    assert len(done) == 30
    assert all(outcome.ok for outcome in done)


async def test_one_id_that_hangs_is_one_failed_outcome(sandbox, quick_probes):
    sandbox.delay_next(30.0, times=1_000, message_id="m3")
    async with client_of(sandbox, attempt_timeout=0.05, retry=QUICK, rate_limit=None) as client:
        outcomes = [outcome async for outcome in client.update_many(Input(40), concurrency=3)]
    assert len(outcomes) == 40
    (failed,) = [outcome for outcome in outcomes if not outcome.ok]
    assert isinstance(failed.error, CallTimeoutError)
    assert failed.update.message_id == "m3"


async def test_the_timeout_of_single_calls_does_not_hurry_a_job(sandbox):
    """Neither while it waits for its turn, nor in the pause after a 429."""
    sandbox.fail_next(429, retry_after=0.3)
    async with client_of(sandbox, timeout=0.1, rate_limit=20, retry=AT_ONCE) as client:
        outcomes = [outcome async for outcome in client.update_many(Input(8), concurrency=8)]
    assert len(outcomes) == 8
    assert all(outcome.ok for outcome in outcomes)


# The pace


async def test_a_job_keeps_the_pace_saturated(sandbox):
    """Whenever an outcome is read, somebody waits for a turn: what is in flight, and what comes
    late, leaves places enough.
    """
    sandbox.latency = 0.02
    waiting = []
    async with (
        # So slow that a machine that does other things too still fills all places.
        client_of(sandbox, rate_limit=20) as client,
        client.update_many(Input()) as outcomes,
    ):
        async for _ in outcomes:
            waiting.append(stats_of(client).waiting)
            if len(waiting) == 40:
                break
    print(f"{min(waiting)} to {max(waiting)} of 256 updates waited for their turn")
    # The first outcome may come before all places have been filled.
    assert min(waiting[20:]) > 0


async def test_an_update_waits_only_for_its_turn_and_not_for_its_reading(sandbox):
    """As many wait for their turn as have a place and are not under way: none is held up on the way
    there.
    """
    async with (
        client_of(sandbox, rate_limit=50) as client,
        client.update_many(Input(), concurrency=40) as outcomes,
    ):
        for _ in range(10):
            await anext(outcomes)
        sandbox.hold()
        await asyncio.sleep(0.05)  # what was answered before has its outcome
        while ", 0 unread" not in repr(outcomes):
            await anext(outcomes)
        await turns()
        (project,) = stats_of(client).projects
        assert project.waiting + project.in_flight == 39  # and one outcome is in the reader's hand
        sandbox.release()


async def test_ids_that_fail_to_the_end_of_a_job_do_not_end_it(client, sandbox, quick_probes):
    """Updates that set out after they had failed were applied: it is not the API."""
    poison = {"m20", "m700"}
    for message_id in poison:
        sandbox.fail_next(500, times=1_000_000, message_id=message_id)
    async with client.update_many(Input(1_000), concurrency=64) as job:
        outcomes = [outcome async for outcome in job]
    assert len(outcomes) == 1_000
    assert {outcome.update.message_id for outcome in outcomes if not outcome.ok} == poison


# The end of the input


async def test_updates_that_fail_at_the_end_of_a_job_are_failed_outcomes_once_it_has_waited(
    client, sandbox, quick_probes
):
    """Nothing can tell them from an outage, so the job waits; but each update gets its outcome."""
    bad = {"m20", "m21"}
    for message_id in bad:
        sandbox.fail_next(500, times=1_000_000, message_id=message_id)
    outcomes = [o async for o in client.update_many(Input(22), concurrency=64, max_outage=0.2)]
    assert len(outcomes) == 22
    assert {outcome.update.message_id for outcome in outcomes if not outcome.ok} == bad


async def test_a_job_none_of_whose_updates_ever_got_through_ends_with_the_error(
    client, sandbox, quick_probes
):
    sandbox.fail_next(503, times=1_000_000)
    with pytest.raises(ServerError) as caught:
        await collect(client.update_many(Input(5), concurrency=64, max_outage=0.05), done := [])
    assert caught.value.__notes__
    assert done == []


# What is counted


async def test_a_further_round_is_no_call_of_its_own(client, sandbox, quick_probes):
    unlucky(sandbox, 60, times=20)
    done = []
    await collect(client.update_many(Input(300), concurrency=8), done)
    stats = stats_of(client)
    assert stats.calls == len(done) == 300
    assert stats.attempts == len(sandbox.requests) == 300 + 59 + 21
    assert stats.retries == 59 + 21


# Odd uses


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_tasks_change_nothing(client):
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        outcomes = [outcome async for outcome in client.update_many(Input(2000), concurrency=1000)]
    finally:
        loop.set_task_factory(None)
    assert len(outcomes) == 2000
    assert all(outcome.ok for outcome in outcomes)


async def test_a_closed_job_says_nothing_of_what_it_was_doing(client, sandbox):
    sandbox.fail_next(503, times=1_000_000)
    outcomes = client.update_many(Input(), concurrency=4)
    asking = asyncio.ensure_future(anext(outcomes))
    await until(lambda: outcomes.in_outage)
    asking.cancel()
    await asyncio.wait([asking])
    await outcomes.aclose()
    assert not outcomes.in_outage
    assert repr(outcomes) == "<BulkUpdate at rest: 0 held, 0 unread>"


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends_and_counted_meanwhile(
    client, sandbox, quick_probes, caplog
):
    caplog.set_level("INFO", logger="sinch_conv_async")
    sandbox.fail_next(503, times=1_000_000)
    outcomes = client.update_many(Input(30), concurrency=4)
    reading = asyncio.create_task(collect(outcomes, []))
    await first_probe_to_come(outcomes, sandbox, 4)
    assert [project.in_outage for project in stats_of(client).projects] == [True]
    sandbox.clear_faults()
    await reading
    assert [project.in_outage for project in stats_of(client).projects] == [False]
    began, ended = [
        record
        for record in caplog.records
        if record.name == "sinch_conv_async" and "job" in record.msg
    ]
    assert (began.levelname, ended.levelname) == ("WARNING", "INFO")
    assert began.getMessage().startswith("a job waits for the API: 503")
    assert ended.getMessage().startswith("a job no longer waits for the API")
    assert began.sinch_conv_async["project_id"] == ended.sinch_conv_async["project_id"]


async def test_an_outage_ends_with_its_job(client, sandbox):
    sandbox.fail_next(503, times=1_000_000)
    async with client.update_many(Input(), concurrency=4) as outcomes:
        reading = asyncio.create_task(collect(outcomes, []))
        await until(lambda: outcomes.in_outage)
        reading.cancel()
        await asyncio.wait([reading])
    assert [project.in_outage for project in stats_of(client).projects] == [False]
