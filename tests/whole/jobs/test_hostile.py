"""Jobs against what a server, a file, a user or a death at the wrong moment can do."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from sinch_conv_async import InvalidArgumentError, SinchError
from sinch_conv_async.jobs import InputError, JobStore, JobStoreError, Layout, run_worker
from tests.whole.jobs.database import PROJECT, QUICK, outcomes_of, until_ended, working

if TYPE_CHECKING:
    from sinch_conv_async.jobs import JobStatus

pytestmark = pytest.mark.needs_program("initdb")

PATIENCE = 15
"""Seconds after which a test that waits for a job's end has failed."""


def pairs(number: int) -> list[tuple[str, str]]:
    return [(f"ID{row}", f"m-{row}") for row in range(1, number + 1)]


async def ended(store: JobStore, job: int) -> JobStatus:
    async with asyncio.timeout(PATIENCE):
        return await until_ended(store, job)


async def sql(url: str, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(
        url, autocommit=True, options="-c search_path=sinch_conv"
    ) as connection:
        cursor = await connection.execute(statement, arguments)
        return await cursor.fetchall() if cursor.description else []


# What a hostile server sends


def envelope(message: str) -> bytes:
    return json.dumps({"error": {"code": 404, "message": message, "status": "NOT_FOUND"}}).encode()


@pytest.mark.parametrize("value", ["caf\udce9", "a\x7fb"])
async def test_a_request_id_that_is_no_text_ends_no_job(store, url, sandbox, value):
    body = json.dumps(
        {"error": {"code": 404, "message": "x"}, "traceId": "\ud800" + value}
    ).encode()
    sandbox.fail_next(404, body=body, content_type="application/json", message_id="ID2")
    job = await store.submit(pairs(3), project_id=PROJECT)
    async with working(url, sandbox):
        status = await ended(store, job)
    assert (status.state, status.updated, status.failed) == ("done", 2, 1)


async def test_a_header_that_is_no_utf_8_ends_no_job(store, url, sandbox):
    head = b"HTTP/1.1 404 Not Found\r\nX-Request-Id: caf\xe9\r\nContent-Length: 2\r\n\r\n{}"
    sandbox.answer_next(head)
    job = await store.submit(pairs(3), project_id=PROJECT)
    async with working(url, sandbox):
        status = await ended(store, job)
    assert (status.state, status.updated, status.failed) == ("done", 2, 1)


@pytest.mark.parametrize("word", ["nul \0", "lone \ud800"])
async def test_the_sentence_of_an_outage_may_hold_anything(store, url, sandbox, word):
    sandbox.fail_next(503, times=100_000, body=envelope(word), content_type="application/json")
    job = await store.submit(pairs(30), project_id=PROJECT)
    async with working(url, sandbox):
        async with asyncio.timeout(PATIENCE):
            while "waiting for the API" not in ((await store.status(job)).error or ""):
                await asyncio.sleep(0.02)
        await store.cancel(job)
        status = await ended(store, job)
    assert status.state == "cancelled"
    assert (await sql(url, "SELECT epoch FROM jobs"))[0][0] == 1


# Deaths at the wrong moment


async def test_a_worker_that_died_after_a_jobs_end_does_not_block_its_project(store, url, sandbox):
    """The job is done, and the engine was not told: its row would keep the project's lock."""
    first = await store.submit(pairs(1), project_id=PROJECT)
    await sql(url, "UPDATE jobs SET state = 'done' WHERE id = %s", first)
    [(worker,)] = await sql(url, "INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id")
    await sql(url, "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s", worker)
    second = await store.submit(pairs(1), project_id=PROJECT)
    async with working(url, sandbox):
        assert (await ended(store, second)).state == "done"


async def test_a_job_that_was_deleted_then_does_not_block_its_project(store, url, sandbox):
    first = await store.submit(pairs(1), project_id=PROJECT)
    await sql(url, "UPDATE jobs SET state = 'done' WHERE id = %s", first)
    [(worker,)] = await sql(url, "INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id")
    await sql(url, "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s", worker)
    await store.delete(first)
    second = await store.submit(pairs(1), project_id=PROJECT)
    async with working(url, sandbox):
        assert (await ended(store, second)).state == "done"


async def test_a_database_that_is_slow_for_a_moment_fails_no_job(store, url, sandbox):
    """Nothing may be sent for a moment; the flush then succeeds, and the job goes on."""
    seconds = 2.0
    job = await store.submit(pairs(400), project_id=PROJECT, rate_limit=100, concurrency=2)
    async with working(url, sandbox, retake_after=seconds):
        await sandbox.wait_for_requests(20)
        async with await psycopg.AsyncConnection.connect(
            url, options="-c search_path=sinch_conv"
        ) as connection:
            await connection.execute("SELECT FROM jobs FOR UPDATE")
            before = -1
            while before != len(sandbox.requests):  # until it sends no more
                before = len(sandbox.requests)
                await asyncio.sleep(0.1)
        status = await ended(store, job)
    assert (status.state, status.error) == ("done", None)


async def test_what_runs_is_awaited_when_a_stopping_worker_is_cancelled(store, url, sandbox):
    sandbox.hold()
    await store.submit(pairs(10), project_id=PROJECT, concurrency=2)
    before = asyncio.all_tasks()
    stop = asyncio.Event()
    worker = asyncio.create_task(
        run_worker(url, credentials=[sandbox.client_options()], stop=stop, retake_after=QUICK)
    )
    await sandbox.wait_for_requests(2)
    stop.set()
    await asyncio.sleep(0.1)
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker
    left = [task.get_name() for task in asyncio.all_tasks() - before]
    sandbox.release()
    assert [name for name in left if name.startswith(("sinch_conv_async", "process job"))] == []
    assert (await store.status(1)).state == "queued"


async def test_a_lost_hold_is_no_unhandled_error_of_a_task(store, url, sandbox, caplog):
    sandbox.hold()
    job = await store.submit(pairs(10), project_id=PROJECT, concurrency=2)
    async with working(url, sandbox):
        await sandbox.wait_for_requests(2)
        await sql(url, "UPDATE jobs SET epoch = epoch + 1, held_until = now() - interval '1 s'")
        await asyncio.sleep(QUICK)
        sandbox.release()
        assert (await ended(store, job)).state == "done"
    gc.collect()
    await asyncio.sleep(0)
    assert [r.getMessage() for r in caplog.records if r.name == "asyncio"] == []


# What a user does


async def test_calls_of_one_block_may_be_made_at_once(store, url):
    results = await asyncio.gather(
        *(store.submit(pairs(2_000), project_id=PROJECT) for _ in range(3)),
        store.submit([("a b", "x")], project_id=PROJECT),
        *(store.list() for _ in range(3)),
        return_exceptions=True,
    )
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["int", "int", "int", "InputError", "list", "list", "list"]
    assert len(await store.list()) == 3


async def test_a_block_survives_a_restart_of_the_database(store, url):
    await sql(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND datname = current_database()",
    )
    with pytest.raises(JobStoreError):
        await store.list()
    assert await store.list() == []


async def test_a_file_whose_name_is_no_text(store, tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.csv")
    with open(path, "w") as file:
        file.write("message_id,metadata\nA,x\n")
    job = await store.submit(path, project_id=PROJECT)
    assert (await store.status(job)).records == 1


@pytest.mark.parametrize("constant", ["\0", "\ud800"])
async def test_one_metadata_for_all_that_cannot_be_kept(store, tmp_path, constant):
    path = tmp_path / "ids.csv"
    path.write_text("message_id\nA\n")
    with pytest.raises((InvalidArgumentError, InputError)):
        await store.submit(path, project_id=PROJECT, layout=Layout(constant=constant))


async def test_a_constant_change_that_is_no_object(store, tmp_path):
    path = tmp_path / "ids.csv"
    path.write_text("message_id\nA\n")
    with pytest.raises((InvalidArgumentError, InputError)):
        await store.submit(path, project_id=PROJECT, merge=True, layout=Layout(constant="[1]"))


@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": 0},
        {"rate_limit": -1},
        {"rate_limit": float("nan")},
        {"concurrency": 0},
        {"max_outage": -1},
        {"max_outage": float("inf")},
        {"max_failures": -1},
        {"max_failures": float("nan")},
        {"max_failures_percent": 101},
        {"bad_lines": "ignore"},
    ],
)
async def test_options_are_checked_when_a_job_is_handed_in(store, options):
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        await store.submit(pairs(1), project_id=PROJECT, **options)
    assert await store.list() == []


