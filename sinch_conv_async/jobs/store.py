"""The store of jobs: hands jobs in, tells how far they are, takes them back."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import sys
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Final, Literal, LiteralString, Self

import attrs
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from .._job.input import Layout, Source
from .._wire.arguments import checked_id, checked_metadata, regional_origin
from ..enums import Region
from ..errors import InvalidArgumentError
from . import engine
from .database import Connection, connected, dsn_of, kept, open_connection, told
from .errors import JobNotFoundError, JobStateError, JobStoreError
from .intake import NO_NUL, NO_OBJECT, Updates, is_object, load, partition
from .schema import check_version, create

__all__ = ["FailedRecord", "JobOutcome", "JobStatus", "JobStore"]

JobState = Literal["queued", "running", "done", "cancelled", "failed"]

DROP_WAIT: Final = "50ms"
"""How long a deletion waits for those who read the parents of all partitions."""

DROP_TRIES: Final = 40
DROP_EVERY: Final = 0.25
"""Seconds between two tries to delete a job."""


@attrs.frozen
class JobStatus:
    """How far a job is.

    ``records``: those of its input. ``updated``, ``unchanged``, ``failed``, ``superseded``,
    ``invalid`` and ``remaining`` add up to it. ``rate``: records that ended, a second: in the last
    ten seconds while the job runs, over all the time of work afterwards. ``seconds``: of work.
    ``error``: what ended a failed job, or what a running one waits for. ``worker``: who has it, or
    had it last. ``cancel_requested``: the job ends as soon as its worker learns of it.
    """

    id: int
    state: JobState
    project_id: str
    region: str | None
    input: str
    records: int
    updated: int
    unchanged: int
    failed: int
    superseded: int
    invalid: int
    remaining: int
    rate: float
    seconds: float
    error: str | None
    worker: str | None
    cancel_requested: bool
    submitted_at: datetime.datetime
    started_at: datetime.datetime | None
    ended_at: datetime.datetime | None

    @property
    def final(self) -> bool:
        """Whether no worker will take the job any more."""
        return self.state in ("done", "cancelled", "failed")


@attrs.frozen
class JobOutcome:
    """The outcome of one record. ``superseded_by``: the record that updated the same message."""

    record: int
    line: int | None
    message_id: str | None
    outcome: Literal["updated", "unchanged", "failed", "superseded", "invalid"]
    attempts: int | None
    error: str | None
    http_status: int | None
    status: str | None
    request_id: str | None
    reason: str | None
    superseded_by: int | None
    ended_at: datetime.datetime


@attrs.frozen
class FailedRecord:
    """A record that failed, as it can be submitted again, and why it failed."""

    record: int
    line: int
    message_id: str
    metadata: str = attrs.field(repr=False)
    messages_source: str | None
    reason: str


_STATUS: Final = """
SELECT id, state, project_id, region, input, records, updated, unchanged, failed, superseded,
    invalid, remaining,
    CASE WHEN state IN ('queued', 'running') THEN
        CASE WHEN held_until > clock_timestamp() THEN rate ELSE 0 END
      WHEN seconds > 0 THEN (updated + unchanged + failed + superseded) / seconds ELSE 0 END,
    seconds, error, worker, cancel_requested, submitted_at, started_at, ended_at
  FROM jobs
"""

_OUTCOMES: Final = """
SELECT o.record, coalesce(o.line, r.line), r.message_id, o.outcome, o.attempts, o.error,
    o.http_status, o.status, o.request_id, o.reason, o.superseded_by, o.ended_at
  FROM {outcomes} o LEFT JOIN {records} r ON r.number = o.record ORDER BY o.record
"""

_FAILURES: Final = """
SELECT o.record, r.line, r.message_id, coalesce(r.metadata, j.options ->> 'metadata', ''),
    r.messages_source,
    concat_ws(': ', nullif(concat_ws(' ', o.http_status, o.error, o.status), ''), o.reason)
  FROM {outcomes} o JOIN {records} r ON r.number = o.record JOIN jobs j ON j.id = r.job
  WHERE o.outcome = 'failed' ORDER BY o.record
