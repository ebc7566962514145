"""A worker takes jobs of the projects whose credentials it has, and sends their updates.

Three parts run at the same time. Each part continues when a lost database is back:

- procrastinate's worker fetches jobs: at most ``jobs`` at a time, and at most one for each project.
- :func:`~.retake.retake` puts the jobs of dead workers back into the queue. It runs three times in
  ``retake_after`` seconds.
- For each job, a :class:`~.ledger.PostgresLedger` writes the outcomes and keeps the hold. A
  :class:`Run` sends the records, as it does for a job with a journal.

If a worker cannot open a new connection for ``retake_after`` seconds, it gives its jobs back and
closes all its connections. The reason: a server in a smart shutdown accepts no new connection, and
waits until all connections are closed. Then the worker tries again until the server is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs
import psycopg
from procrastinate import App
from procrastinate.exceptions import ConnectorException
from procrastinate.job_context import JobContext

from .._core.log import INFO, WARNING, log
from .._core.manager import SessionManager
from .._job.input import InputError
from .._job.ledger import LedgerError, Outcome
from .._job.run import Counts, FailureLimit, Run
from ..client import ClientOptions, ConversationClient
from ..errors import InvalidArgumentError, SinchError
from ..fleet import Fleet
from .database import dsn_of, open_connection
from .engine import TASK, Again, GiveBack, app_of, queue_of
from .ledger import Hold, PostgresLedger, Spec
from .retake import retake
from .store import JobStore, positive

__all__ = ["RETAKE_AFTER", "WorkerReport", "run_worker"]

RETAKE_AFTER: Final = 3.0
"""So many seconds after a worker's last flush, other workers take its job."""

JOBS: Final = 5
"""By default, a worker runs so many jobs at a time."""

CONNECTIONS: Final = 256
"""By default, so many HTTP exchanges run at a time, over all jobs of a worker."""


class NotTakenError(Exception):
    """The worker could not take a job, because of an error of the database."""


@attrs.frozen
class WorkerReport:
    """The result of a worker. ``ended``: the final state of each job that this worker ended.

    ``given_back``: for each job that was given back, how many records remain for another worker.
    """

    ended: Mapping[int, str]
    given_back: Mapping[int, int]


async def run_worker(
    dsn: str,
    *,
    credentials: Iterable[ClientOptions] = (),
    jobs: int = JOBS,
    max_connections: int = CONNECTIONS,
    fleet: Fleet | None = None,
    proxy: str | None = None,
    retake_after: float = RETAKE_AFTER,
    stop: asyncio.Event | None = None,
) -> WorkerReport:
    """Work on jobs until ``stop`` is set; then return a report.

    ``credentials``: for each project, the keywords of a
    :class:`~sinch_conv_async.ConversationClient`; by default one client with the options from the
    environment. ``jobs``: how many jobs run at a time, each of another project.
    ``max_connections``: how many HTTP exchanges run at a time, over all jobs. ``fleet``: the fleet
    that shares the limit of each project with other processes. ``retake_after``: so many seconds
    after this worker's last flush, other workers take its jobs; use 3 or more on a slow network.

    When ``stop`` is set, the worker finishes the updates under way and gives its jobs back. If this
    coroutine is cancelled, the worker gives its jobs back without finishing these updates; another
    worker may then send them again. Raises :class:`JobStoreError` if the database cannot be used at
    the beginning. If the database is lost later, the worker waits for it. Raises
    :class:`~sinch_conv_async.InvalidArgumentError` for wrong credentials.
    """
    if type(jobs) is not int or jobs < 1:
        raise InvalidArgumentError("jobs must be a whole number, 1 or more")
    if positive("retake_after", retake_after) is None:
        raise InvalidArgumentError("retake_after must be a positive, finite number")
    keys = _keys(credentials)
    worker = _Worker(
        dsn=dsn_of(dsn),
        keys=keys,
        manager=SessionManager(max_connections=max_connections, fleet=fleet, proxy=proxy),
        jobs=jobs,
        seconds=retake_after,
        stopping=stop or asyncio.Event(),
    )
    await JobStore(dsn).check_schema()
    async with worker.manager:
        await worker.run()
    return WorkerReport(worker.ended, worker.given_back)


def _keys(credentials: Iterable[ClientOptions]) -> dict[str, ClientOptions]:
    """For each project, the options of its client. A client is made now to check the options."""
    keys: dict[str, ClientOptions] = {}
    for options in list(credentials) or [ClientOptions()]:
        ConversationClient.from_env(**options)
        keys[options.get("project_id") or os.environ["SINCH_PROJECT_ID"]] = options
    return keys