@pytest.mark.parametrize(
    "options",
    [{"jobs": 0}, {"retake_after": 0}, {"retake_after": None}, {"retake_after": float("nan")}],
)
async def test_options_of_a_worker_are_checked(url, sandbox, options):
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(InvalidArgumentError):
        async with asyncio.timeout(5):
            await run_worker(url, credentials=[sandbox.client_options()], stop=stop, **options)


@pytest.mark.parametrize("job", ["1; DROP TABLE jobs", "records", -1, 2**70, None, 1.5])
async def test_an_id_that_is_none(store, job):
    for call in (store.status, store.cancel, store.delete, store.retry):
        with pytest.raises(SinchError):
            await call(job)
    assert await store.list() == []


async def test_a_delete_does_not_wait_for_a_submit(store, url, cluster):
    job = await store.submit(pairs(1), project_id=PROJECT)
    await store.cancel(job)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def updates():
        for pair in pairs(5_000):
            yield pair
        begun.set()
        await go_on.wait()

    submitting = asyncio.create_task(JobStore(url).submit(updates(), project_id=PROJECT))
    await begun.wait()
    try:
        async with asyncio.timeout(3):
            await store.delete(job)
    finally:
        go_on.set()
        await submitting


async def test_a_delete_gives_way_to_who_reads_the_tables(store, url, monkeypatch):
    """A backup, which reads the parents, is not waited for: a worker would wait behind it."""
    monkeypatch.setattr("sinch_conv_async.jobs.store.DROP_TRIES", 2)
    job = await store.submit(pairs(1), project_id=PROJECT)
    await store.cancel(job)
    async with await psycopg.AsyncConnection.connect(url) as reader:
        await reader.execute("SELECT FROM sinch_conv.records")
        with pytest.raises(JobStoreError, match="others read the tables, such as a backup"):
            await store.delete(job)
    await store.delete(job)
    assert await store.list() == []


