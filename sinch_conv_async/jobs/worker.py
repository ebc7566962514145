"""A worker: takes jobs of the projects whose credentials it has, and sends them.

Three things run side by side, each of which survives a database that goes away:

- procrastinate's worker fetches a job whenever a project is free, several at a time.
- :func:`~.retake.retake` puts the jobs of dead workers back, once in a third of ``retake_after``.
- For each job, a :class:`~.ledger.PostgresLedger` writes the outcomes and keeps the hold, and the
  same :class:`Run` that a journal has sends the records.

A worker that cannot open a new connection for ``retake_after`` gives its jobs back and lets go of
all its connections: so a server that is shut down in the patient way does not wait for it. Then it
tries again until the server is back.
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
"""Seconds after the last sign of a worker until others take its jobs."""

JOBS: Final = 5
CONNECTIONS: Final = 256


class NotTakenError(Exception):
    """The database did not let the worker take a job."""


@attrs.frozen
class WorkerReport:
    """What a worker did: ``ended`` has the state of each job that ended with it.

    ``given_back`` has how many records remain of each job that another worker will go on with.
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
    """Does jobs until ``stop`` is set, and then says what it did and gave back.

    ``credentials``: keywords of :class:`~sinch_conv_async.ConversationClient`, once for each
    project; those of the environment when not given. ``jobs``: jobs at a time, each of another
    project. ``max_connections``: exchanges under way at a time, over all jobs. ``fleet``: shares
    the limit of each project with other processes. ``retake_after``: seconds after this worker's
    last sign of life until others take its jobs, 3 or more on a network that is not quick.

    ``stop`` ends it in an orderly way: what is under way is finished, the rest is given back.
    Cancelling it does the same without finishing what is under way, which may then be sent twice.
    Raises :class:`JobStoreError` if the database cannot be used at the beginning; later it waits
    for the database. Raises :class:`~sinch_conv_async.InvalidArgumentError` for wrong credentials.
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
    """The options of a client by project. A client is made of each, to check them now."""
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
        """Works until ``stopping`` is set, again from the start whenever something ends it."""
        while not self.stopping.is_set():
            self.letting_go = False
            try:
                await self._work()
            except (psycopg.Error, ConnectorException, OSError) as error:
                log(WARNING, "the worker waits for the database: %s", type(error).__name__)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), self.seconds / 3)

    async def _work(self) -> None:
        """Until ``stopping`` is set, or the database lets nobody in any more."""
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
        """Ends the tasks. The engine's waits for the jobs, which finish what is under way.

        Cancelled once more, the engine would not wait for the jobs any more.
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
        """Puts lost jobs back; each time on a new connection, to see whether the server takes one.

        Raises psycopg.Error when it has taken none for ``seconds``.
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
        """What procrastinate calls for each job. Raises GiveBack if it has not ended."""
        engine = context.job
        assert engine.id is not None  # it was fetched
        hold = Hold(engine.id, engine.worker_id, engine.attempts, self.name, self.seconds)
        try:
            ledger = await PostgresLedger.take(self.dsn, job, hold)
        except psycopg.Error as problem:
            # No GiveBack: the job is tried again in a second, and not at once.
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
        """Sends what remains; the state that the job is left in."""
        spec = ledger.spec
        run = Run(
            ledger,
            _Outage(ledger),
            merge=bool(spec.options.get("merge")),
            total=spec.records,
            limit=_limit(spec),
        )
        # The limit on failures is the whole job's.
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
            # The run comes to the same error, and ends with it.
            _ = task.cancelled() or task.exception()

        keeping.add_done_callback(stop_too)
        error: Exception | None = None
        try:
            error = await self._run(run, ledger)
        finally:
            self.runs.discard(run)
            ledger.let_go()
            ending = ending_of(run, ledger, error)
            # Shielded: what is known of the outcomes is written, whatever happens to this task.
            writing = asyncio.ensure_future(self._end(ledger, keeping, *ending))
            try:
                state = await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait([writing])
                raise
        return state

    async def _run(self, run: Run, ledger: PostgresLedger) -> Exception | None:
        """Sends; the error that ended the run, if one did."""
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
        """Writes how the job is left, and notes it for the report."""
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
    """The state that a job is to be left in, and the error that its row shows."""
    if isinstance(error, LedgerError) or ledger.late:
        return "queued", None
    if error is not None:
        return "failed", f"{type(error).__name__}: {error}"
    if not run.unfinished:
        return "done", None
    if run.over_limit:
        limit = f"more than {_limit(ledger.spec)} of the updates failed"
        return "failed", f"{limit}, so the rest was not tried"
    return "queued", None  # it was stopped, or is to be cancelled


class _Outage:
    """Shows an outage in the job's row; all else stands in its counters."""

    def __init__(self, ledger: PostgresLedger) -> None:
        self._ledger = ledger

    def start(self, total: int | None, done: int) -> None:
        """Shows nothing."""

    def see(self, done: int, failed: int, *, outage: str | None) -> None:
        """Notes the error that the job waits for the end of."""
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
