"""What is not planned: workers killed and stopped, the database restarted, full, frozen, cut off,
of another version.

After each, every record has one outcome and every message the right metadata; what was sent twice
is at most what was not yet written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from procrastinate.jobs import Job, Status

from sinch_conv_async import ConversationClient, SessionManager
from sinch_conv_async._job.ledger import Entry, LedgerError, Outcome
from sinch_conv_async.fleet.postgres import PostgresFleet
from sinch_conv_async.jobs import JobStore, JobStoreError, SchemaError, engine, run_worker
from sinch_conv_async.jobs.database import dsn_of
from sinch_conv_async.jobs.ledger import Hold, PostgresLedger
from tests.commands import Running, environment_of, unmeasured
from tests.whole.fleet.stores import Postgres
from tests.whole.jobs.database import (
    PROJECT,
    QUICK,
    new_database,
    outcomes_of,
    until_ended,
    until_state,
    working,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from typing import Self

    from sinch_conv_async.sandbox import Sandbox

pytestmark = pytest.mark.needs_program("initdb")

UNFLUSHED = 400
"""Outcomes that may wait to be written down."""

WORKER = ("jobs", "worker", "-v", "--retake-after", str(QUICK))


def updates(number: int) -> list[tuple[str, str]]:
    """Every third id stands in two records, 50 records apart; the later one must win."""
    rows = [(f"ID{row}", f"first-{row}") for row in range(number)]
    for row in range(50, number, 3):
        rows[row] = (f"ID{row - 50}", f"second-{row}")
    return rows


def check_metadata(sandbox: Sandbox, rows: list[tuple[str, str]]) -> None:
    for name, metadata in dict(rows).items():
        assert sandbox.messages[name].metadata == metadata, name


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def query(url: str, statement: str) -> list[tuple[object, ...]]:
    options = "-c search_path=sinch_conv"
    async with await psycopg.AsyncConnection.connect(
        url, options=options, autocommit=True
    ) as connection:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


@contextlib.asynccontextmanager
async def commands(
    url: str, sandbox: Sandbox, folder: Path, number: int
) -> AsyncIterator[list[Running]]:
    environment = environment_of(sandbox, SINCH_CONV_DATABASE=url)
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(Running(WORKER, unmeasured(environment), folder))
            for _ in range(number)
        ]
        for worker in workers:
            await worker.says("Waiting for jobs.")
        yield workers


def holder_among(workers: list[Running], name: str | None) -> Running:
    assert name is not None
    pid = int(name.rpartition(":")[2])
    (found,) = (worker for worker in workers if worker.process.pid == pid)
    return found


# Workers


async def test_a_worker_that_is_killed_loses_nothing(store, url, sandbox, tmp_path):
    rows = updates(900)
    async with commands(url, sandbox, tmp_path, 2) as workers:
        job = await store.submit(rows, project_id=PROJECT, concurrency=20, rate_limit=400)
        await sandbox.wait_for_requests(200)
        victim = holder_among(workers, (await store.status(job)).worker)
        victim.send(signal.SIGKILL)
        status = await until_ended(store, job)
        assert status.worker is not None
        assert status.worker.rpartition(":")[2] != str(victim.process.pid)
    assert (status.state, status.remaining, status.failed) == ("done", 0, 0)
    assert await outcomes_of(store, job) == dict.fromkeys(range(1, 901), "updated")
    check_metadata(sandbox, rows)
    assert len(sandbox.requests) - 900 <= UNFLUSHED + 20


async def test_a_worker_that_was_stopped_sends_nothing_after_another_took_over(
    store, url, sandbox, tmp_path
):
    """Updates of it wait for their turn when it is stopped; the other one has done them since."""
    rows = updates(300)
    async with commands(url, sandbox, tmp_path, 2) as workers:
        job = await store.submit(rows, project_id=PROJECT, concurrency=100, rate_limit=150)
        await sandbox.wait_for_requests(50)
        victim = holder_among(workers, (await store.status(job)).worker)
        victim.send(signal.SIGSTOP)
        status = await until_ended(store, job)
        sent = len(sandbox.requests)
        victim.send(signal.SIGCONT)
        await victim.says("is no longer this worker's")
        assert len(sandbox.requests) == sent
        victim.send(signal.SIGTERM)
        ended = await victim.ends()
        assert ended.code == 0
        assert "Gave back nothing." in ended.err
    assert (status.state, status.updated) == ("done", 300)
    assert await JobStore(url).status(job) == status
    check_metadata(sandbox, rows)


async def test_a_worker_of_which_only_the_network_is_gone_stops_sending(store, url, sandbox):
    """Its database connections hang; another worker, with a way of its own, goes on."""
    rows = updates(400)
    async with Cutter(url) as cutter:
        job = await store.submit(rows, project_id=PROJECT, concurrency=20, rate_limit=300)
        async with working(cutter.url, sandbox):
            await sandbox.wait_for_requests(60)
            cutter.frozen.clear()
            while (await store.status(job)).state == "running":
                await asyncio.sleep(QUICK / 10)
                held = await query(url, "SELECT held_until > clock_timestamp() FROM jobs")
                if held == [(False,)]:
                    break
            sent = len(sandbox.requests)
            await asyncio.sleep(QUICK / 2)
            assert len(sandbox.requests) == sent  # the lease was over before the hold
            async with working(url, sandbox):
                status = await until_ended(store, job)
            cutter.frozen.set()
    assert (status.state, status.updated) == ("done", 400)
    check_metadata(sandbox, rows)


@pytest.mark.parametrize(
    "damage",
    [
        "SELECT procrastinate_fetch_job_v2(NULL, NULL); DELETE FROM procrastinate_events",
        "DELETE FROM procrastinate_jobs",
        "UPDATE procrastinate_jobs SET status = 'aborted'",
        "UPDATE procrastinate_jobs SET status = 'failed'",
        "UPDATE jobs SET state = 'running', held_until = now() - interval '1 s'",
    ],
    ids=["fetched", "missing", "aborted", "failed", "waiting"],
)
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_job_that_the_engine_has_given_up_is_put_back(
    store, url, sandbox, damage, cancelled
):
    """A worker died between two steps, or the engine ended its job for good."""
    job = await store.submit(updates(3), project_id=PROJECT)
    await query(url, damage)
    if cancelled:
        await query(url, "UPDATE jobs SET cancel_requested = true")
    async with working(url, sandbox):
        status = await until_ended(store, job)
    assert status.state == ("cancelled" if cancelled else "done")


async def test_a_dead_workers_job_that_is_to_be_cancelled_is(store, url, sandbox):
    job = await store.submit(updates(3), project_id=PROJECT)
    await query(
        url,
        "SELECT procrastinate_fetch_job_v2(NULL, NULL); "
        "UPDATE jobs SET state = 'running', held_until = now() - interval '1 s'",
    )
    assert (await store.cancel(job)).state == "running"
    async with working(url, sandbox):
        assert (await until_ended(store, job)).state == "cancelled"
    assert not sandbox.requests


async def test_a_worker_that_was_taken_for_dead_registers_again(store, url, sandbox):
    async with working(url, sandbox):
        await until_rows(url, "SELECT id FROM procrastinate_workers", 1)
        await query(url, "DELETE FROM procrastinate_workers")
        await until_rows(url, "SELECT id FROM procrastinate_workers", 1)
        job = await store.submit(updates(3), project_id=PROJECT)
        assert (await until_ended(store, job)).state == "done"


async def until_rows(url: str, statement: str, number: int) -> None:
    while len(await query(url, statement)) != number:
        await asyncio.sleep(0.02)


async def test_a_worker_that_is_stopped_while_it_takes_a_job_gives_it_back(
    store, url, sandbox, monkeypatch
):
    stop, take = asyncio.Event(), PostgresLedger.take

    async def stopped(*given: Any) -> PostgresLedger | None:
        stop.set()
        for _ in range(20):
            await asyncio.sleep(0)
        return await take(*given)

    monkeypatch.setattr(PostgresLedger, "take", stopped)
    job = await store.submit(updates(30), project_id=PROJECT)
    report = await run_worker(
        url, credentials=[sandbox.client_options()], stop=stop, retake_after=QUICK
    )
    assert report.given_back == {job: 30}
    assert (await store.status(job)).state == "queued"


async def test_a_job_that_is_cancelled_twice_writes_its_outcomes(store, url, sandbox):
    """The second time while the outcomes are being written; that waits for a lock."""
    job = await store.submit(updates(50), project_id=PROJECT, concurrency=1, rate_limit=100)
    async with working(url, sandbox, retake_after=20.0):
        await sandbox.wait_for_requests(10)
        (task,) = (
            task for task in asyncio.all_tasks() if task.get_name().startswith("process job")
        )
        async with await psycopg.AsyncConnection.connect(url) as other:
            await other.execute("SELECT FROM sinch_conv.jobs FOR UPDATE")
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0.1)
        status = await until_ended(store, job)
    assert status.updated == 50
    assert len(sandbox.requests) <= 51  # the one that was under way


async def test_a_hold_on_a_job_writes_full_batches_and_ends_with_the_database(
    store, url, sandbox, cluster, monkeypatch
):
    monkeypatch.setattr("sinch_conv_async.jobs.ledger.RATE_OVER", 0.0)
    await store.submit(updates(500), project_id=PROJECT)
    [(worker,)] = await query(url, "INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id")
    [(engine_job, attempts)] = await query(
        url, f"SELECT id, attempts FROM procrastinate_fetch_job_v2(NULL, {worker})"
    )
    hold = Hold(engine_job, worker, attempts, "test", QUICK)
    ledger = await PostgresLedger.take(dsn_of(url), 1, hold)
    assert ledger is not None
    assert await PostgresLedger.take(dsn_of(url), 1, hold) is None
    records = [record async for record in ledger.records()]
    assert all(ledger.agrees(record) and ledger.state(record.number) is None for record in records)
    for record in records[:UNFLUSHED]:
        assert (await store.status(1)).updated == 0
        await ledger.write(Entry(record=record.number, outcome=Outcome.UPDATED))
    assert (await store.status(1)).updated == UNFLUSHED
    await store.close()
    cluster.tell(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
    with pytest.raises(LedgerError, match="the database gave no answer: OperationalError"):
        await ledger.flush()
    assert await ledger.end("done", None) is None
    await ledger.close()


async def test_the_engine_is_patient_with_a_database_that_is_gone(url, cluster, monkeypatch):
    monkeypatch.setattr(engine, "PERSIST_FOR", 1)
    job = Job(
        id=1, queue="q", lock=None, queueing_lock=None, task_name="t", worker_id=1, attempts=0
    )
    app = engine.app_of(dsn_of(url), timeout=0.1)
    async with app.open_async():
        cluster.tell(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
        jobs = app.job_manager
        assert await jobs.fetch_job(None, 1) is None
        await jobs.update_heartbeat(1)
        await jobs.unregister_worker(1)
        await jobs.finish_job(job, Status.SUCCEEDED, delete_job=True)


# The database


@pytest.fixture
def own_cluster() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.mark.parametrize(
    "mode", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=["smart", "fast", "immediate"]
)
async def test_a_restart_of_the_database_loses_nothing(own_cluster, sandbox, mode):
    url = new_database(own_cluster)
    await JobStore(url).create_schema()
    rows = updates(700)
    async with working(url, sandbox):
        job = await JobStore(url).submit(rows, project_id=PROJECT, concurrency=20, rate_limit=250)
        await sandbox.wait_for_requests(100)
        assert own_cluster.process is not None
        own_cluster.process.send_signal(mode)
        # The patient way waits for the worker, which lets go.
        await asyncio.to_thread(own_cluster.process.wait)
        (own_cluster.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        await asyncio.to_thread(own_cluster.start)
        status = await until_ended(JobStore(url), job)
    assert (status.state, status.updated, status.remaining) == ("done", 700, 0)
    assert len(await outcomes_of(JobStore(url), job)) == 700
    check_metadata(sandbox, rows)
    assert len(sandbox.requests) - 700 <= UNFLUSHED + 20


async def test_a_database_that_is_frozen_stops_the_sending_and_then_goes_on(own_cluster, sandbox):
    url = new_database(own_cluster)
    await JobStore(url).create_schema()
    rows = updates(400)
    async with working(url, sandbox):
        job = await JobStore(url).submit(rows, project_id=PROJECT, concurrency=20, rate_limit=200)
        await sandbox.wait_for_requests(50)
        own_cluster.freeze()
        await asyncio.sleep(QUICK)
        sent = len(sandbox.requests)
        await asyncio.sleep(QUICK)
        assert len(sandbox.requests) == sent
        own_cluster.resume()
        status = await until_ended(JobStore(url), job)
    assert (status.state, status.updated) == ("done", 400)
    check_metadata(sandbox, rows)


class Cutter:
    """A TCP proxy before the database, which cuts a connection once a flush has gone through it.

    ``cuts``: how many flushes are applied whose answer never comes. ``frozen``: nothing goes
    through while it is not set.
    """

    def __init__(self, url: str, cuts: int = 0) -> None:
        address, _, name = url.removeprefix("postgresql://tester@").partition("/")
        host, _, port = address.partition(":")
        self._behind = (host, int(port))
        self._name = name
        self._cuts = cuts
        self._tasks: set[asyncio.Task[None]] = set()
        self.frozen = asyncio.Event()
        self.frozen.set()
        self.cut = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://tester@127.0.0.1:{port}/{self._name}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await asyncio.sleep(0)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        assert this is not None
        self._tasks.add(this)
        this.add_done_callback(self._tasks.discard)
        try:
            await self._between(reader, writer)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection(*self._behind)
        flushing = asyncio.Event()
        ways = [
            asyncio.create_task(self._pass(reader, back_writer, flushing, answers=False)),
            asyncio.create_task(self._pass(back_reader, writer, flushing, answers=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            back_writer.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        flushing: asyncio.Event,
        *,
        answers: bool,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self.frozen.wait()
                if not answers and b"WITH held AS" in data and self.cut < self._cuts:
                    flushing.set()
                if answers and flushing.is_set():
                    self.cut += 1  # the server has answered, so the statement was applied
                    return
                writer.write(data)
                await writer.drain()


async def test_a_connection_that_is_cut_before_the_answer_counts_nothing_twice(store, url, sandbox):
    rows = updates(500)
    job = await store.submit(rows, project_id=PROJECT, concurrency=20, rate_limit=400)
    async with Cutter(url, cuts=4) as cutter:
        async with working(cutter.url, sandbox):
            status = await until_ended(store, job)
        assert cutter.cut == 4
    assert (status.state, status.updated, status.remaining) == ("done", 500, 0)
    assert await outcomes_of(store, job) == dict.fromkeys(range(1, 501), "updated")
    assert len(sandbox.requests) == 500  # the connection was made anew within the hold


@pytest.fixture
def small_url(own_cluster: Postgres) -> Iterator[str]:
    """A database in a small file system of its own."""
    disk = own_cluster.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=777", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        space = disk / "space"
        space.mkdir(mode=0o700)
        if own_cluster.user is not None:
            shutil.chown(space, own_cluster.user)
        own_cluster.tell(
            f"CREATE TABLESPACE small LOCATION '{space}'",
            "CREATE DATABASE small TABLESPACE small",
        )
        yield own_cluster.url.replace("/postgres", "/small")
    finally:
        own_cluster.stop()
        subprocess.run(["umount", disk], check=True)


async def test_a_database_without_room_refuses_a_job_and_goes_on_with_the_others(
    small_url, sandbox
):
    store = JobStore(small_url)
    await store.create_schema()
    job = await store.submit(updates(300), project_id=PROJECT)
    with pytest.raises(JobStoreError, match=r"DiskFull \(53100\)"):
        await store.submit(
            ((f"ID{row}", "x" * 1_000) for row in range(100_000)), project_id=PROJECT
        )
    assert [status.id for status in await store.list()] == [job]
    async with working(small_url, sandbox):
        assert (await until_ended(store, job)).updated == 300


async def test_a_worker_without_room_for_outcomes_waits_for_it(small_url, sandbox):
    store, rows = JobStore(small_url), updates(400)
    await store.create_schema()
    job = await store.submit(rows, project_id=PROJECT, concurrency=20, rate_limit=200)
    await query(small_url, "CREATE TABLE ballast (text text)")
    async with working(small_url, sandbox):
        await sandbox.wait_for_requests(50)
        for rows_at_a_time in (2_000, 200, 20):
            with contextlib.suppress(psycopg.errors.DiskFull):
                while True:
                    await query(
                        small_url,
                        "INSERT INTO ballast SELECT repeat(md5(random()::text), 16) "
                        f"FROM generate_series(1, {rows_at_a_time})",
                    )
        await asyncio.sleep(2 * QUICK)
        await query(small_url, "DROP TABLE ballast")
        status = await until_ended(store, job)
    assert (status.state, status.updated) == ("done", 400)
    assert await outcomes_of(store, job) == dict.fromkeys(range(1, 401), "updated")
    check_metadata(sandbox, rows)


# Versions


async def test_tables_of_an_older_version_are_refused_with_what_to_do(store, url, sandbox):
    await query(url, "UPDATE version SET version = 0")
    with pytest.raises(SchemaError, match=r"version 0, and this .* needs 1; `sinch-conv jobs sch"):
        await store.list()
    with pytest.raises(SchemaError):
        await run_worker(url, credentials=[sandbox.client_options()])
    await store.create_schema()
    assert await store.list() == []
    await query(url, "DROP TABLE jobs")
    with pytest.raises(SchemaError, match="has no tables for jobs, or others"):
        await store.list()


async def test_the_engines_later_migrations_are_applied(store, url):
    """As if one had not been known when the tables were made."""
    late = "03.03.00_01_pre_priority_lock_fetch_job.sql"
    await query(url, f"UPDATE version SET engine = array_remove(engine, '{late}')")
    await query(url, "DROP FUNCTION procrastinate_fetch_job_v2")
    await store.create_schema()
    assert await query(url, f"SELECT '{late}' = ANY (engine) FROM version") == [(True,)]
    assert len(await query(url, "SELECT procrastinate_fetch_job_v2(NULL, NULL)")) == 1


async def test_a_program_works_with_later_tables_that_allow_it_and_with_no_others(
    store, url, sandbox
):
    """During an upgrade: the tables come first, and workers of both versions go on."""
    await query(url, "UPDATE version SET version = 2, least = 1")
    ours = await store.submit(updates(3), project_id=PROJECT)
    later = await store.submit(updates(3), project_id=PROJECT)
    # A job of a later format is in another queue.
    await query(
        url,
        "UPDATE procrastinate_jobs j SET queue_name = replace(queue_name, 'conv1:', 'conv2:'), "
        f"lock = replace(lock, 'conv1:', 'conv2:') FROM jobs WHERE jobs.id = {later} "
        "AND engine_job = j.id",
    )
    async with working(url, sandbox):
        assert (await until_ended(store, ours)).state == "done"
        await asyncio.sleep(QUICK)  # the others' jobs are not put back either
        assert (await store.status(later)).state == "queued"
    with pytest.raises(SchemaError, match="the tables have version 2, and this program would mak"):
        await store.create_schema()
    await query(url, "UPDATE version SET version = 3, least = 2")
    with pytest.raises(SchemaError, match="version 3, which needs a program of version 2 or later"):
        await store.list()


# One pace


async def test_workers_and_other_processes_of_a_fleet_share_one_pace(store, url, sandbox):
    sandbox_limit = 200
    job = await store.submit(updates(300), project_id=PROJECT, rate_limit=sandbox_limit)
    web = SessionManager(fleet=PostgresFleet(url, timeout=2.0))
    async with (
        web,
        ConversationClient(
            **sandbox.client_options(), session_manager=web, rate_limit=sandbox_limit
        ) as client,
        working(url, sandbox, fleet=PostgresFleet(url, timeout=2.0), retake_after=3.0),
    ):
        await until_state(store, job, "running")
        (member,) = web.stats().projects
        while (await store.status(job)).state == "running":
            await asyncio.gather(
                *(client.update_message_metadata(f"WEB{row}", "x") for row in range(20))
            )
            (member,) = web.stats().projects
        assert member.members in (1, 2)
        status = await store.status(job)
    assert (status.state, status.updated) == ("done", 300)
    seconds = Counter(int(request.time) for request in sandbox.requests)
    assert max(seconds.values()) <= 1.1 * sandbox_limit