@attrs.define(eq=False)
class _Worker:
    dsn: str
    keys: Mapping[str, ClientOptions] = attrs.field(repr=False)
    manager: SessionManager
    jobs: int
    seconds: float
    stopping: asyncio.Event
    name: str = attrs.field(factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    runs: set[Run] = attrs.field(factory=set[Run])
    tasks: set[asyncio.Task[Any]] = attrs.field(factory=set[asyncio.Task[Any]])
    letting_go: bool = False
    ended: dict[int, str] = attrs.field(factory=dict[int, str])
    given_back: dict[int, int] = attrs.field(factory=dict[int, int])

    async def run(self) -> None:
        """Work until ``stopping`` is set. After an error of the database, begin again."""
        while not self.stopping.is_set():
            self.letting_go = False
            try:
                await self._work()
            except (psycopg.Error, ConnectorException, OSError) as error:
                log(WARNING, "the worker waits for the database: %s", type(error).__name__)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), self.seconds / 3)

    async def _work(self) -> None:
        """Work until ``stopping`` is set, or until the database accepts no new connection."""
        app = app_of(self.dsn)
        app.task(name=TASK, pass_context=True, retry=Again())(self._do)
        async with app.open_async():
            tasks = {
                asyncio.create_task(self._engine(app), name="sinch_conv_async engine"),
                asyncio.create_task(self._retake(), name="sinch_conv_async retake"),
                asyncio.create_task(self.stopping.wait(), name="sinch_conv_async stop"),
            }
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                await self._let_go(tasks)
            except asyncio.CancelledError:
                for sending in self.tasks:
                    sending.cancel()
                await self._let_go(tasks)
                raise
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _let_go(self, tasks: set[asyncio.Task[Any]]) -> None:
        """End the tasks. The engine's task waits until the jobs have finished their updates.

        Cancel each task only once: after a second cancellation, the engine would not wait for the
        jobs.
        """
        if not self.letting_go:
            self.letting_go = True
            for run in self.runs:
                run.stop()
            for task in tasks:
                task.cancel()
        await asyncio.wait(tasks)

    async def _engine(self, app: App) -> None:
        await app.run_worker_async(
            queues=[queue_of(project_id) for project_id in self.keys],
            name=self.name,
            concurrency=self.jobs,
            wait=True,
            fetch_job_polling_interval=self.seconds / 6,
            listen_notify=False,
            delete_jobs="always",
            install_signal_handlers=False,
            update_heartbeat_interval=self.seconds / 3,
            stalled_worker_timeout=max(30.0, 10 * self.seconds),
        )

    async def _retake(self) -> None:
        """Put lost jobs back at intervals.

        Each time a new connection is opened, to see whether the server still accepts one. Raises
        psycopg.Error if the server has accepted no connection for ``seconds``.
        """
        failed = 0
        while True:
            try:
                connection = await open_connection(self.dsn)
                async with connection:
                    await retake(connection, self.seconds)
            except psycopg.Error:
                failed += 1
                if failed > 3:
                    raise
            else:
                failed = 0
            await asyncio.sleep(self.seconds / 3)

    # One job

    async def _do(self, context: JobContext, job: int) -> None:
        """Do one job; procrastinate calls this. Raises GiveBack if the job has not ended."""
        engine = context.job
        assert engine.id is not None  # a fetched job has an id
        hold = Hold(engine.id, engine.worker_id, engine.attempts, self.name, self.seconds)
        try:
            ledger = await PostgresLedger.take(self.dsn, job, hold)
        except psycopg.Error as problem:
            # Raise no GiveBack, so that the job is tried again after a second, and not at once.
            raise NotTakenError(type(problem).__name__) from None
        if ledger is None:
            return
        log(INFO, "job %d: %d records remain", job, _remaining(ledger), job=job)
        this = asyncio.current_task()
        assert this is not None  # procrastinate makes a task of each job
        self.tasks.add(this)
        try:
            ending = await self._send(ledger)
        finally:
            self.tasks.discard(this)
            await ledger.close()
        if ending == "queued":
            raise GiveBack

    async def _send(self, ledger: PostgresLedger) -> str:
        """Send the remaining records; return the state in which the job is left."""
        spec = ledger.spec
        run = Run(
            ledger,
            _Outage(ledger),
            merge=bool(spec.options.get("merge")),
            total=spec.records,
            limit=_limit(spec),
        )
        # Begin with the counts of earlier holds: the limit on failures is for the whole job.
        run.counts = Counts(
            updated=ledger.counts[Outcome.UPDATED],
            unchanged=ledger.counts[Outcome.UNCHANGED],
            failed=ledger.counts[Outcome.FAILED],
        )
        self.runs.add(run)
        if self.letting_go:
            run.stop()
        keeping = asyncio.create_task(ledger.keep(run.stop), name="sinch_conv_async hold")

        def stop_too(task: asyncio.Task[None]) -> None:
            run.stop()
            # Only mark the error as read: the run meets the same error, and ends with it.
            _ = task.cancelled() or task.exception()

        keeping.add_done_callback(stop_too)
        error: Exception | None = None
        try:
            error = await self._run(run, ledger)
        finally:
            self.runs.discard(run)
            ledger.let_go()
            ending = ending_of(run, ledger, error)
            # Shield this: the known outcomes must be written even if this task is cancelled.
            writing = asyncio.ensure_future(self._end(ledger, keeping, *ending))
            try:
                state = await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait([writing])
                raise
        return state

    async def _run(self, run: Run, ledger: PostgresLedger) -> Exception | None:
        """Send the records; return the error that ended the run, if there was one."""
        spec = ledger.spec
        options: ClientOptions = {**self.keys[spec.project_id], "session_manager": self.manager}
        if spec.region is not None:
            options["conversation_region"] = spec.region  # type: ignore[typeddict-item]  # checked when it was submitted
        if (rate := spec.options.get("rate_limit")) is not None:
            options["rate_limit"] = rate
        try:
            await ledger.load_failed()
            async with ConversationClient.from_env(**options) as client:
                await run.go(
                    client,
                    ledger.records(),
                    concurrency=spec.options.get("concurrency"),
                    max_outage=spec.options.get("max_outage"),
                    may_send=ledger.may_send,
                )
        except (SinchError, InputError, LedgerError) as error:
            return error
        return None

    async def _end(
        self,
        ledger: PostgresLedger,
        keeping: asyncio.Task[None],
        state: str,
        error: str | None,
    ) -> str:
        """Write the job's state to the database, and note it for the report."""
        await asyncio.wait([keeping])
        job = ledger.spec.id
        left = await ledger.end(state, error)
        if left is None:
            log(WARNING, "job %d is no longer this worker's", job, job=job)
            return "queued"
        if left == "queued":
            self.given_back[job] = _remaining(ledger)
            log(INFO, "job %d is given back, %d records remain", job, _remaining(ledger), job=job)
        else:
            self.ended[job] = left
            self.given_back.pop(job, None)
            log(INFO, "job %d is %s", job, left, job=job)
        return left