async def test_a_block_that_is_closed_lets_calls_finish_that_wait(url):
    store = JobStore(url)
    async with store:
        waiting = [asyncio.create_task(store.list()) for _ in range(3)]
        await asyncio.sleep(0)
        await store.close()
    assert await asyncio.gather(*waiting) == [[], [], []]


async def test_a_part_has_the_columns_that_later_tables_have_too(store, url, sandbox):
    await sql(url, "ALTER TABLE outcomes ADD COLUMN later integer NOT NULL DEFAULT 5")
    await sql(url, "ALTER TABLE records ADD COLUMN later text")
    job = await store.submit(pairs(2), project_id=PROJECT)
    async with working(url, sandbox):
        assert (await ended(store, job)).updated == 2
    assert await sql(url, "SELECT DISTINCT later FROM outcomes") == [(5,)]


async def test_secrets_are_nowhere_in_the_database(store, url, sandbox, cluster, tmp_path):
    sandbox.fail_next(404, message_id="ID1")
    job = await store.submit(pairs(3), project_id=PROJECT)
    async with working(url, sandbox):
        await ended(store, job)
    dump = subprocess.run(["pg_dump", "-n", "sinch_conv", url], capture_output=True, check=True)
    assert b"m-1" in dump.stdout
    assert sandbox.client_options()["key_secret"].encode() not in dump.stdout
    assert sandbox.client_options()["key_id"].encode() not in dump.stdout


async def test_a_role_that_may_not_make_a_schema_uses_one_that_is_there(cluster, empty_url):
    name = empty_url.rpartition("/")[2]
    cluster.tell(f"CREATE ROLE r_{name} LOGIN")
    subprocess.run(
        ["psql", "-q", "-d", empty_url, "-c", f"CREATE SCHEMA sinch_conv AUTHORIZATION r_{name}"],
        check=True,
    )
    mine = empty_url.replace("tester@", f"r_{name}@")
    await JobStore(mine).create_schema()
    assert await JobStore(mine).list() == []


async def test_outcomes_of_a_job_that_fails_in_the_middle(store, url, sandbox):
    """A reader that leaves in the middle leaves no connection behind."""
    job = await store.submit(pairs(1_100), project_id=PROJECT)
    async with working(url, sandbox):
        await ended(store, job)
    rows = store.outcomes(job)
    assert (await anext(rows)).record == 1
    await rows.aclose()
    left = await sql(
        url, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    )
    assert left == [(2,)]
    assert len(await outcomes_of(store, job)) == 1_100


@pytest.mark.alone
async def test_a_job_with_many_failed_records_is_kept_while_they_are_loaded(store, url, sandbox):
    """So many of them take longer to load than this worker's hold lasts."""
    number = 60_000
    job = await store.submit(pairs(1), project_id=PROJECT)
    await sql(
        url,
        f"INSERT INTO records_{job} SELECT {job}, n, n, 'ID' || n, 'x', NULL "
        f"FROM generate_series(2, {number}) n",
    )
    await sql(
        url,
        f"INSERT INTO outcomes_{job} (job, record, outcome) "
        f"SELECT {job}, n, 'failed' FROM generate_series(2, {number}) n",
    )
    await sql(url, "UPDATE jobs SET records = %s, failed = %s", number, number - 1)
    async with working(url, sandbox):
        status = await ended(store, job)
    assert (status.state, status.updated, status.failed) == ("done", 1, number - 1)
    assert await sql(url, "SELECT epoch FROM jobs") == [(1,)]