"""


class JobStore:
    """Jobs in a PostgreSQL database: ``JobStore("postgresql://user@host/name")``.

    Each call opens a connection of its own. In ``async with JobStore(...) as store`` there is one
    connection for all calls of the block, which then follow one another. Every call may raise
    :class:`JobStoreError`, and :class:`SchemaError` if the tables are missing or of another
    version. The constructor opens nothing; it raises
    :class:`~sinch_conv_async.InvalidArgumentError` for a string that is no connection string.

    No credentials are ever in the database. The metadata of the updates is, until the job is
    deleted.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn_of(dsn)
        self._kept: Connection | None = None
        self._turn: asyncio.Lock | None = None  # one call at a time on that connection

    def __repr__(self) -> str:
        return "<JobStore>"  # the connection string may hold a password

    async def __aenter__(self) -> Self:
        with told():
            self._kept = await open_connection(self._dsn)
        self._turn = asyncio.Lock()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection of an ``async with`` block; closing twice is fine."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        async with turn:  # after the calls that wait for it
            connection, self._kept = self._kept, None
            assert connection is not None  # __aenter__ has opened it
            await connection.close()

    @contextlib.asynccontextmanager
    async def _connection(self, *, check: bool = True) -> AsyncGenerator[Connection]:
        if self._turn is not None:
            async with self._turn:
                with told():
                    assert self._kept is not None  # __aenter__ has opened it
                    if self._kept.closed:
                        self._kept = await open_connection(self._dsn)
                    if check:
                        await check_version(self._kept)
                    yield self._kept
            return
        async with connected(self._dsn) as connection:
            if check:
                await check_version(connection)
            yield connection

    async def create_schema(self) -> None:
        """Makes the tables, procrastinate's among them, or brings them up to date.

        Does nothing where they are up to date. Raises SchemaError if they are of a later version.
        """
        async with self._connection(check=False) as connection:
            await create(connection)

    async def check_schema(self) -> None:
        """Raises SchemaError unless this version of the package can work with the tables."""
        async with self._connection():
            pass

    async def submit(
        self,
        updates: Updates,
        *,
        project_id: str | None = None,
        region: Region | str | None = None,
        merge: bool = False,
        layout: Layout | None = None,
        bad_lines: Literal["stop", "skip"] = "stop",
        rate_limit: float | None = None,
        concurrency: int | None = None,
        max_failures: float | None = None,
        max_failures_percent: float | None = None,
        max_outage: float | None = None,
        say: Callable[[str], None] | None = None,
    ) -> int:
        """Hands in a job, and returns its id. A worker takes it as soon as the call returns.

        ``updates``: the path of a CSV or of JSON Lines, or an iterable or asynchronous iterable of
        :class:`~sinch_conv_async.MetadataUpdate` objects or pairs of message id and metadata.
        ``project_id``: ``SINCH_PROJECT_ID`` when not given. ``region``: the worker's own when not
        given. ``merge``: the metadata of each update is a JSON object, to be merged into what the
        message has. ``layout``: how a file is written, as :class:`Layout`. ``bad_lines``: whether a
        line that is no update refuses the job or is left out. ``rate_limit``: requests a second.
        ``concurrency``: updates under way at a time. ``max_failures``,
        ``max_failures_percent``: the job ends when more updates than this have failed.
        ``max_outage``: seconds to wait for an API that takes no updates; ``None``: for ever.
        ``say`` is told of the first ten bad lines.

        All or nothing: an input that breaks off, or is refused, leaves no job behind. Raises
        InputError for an input that cannot be read.
        """
        project_id = checked_id("project_id", project_id or os.environ.get("SINCH_PROJECT_ID"))
        if region is not None:
            regional_origin(region)
        if bad_lines not in ("stop", "skip"):
            raise InvalidArgumentError("bad_lines must be 'stop' or 'skip'")
        given = updates.layout if isinstance(updates, Source) else layout or Layout()
        if merge:
            given = attrs.evolve(given, merge=True)
        options = {
            "merge": given.merge or None,
            "metadata": checked_constant(given),
            "rate_limit": positive("rate_limit", rate_limit),
            "concurrency": _whole("concurrency", concurrency),
            "max_failures": _up_to("max_failures", max_failures, sys.maxsize),
            "max_failures_percent": _up_to("max_failures_percent", max_failures_percent, 100),
            "max_outage": positive("max_outage", max_outage),
        }
        said = {name: value for name, value in options.items() if value is not None}
        async with self._connection() as connection, connection.transaction():
            row = await (
                await connection.execute(
                    "INSERT INTO jobs (project_id, region, input, options) "
                    "VALUES (%s, %s, %s, %s) RETURNING id",
                    [
                        project_id,
                        None if region is None else str(region),
                        kept(_name(updates)),
                        Jsonb(said),
                    ],
                )
            ).fetchone()
            assert row is not None  # the statement returns the row that it inserts
            job: int = row[0]
            taken = await load(
                connection, job, updates, given, skip=bad_lines == "skip", say=say or _silent
            )
            engine_job = await engine.defer(connection, job, project_id)
            await connection.execute(
                "UPDATE jobs SET records = %s, invalid = %s, engine_job = %s WHERE id = %s",
                [taken.records, taken.invalid, engine_job, job],
            )
        return job

    async def status(self, job: int) -> JobStatus:
        """How far the job is: one row is read. Raises JobNotFoundError."""
        async with self._connection() as connection:
            return await self._status(connection, job)

    async def list(self) -> list[JobStatus]:
        """All jobs, the newest first."""
        async with self._connection() as connection:
            rows = await (await connection.execute(f"{_STATUS} ORDER BY id DESC")).fetchall()
        return [JobStatus(*row) for row in rows]

    async def cancel(self, job: int) -> JobStatus:
        """Ends a job that waits, and asks the worker of a running one to end it.

        What is under way is finished. A job that has ended stays as it is. Raises JobNotFoundError.
        """
        async with self._connection() as connection, connection.transaction():
            row = await (
                await connection.execute(
                    "UPDATE jobs SET cancel_requested = true, "
                    "state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END, "
                    "ended_at = CASE state WHEN 'queued' THEN clock_timestamp() END "
                    "WHERE id = %s AND state IN ('queued', 'running') RETURNING state, engine_job",
                    [job],
                )
            ).fetchone()
            if row is not None and row[0] == "cancelled":
                await engine.cancel(connection, row[1])
            return await self._status(connection, job)

    async def retry(self, job: int) -> JobStatus:
        """Puts a job that has ended back into the queue: what failed and what remains is tried.

        Raises JobNotFoundError, and JobStateError for a job that has not ended.
        """
        async with self._connection() as connection, connection.transaction():
            status = await self._ended(connection, job)
            await connection.execute(
                sql.SQL("DELETE FROM {} WHERE outcome = 'failed'").format(
                    partition("outcomes", job)
                )
            )
            engine_job = await engine.defer(connection, job, status.project_id)
            await connection.execute(
                "UPDATE jobs SET state = 'queued', failed = 0, low = 0, cancel_requested = false, "
                "error = NULL, ended_at = NULL, engine_job = %s WHERE id = %s",
                [engine_job, job],
            )
            return await self._status(connection, job)

    async def delete(self, job: int) -> None:
        """Deletes a job that has ended, with its records and outcomes.

        Raises JobNotFoundError, and JobStateError for a job that has not ended.
        """
        for _ in range(DROP_TRIES):
            async with self._connection() as connection:
                if await self._delete(connection, job):
                    return
            await asyncio.sleep(DROP_EVERY)
        raise JobStoreError(
            f"job {job} was not deleted: others read the tables, such as a backup; try again later"
        )

    async def _delete(self, connection: Connection, job: int) -> bool:
        """Deletes a job if that can be done at once.

        A deletion that waits for a lock would delay every later operation, also of workers.
        """
        try:
            async with connection.transaction():
                await self._drop(connection, job)
        except psycopg.errors.LockNotAvailable:
            return False
        return True

    async def _drop(self, connection: Connection, job: int) -> None:
        await self._ended(connection, job)
        await connection.execute("SELECT set_config('lock_timeout', %s, true)", [DROP_WAIT])
        for table in ("records", "outcomes"):
            await connection.execute(sql.SQL("DROP TABLE {}").format(partition(table, job)))
        await connection.execute("DELETE FROM jobs WHERE id = %s", [job])

    async def outcomes(self, job: int) -> AsyncGenerator[JobOutcome, None]:
        """The outcome of each record that has one, in the order of the records."""
        async with contextlib.aclosing(self._rows(job, _OUTCOMES)) as rows:
            async for row in rows:
                yield JobOutcome(*row)

    async def failures(self, job: int) -> AsyncGenerator[FailedRecord, None]:
        """The records that failed and are not superseded, in their order.

        Bad lines are not among them: :meth:`outcomes` has these.
        """
        async with contextlib.aclosing(self._rows(job, _FAILURES)) as rows:
            async for row in rows:
                yield FailedRecord(*row)

    async def _rows(
        self, job: int, statement: LiteralString
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """The rows, a page at a time, on a connection of their own."""
        async with connected(self._dsn) as connection:
            await check_version(connection)
            await self._status(connection, job)
            query = sql.SQL(statement).format(
                records=partition("records", job), outcomes=partition("outcomes", job)
            )
            async with connection.transaction(), connection.cursor(name="rows") as cursor:
                cursor.itersize = 1_000
                await cursor.execute(query)
                async for row in cursor:
                    yield row

    async def _status(self, connection: Connection, job: int) -> JobStatus:
        row = await (await connection.execute(f"{_STATUS} WHERE id = %s", [job])).fetchone()
        if row is None:
            raise JobNotFoundError(f"there is no job {job}")
        return JobStatus(*row)

    async def _ended(self, connection: Connection, job: int) -> JobStatus:
        await connection.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", [job])
        status = await self._status(connection, job)
        if not status.final:
            raise JobStateError(f"job {job} is {status.state}; cancel it first")
        return status


def positive(name: str, value: float | None) -> float | None:
    """A positive, finite number or None; or InvalidArgumentError."""
    if value is None or (_is_number(value) and 0 < value <= sys.float_info.max):
        return value
    raise InvalidArgumentError(f"{name} must be a positive, finite number")


def _up_to(name: str, value: float | None, most: float) -> float | None:
    if value is None or (_is_number(value) and 0 <= value <= most):
        return value
    raise InvalidArgumentError(f"{name} must be a number from 0 to {most:,}")


def _whole(name: str, value: int | None) -> int | None:
    if value is None or (type(value) is int and 1 <= value <= sys.maxsize):
        return value
    raise InvalidArgumentError(f"{name} must be a whole number, 1 or more")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked_constant(layout: Layout) -> str | None:
    """The metadata of all records, if there is one; or InvalidArgumentError."""
    if layout.constant is None:
        return None
    checked = checked_metadata(layout.constant)
    if "\0" in checked:
        raise InvalidArgumentError(f"metadata {NO_NUL}")
    if layout.merge and not is_object(checked):
        raise InvalidArgumentError(f"metadata {NO_OBJECT}")
    return checked


def _name(updates: Updates) -> str:
    if isinstance(updates, Source):
        return updates.name
    return str(updates) if isinstance(updates, str | os.PathLike) else "an iterable"


def _silent(sentence: str) -> None:
    """Reports nothing."""
