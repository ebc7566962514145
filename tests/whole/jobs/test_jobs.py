"""Jobs in a real PostgreSQL: handed in, done by workers, asked about, cancelled, tried again,
deleted.
"""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import psycopg
import pytest

from sinch_conv_async import InvalidArgumentError, MetadataUpdate
from sinch_conv_async.fleet.memory import MemoryFleet
from sinch_conv_async.jobs import (
    InputError,
    JobNotFoundError,
    JobStateError,
    JobStore,
    JobStoreError,
    Layout,
    SchemaError,
    run_worker,
)
from tests.whole.jobs.database import (
    LONG,
    PROJECT,
    QUICK,
    outcomes_of,
    until_ended,
    working,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.needs_program("initdb")


def pairs(number: int, metadata: str = "m") -> list[tuple[str, str]]:
    return [(f"ID{row}", f"{metadata}-{row}") for row in range(1, number + 1)]


# A job is done


async def test_every_record_gets_its_metadata_and_one_outcome(store, url, sandbox):
    job = await store.submit(pairs(1_100), project_id=PROJECT)
    status = await store.status(job)
    assert (status.state, status.records, status.remaining) == ("queued", 1_100, 1_100)
    async with working(url, sandbox, retake_after=LONG):
        status = await until_ended(store, job)
    assert (status.state, status.updated, status.remaining) == ("done", 1_100, 0)
    assert status.rate > 0
    assert status.seconds > 0
    assert await outcomes_of(store, job) == dict.fromkeys(range(1, 1_101), "updated")
    assert all(sandbox.messages[name].metadata == text for name, text in pairs(1_100))
    assert len(sandbox.requests) == 1_100


@pytest.mark.parametrize(
    "metadata", ["", "\t", "\\", "\\N", "a\nb\r\nc", '{"a": "\\u0000"}', "\x01é\U0001f600", "\\."]
)
async def test_metadata_arrives_as_it_was_given(store, url, sandbox, metadata):
    job = await store.submit([("A", metadata), ["B", "x"]], project_id=PROJECT)
    async with working(url, sandbox):
        assert (await until_ended(store, job)).state == "done"
    assert sandbox.messages["A"].metadata == metadata


async def test_a_file_is_read_by_its_layout(store, url, sandbox, tmp_path):
    path = tmp_path / "ids.csv.gz"
    path.write_bytes(gzip.compress("key;metadata;messages_source\nA;ä;DISPATCH_SOURCE\n".encode()))
    layout = Layout(delimiter=";", message_id="key")
    job = await store.submit(str(path), project_id=PROJECT, layout=layout)
    async with working(url, sandbox):
        status = await until_ended(store, job)
    assert (status.state, status.input) == ("done", str(path))
    (request,) = sandbox.requests
    assert (request.message_id, request.metadata) == ("A", "ä")
    assert request.messages_source == "DISPATCH_SOURCE"


async def test_an_asynchronous_iterable_of_updates_is_an_input(store, url, sandbox):
    async def updates() -> AsyncIterator[MetadataUpdate]:
        for name in ("A", "B"):
            yield MetadataUpdate(name, "x", messages_source="DISPATCH_SOURCE")

    job = await store.submit(updates(), project_id=PROJECT)
    async with working(url, sandbox):
        assert (await until_ended(store, job)).updated == 2
    assert {request.messages_source for request in sandbox.requests} == {"DISPATCH_SOURCE"}


async def test_one_metadata_for_all_is_kept_once(store, url, sandbox, tmp_path):
    path = tmp_path / "ids.csv"
    path.write_text("message_id\nA\nB\n")
    job = await store.submit(path, project_id=PROJECT, layout=Layout(constant='{"a": 1}'))
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await (
            await connection.execute("SELECT metadata FROM sinch_conv.records")
        ).fetchall()
    assert rows == [(None,), (None,)]
    sandbox.fail_next(404, message_id="B")
    async with working(url, sandbox):
        await until_ended(store, job)
    assert sandbox.messages["A"].metadata == '{"a": 1}'
    assert [failure.metadata async for failure in store.failures(job)] == ['{"a": 1}']


async def test_a_merge_reads_each_message_and_keeps_the_rest(store, url, sandbox):
    sandbox.add_message("A", metadata='{"a":1,"b":2}')
    sandbox.add_message("B", metadata='{"b":3}')
    changes = [("A", '{"b": 3}'), ("B", '{"b": 3}')]
    job = await store.submit(changes, project_id=PROJECT, merge=True)
    async with working(url, sandbox):
        status = await until_ended(store, job)
    assert (status.updated, status.unchanged) == (1, 1)
    assert sandbox.messages["A"].metadata == '{"a":1,"b":3}'


async def test_options_of_the_job_reach_the_client(store, url, sandbox):
    sandbox.hold()
    job = await store.submit(
        pairs(20), project_id=PROJECT, region="EU", rate_limit=700, concurrency=3, max_outage=5
    )
    async with working(url, sandbox):
        await sandbox.wait_for_requests(3)
        assert sandbox.in_flight == 3
        sandbox.release()
        status = await until_ended(store, job)
    assert (status.state, status.region, sandbox.peak_in_flight) == ("done", "EU", 3)


async def test_an_empty_job_is_done_at_once(store, url, sandbox):
    job = await store.submit([], project_id=PROJECT)
    async with working(url, sandbox):
        status = await until_ended(store, job)
    assert (status.state, status.records, status.rate) == ("done", 0, 0)


# Failures, order


async def test_a_failure_is_told_with_its_record_and_reason(store, url, sandbox):
    sandbox.fail_next(404, message_id="ID2")
    job = await store.submit(pairs(3), project_id=PROJECT)
    async with working(url, sandbox):
        status = await until_ended(store, job)
    assert (status.state, status.updated, status.failed) == ("done", 2, 1)
    (failure,) = [failure async for failure in store.failures(job)]
    assert (failure.record, failure.line, failure.message_id) == (2, 2, "ID2")
    assert (failure.metadata, failure.reason) == ("m-2", "404 NotFoundError NOT_FOUND")
    assert "m-2" not in repr(failure)


async def test_two_records_of_one_id_keep_their_order_and_the_first_is_superseded(
    store, url, sandbox
):
    """Also when they are in different pages of records, and in one batch of outcomes."""
    sandbox.fail_next(404, message_id="A")
    sandbox.fail_next(404, message_id="B")
    updates = [("A", "first"), *pairs(1_200), ("a", "second"), ("B", "first"), ("B", "second")]
    job = await store.submit(updates, project_id=PROJECT)
    async with working(url, sandbox):
        status = await until_ended(store, job)
    assert (status.updated, status.failed, status.superseded) == (1_202, 0, 2)
    outcomes = {outcome.record: outcome async for outcome in store.outcomes(job)}
    assert (outcomes[1].outcome, outcomes[1].superseded_by) == ("superseded", 1_202)
    assert (outcomes[1_203].outcome, outcomes[1_203].superseded_by) == ("superseded", 1_204)
    assert outcomes[1_203].error == "NotFoundError"
    assert [failure async for failure in store.failures(job)] == []


async def test_a_job_whose_failures_are_tried_again_keeps_the_order(store, url, sandbox):
    sandbox.fail_next(404, message_id="A")
    sandbox.fail_next(404, message_id="B")
    job = await store.submit([("A", "1"), ("B", "1"), ("C", "1")], project_id=PROJECT)
    async with working(url, sandbox):
        assert (await until_ended(store, job)).failed == 2
        with pytest.raises(JobNotFoundError):
            await store.retry(job + 1)
        assert (await store.retry(job)).state == "queued"
        status = await until_ended(store, job)
    assert (status.updated, status.failed, status.state) == (3, 0, "done")
    assert len(sandbox.requests) == 5


async def test_the_limit_on_failures_ends_the_job_and_says_so(store, url, sandbox):
    sandbox.fail_next(404, times=1_000)
    job = await store.submit(pairs(800), project_id=PROJECT, max_failures=5, concurrency=2)
    share = await store.submit(pairs(800), project_id=PROJECT, max_failures_percent=10)
    async with working(url, sandbox):
        first, second = await until_ended(store, job), await until_ended(store, share)
    assert first.state == second.state == "failed"
    assert first.error == "more than 5 of the updates failed, so the rest was not tried"
    assert second.error == "more than 10% of the updates failed, so the rest was not tried"
    assert first.remaining > 700
    assert 100 <= second.failed < 800


async def test_a_refused_key_ends_the_job_and_retry_goes_on(store, url, sandbox):
    job = await store.submit(pairs(3), project_id=PROJECT)
    wrong = {**sandbox.client_options(), "key_secret": "wrong-secret-of-the-key"}
    stop = asyncio.Event()
    worker = asyncio.create_task(run_worker(url, credentials=[wrong], stop=stop))
    status = await until_ended(store, job)
    stop.set()
    report = await worker
    assert (status.state, status.remaining, report.ended) == ("failed", 3, {job: "failed"})
    assert status.error is not None
    assert "TokenError" in status.error
    assert "wrong-secret" not in status.error
    await store.retry(job)
    async with working(url, sandbox):
        assert (await until_ended(store, job)).updated == 3


async def test_an_outage_is_shown_in_the_jobs_row(store, url, sandbox):
    sandbox.fail_next(503, times=100_000)
    job = await store.submit(pairs(30), project_id=PROJECT)
    async with working(url, sandbox):
        while "waiting for the API" not in ((await store.status(job)).error or ""):
            await asyncio.sleep(0.02)
        assert (await store.cancel(job)).cancel_requested
        status = await until_ended(store, job)
    assert (status.state, status.error) == ("cancelled", None)


# Bad input


async def test_a_bad_line_refuses_the_job_and_leaves_nothing(store, tmp_path):
    path = tmp_path / "ids.csv"
    path.write_text("message_id,metadata\nA,x\n" + "a b,x\n" * 12)
    said: list[str] = []
    with pytest.raises(InputError, match="12 bad lines, so no job was made") as raised:
        await store.submit(path, project_id=PROJECT, say=said.append)
    assert raised.value.count == 12
    assert len(said) == 11
    assert said[0].startswith("line 3: message_id")
    assert said[-1] == "and 2 more bad lines"
    assert await store.list() == []


async def test_bad_lines_may_be_left_out(store, url, sandbox):
    items = [("A", "x"), ("a b", "x"), ("B", "nul\0"), ("C", "y"), ("D", None)]
    with pytest.raises(InputError, match="3 bad lines"):
        await store.submit(items, project_id=PROJECT)
    job = await store.submit(items, project_id=PROJECT, bad_lines="skip")
    status = await store.status(job)
    assert (status.records, status.invalid, status.remaining) == (5, 3, 2)
    async with working(url, sandbox):
        status = await until_ended(store, job)
    assert (status.state, status.updated, status.invalid) == ("done", 2, 3)
    outcomes = [outcome async for outcome in store.outcomes(job)]
    assert [outcome.outcome for outcome in outcomes] == [
        "updated", "invalid", "invalid", "updated", "invalid",
    ]  # fmt: skip
    assert (outcomes[1].line, outcomes[1].message_id) == (2, None)
    assert outcomes[2].reason == "metadata has a NUL character, which PostgreSQL cannot keep"


@pytest.mark.parametrize("change", ["[1]", "no json", ""])
async def test_a_change_that_is_no_object_is_a_bad_line(store, change):
    with pytest.raises(InputError, match="1 bad line"):
        await store.submit([("A", change)], project_id=PROJECT, merge=True)


@pytest.mark.parametrize("stray", [{"message_id": "A"}, ("A",), "A", 5])
async def test_what_is_no_update_is_named_and_leaves_nothing(store, stray):
    with pytest.raises(InvalidArgumentError, match="item 2 of the input must be a MetadataUpdate"):
        await store.submit([("A", "x"), stray], project_id=PROJECT)
    assert await store.list() == []


async def test_an_input_that_raises_leaves_nothing(store):
    def broken():
        yield from pairs(3_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.submit(broken(), project_id=PROJECT)
    assert await store.list() == []


async def test_a_project_and_a_region_must_be_right(store, monkeypatch):
    monkeypatch.delenv("SINCH_PROJECT_ID", raising=False)
    with pytest.raises(InvalidArgumentError, match="project_id"):
        await store.submit(pairs(1))
    with pytest.raises(InvalidArgumentError, match="region"):
        await store.submit(pairs(1), project_id=PROJECT, region="mars")
    monkeypatch.setenv("SINCH_PROJECT_ID", "of-the-environment")
    job = await store.submit(pairs(1))
    assert (await store.status(job)).project_id == "of-the-environment"


# Cancelled, deleted


async def test_a_waiting_job_is_cancelled_at_once(store, url, sandbox):
    job = await store.submit(pairs(3), project_id=PROJECT)
    assert (await store.cancel(job)).state == "cancelled"
    assert (await store.cancel(job)).state == "cancelled"
    after = await store.submit(pairs(1), project_id=PROJECT)
    async with working(url, sandbox):
        assert (await until_ended(store, after)).state == "done"
    assert len(sandbox.requests) == 1


async def test_a_running_job_finishes_what_is_under_way(store, url, sandbox):
    sandbox.hold()
    job = await store.submit(pairs(50), project_id=PROJECT, concurrency=4)
    async with working(url, sandbox):
        await sandbox.wait_for_requests(4)
        with pytest.raises(JobStateError, match="is running; cancel it first"):
            await store.delete(job)
        with pytest.raises(JobStateError):
            await store.retry(job)
        await store.cancel(job)
        await asyncio.sleep(QUICK)  # the worker learns of it with its next flush
        sandbox.release()
        status = await until_ended(store, job)
    assert (status.state, status.updated, status.remaining) == ("cancelled", 4, 46)


async def test_a_job_is_deleted_with_all_that_is_its_own(store, url, sandbox):
    job, other = [await store.submit(pairs(3), project_id=PROJECT) for _ in range(2)]
    async with working(url, sandbox):
        await until_ended(store, other)
    await store.delete(job)
    with pytest.raises(JobNotFoundError, match=f"there is no job {job}"):
        await store.status(job)
    with pytest.raises(JobNotFoundError):
        await store.delete(job)
    with pytest.raises(JobNotFoundError):
        await store.cancel(job)
    with pytest.raises(JobNotFoundError):
        await anext(store.outcomes(job))
    assert [status.id for status in await store.list()] == [other]
    async with await psycopg.AsyncConnection.connect(url) as connection:
        for table, number in (("records", 3), ("outcomes", 3), ("procrastinate_jobs", 0)):
            cursor = await connection.execute(f"SELECT count(*) FROM sinch_conv.{table}")
            assert await cursor.fetchone() == (number,), table


# Workers


async def test_the_jobs_of_a_project_run_one_after_the_other_and_projects_side_by_side(
    store, url, sandbox
):
    sandbox.add_project("other", key_id="key-of-other", key_secret="secret-of-other")
    sandbox.hold()
    first, second = [await store.submit(pairs(2), project_id=PROJECT) for _ in range(2)]
    other = await store.submit(pairs(2), project_id="other")
    async with working(url, sandbox, (PROJECT, "other")):
        await sandbox.wait_for_requests(4)
        states = [(await store.status(job)).state for job in (first, second, other)]
        assert states == ["running", "queued", "running"]
        sandbox.release()
        for job in (first, second, other):
            assert (await until_ended(store, job)).state == "done"


async def test_a_worker_leaves_alone_what_it_has_no_credentials_for(store, url, sandbox):
    strange = await store.submit(pairs(1), project_id="strange")
    ours = await store.submit(pairs(1), project_id=PROJECT)
    async with working(url, sandbox):
        await until_ended(store, ours)
    assert (await store.status(strange)).state == "queued"


async def test_credentials_come_from_the_environment(store, url, sandbox, monkeypatch):
    for name, value in sandbox.environment().items():
        monkeypatch.setenv(name, value)
    job = await store.submit(pairs(2))
    stop = asyncio.Event()
    worker = asyncio.create_task(run_worker(url, stop=stop))
    await until_ended(store, job)
    stop.set()
    assert (await worker).ended == {job: "done"}
    monkeypatch.delenv("SINCH_KEY_SECRET")
    with pytest.raises(InvalidArgumentError, match="SINCH_KEY_SECRET"):
        await run_worker(url)


async def test_a_worker_that_is_stopped_finishes_what_is_under_way_and_gives_the_rest_back(
    store, url, sandbox
):
    sandbox.hold()
    job = await store.submit(pairs(40), project_id=PROJECT, concurrency=5)
    stop = asyncio.Event()
    worker = asyncio.create_task(
        run_worker(url, credentials=[sandbox.client_options()], stop=stop, retake_after=QUICK)
    )
    await sandbox.wait_for_requests(5)
    stop.set()
    await asyncio.sleep(0)
    sandbox.release()
    report = await worker
    status = await store.status(job)
    assert (status.state, status.updated, status.remaining) == ("queued", 5, 35)
    assert report.given_back == {job: 35}
    async with working(url, sandbox):
        assert (await until_ended(store, job)).state == "done"
    assert len(sandbox.requests) == 40


async def test_a_worker_that_is_cancelled_writes_what_it_knows(store, url, sandbox):
    job = await store.submit(pairs(60), project_id=PROJECT, concurrency=1, rate_limit=50)
    worker = asyncio.create_task(
        run_worker(url, credentials=[sandbox.client_options()], retake_after=QUICK)
    )
    await sandbox.wait_for_requests(10)
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker
    status = await store.status(job)
    assert status.state == "queued"
    assert len(sandbox.requests) - status.updated <= 1  # the one under way
    async with working(url, sandbox):
        assert (await until_ended(store, job)).state == "done"


async def test_the_workers_share_the_pace_with_the_rest_of_the_fleet(store, url, sandbox):
    fleet = MemoryFleet()
    job = await store.submit(pairs(5), project_id=PROJECT)
    async with working(url, sandbox, fleet=fleet):
        assert (await until_ended(store, job)).state == "done"


# The store


async def test_calls_outside_of_a_block_have_a_connection_of_their_own(url):
    store = JobStore(url)
    job = await store.submit(pairs(1), project_id=PROJECT)
    assert (await store.status(job)).records == 1
    assert repr(store) == "<JobStore>"
    await store.close()


async def test_the_tables_can_be_made_twice_and_at_once(empty_url):
    with pytest.raises(SchemaError, match="has no tables for jobs; `sinch-conv jobs schema`"):
        await JobStore(empty_url).list()
    with pytest.raises(SchemaError):
        await run_worker(
            empty_url,
            credentials=[
                dict.fromkeys(("project_id", "key_id", "key_secret"), "x" * 9)
                | {"conversation_region": "eu"}
            ],
        )
    await asyncio.gather(*(JobStore(empty_url).create_schema() for _ in range(3)))
    await JobStore(empty_url).create_schema()
    assert await JobStore(empty_url).list() == []


async def test_a_database_that_is_not_there_is_told_without_the_password():
    store = JobStore("postgresql://user:secret-word@127.0.0.1:1/none")
    with pytest.raises(JobStoreError, match="gave no answer: OperationalError") as raised:
        await store.list()
    assert "secret-word" not in str(raised.value) + repr(raised.value)
    with pytest.raises(InvalidArgumentError, match="must be a URL") as refused:
        JobStore("secret-word=")
    assert "secret-word" not in str(refused.value)


async def test_a_database_of_another_encoding_is_refused(cluster, empty_url):
    cluster.tell("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    with pytest.raises(SchemaError, match="encoding UTF8"):
        await JobStore(cluster.url.replace("/postgres", "/ascii")).create_schema()