def ending_of(run: Run, ledger: PostgresLedger, error: Exception | None) -> tuple[str, str | None]:
    """The state in which to leave a job, and the error for its row."""
    if isinstance(error, LedgerError) or ledger.late:
        return "queued", None
    if error is not None:
        return "failed", f"{type(error).__name__}: {error}"
    if not run.unfinished:
        return "done", None
    if run.over_limit:
        limit = f"more than {_limit(ledger.spec)} of the updates failed"
        return "failed", f"{limit}, so the rest was not tried"
    return "queued", None  # the worker stops, or a user has asked to cancel the job


class _Outage:
    """Shows an outage in the job's row. The counters of the row show everything else."""

    def __init__(self, ledger: PostgresLedger) -> None:
        self._ledger = ledger

    def start(self, total: int | None, done: int) -> None:
        """Shows nothing."""

    def see(self, done: int, failed: int, *, outage: str | None) -> None:
        """Note the error of the outage that the job waits for."""
        self._ledger.outage = None if outage is None else f"waiting for the API: {outage}"

    def say(self, sentence: str) -> None:
        """Shows nothing."""

    def stop(self) -> None:
        """Shows nothing."""


def _limit(spec: Spec) -> FailureLimit | None:
    number, percent = (spec.options.get(f"max_failures{name}") for name in ("", "_percent"))
    if percent is not None:
        return FailureLimit(percent, percent=True)
    return None if number is None else FailureLimit(number)


def _remaining(ledger: PostgresLedger) -> int:
    return ledger.spec.records - sum(ledger.counts.values())
