"""A ledger in PostgreSQL: one worker, which holds a job, writes the outcomes of its records.

*The hold.* A worker that takes a job holds it for some seconds. Taking the job raises its ``epoch``
and sets ``held_until``. Each flush sets a later ``held_until``, if the epoch has not changed.
Another worker takes the job only after ``held_until``, by the clock of the database. By this
worker's own clock, :meth:`may_send` becomes false a sixth of the hold earlier, and this worker
counts the hold from a time before it sent the last flush. So a worker that was suspended, or that
cannot reach the database, sends nothing after another worker may have begun.

*A flush* is one statement, and so one transaction: it inserts the outcomes, and counts them in the
job's row. The row also has the number of the last flush. If the connection breaks before the answer
comes, the worker sends the same flush again on another connection. The number in the row then shows
whether the first try was applied. The worker flushes every sixth of the hold (every half second by
default), and whenever ``BATCH`` outcomes wait; then :meth:`write` waits for the flush. If a worker
dies, the next worker may send some records again: at most those whose outcomes waited for a flush,
and those under way.

*Superseded.* A failed record is superseded when a later record has updated the same message, as in
the journal. To find such records, the worker first loads the records that failed in earlier holds.

*Records* are read in pages, in the order of their numbers, from the first record that may have no
outcome. So memory does not grow with the job, and the order is the order of the input, also after
the death of a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import attrs
import psycopg
from psycopg import sql

from .._job.input import MergeRecord, Record
from .._job.ledger import Entry, LedgerError, Numbered, Outcome
from .._job.states import States
from .database import Connection, kept, open_connection, within
from .intake import partition

__all__ = ["BATCH", "Hold", "PostgresLedger", "Spec"]

T = TypeVar("T")

BATCH: Final = 400
"""At most so many outcomes wait for a flush. A statement with so many takes about 8 ms."""

PAGE: Final = 1_000
"""How many records are read at a time."""

ROOM: Final = 100
"""Size, in characters, of each outcome in the test for room in the database."""

RATE_OVER: Final = 10.0
"""The rate of a running job is measured over so many seconds."""

RECONNECT_EVERY: Final = 0.1
"""Seconds between two tries while the database cannot be reached."""

_COUNTED: Final = ("updated", "unchanged", "failed", "superseded", "invalid")


def now() -> float:
    """Seconds of a clock that also runs while the process is suspended or the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LostError(LedgerError):
    """The hold is lost: another worker has the job, or the database cannot be reached."""


@attrs.frozen
class Spec:
    """The job, and its progress when it was taken. All records up to ``low`` have outcomes."""

    id: int
    project_id: str
    region: str | None
    options: Mapping[str, Any]
    records: int
    counts: Mapping[Outcome, int]
    low: int
    epoch: int
    flushes: int


@attrs.frozen
class Hold:
    """Who takes a job, and for how long. procrastinate gives the first three fields.

    ``name``: the worker's name in the job's row. ``seconds``: how long after a flush another worker
    may take the job.
    """

    engine_job: int
    engine_worker: int | None
    attempts: int
    name: str
    seconds: float


_TAKE: Final = f"""
UPDATE jobs j SET state = 'running', epoch = epoch + 1, error = NULL, worker = %s, rate = 0,
    held_until = clock_timestamp() + make_interval(secs => %s),
    started_at = coalesce(started_at, now()), ended_at = NULL
  FROM procrastinate_jobs e
  WHERE j.id = %s AND j.state = 'queued' AND j.engine_job = e.id
    AND e.id = %s AND e.status = 'doing' AND e.worker_id = %s AND e.attempts = %s
  RETURNING j.id, j.project_id, j.region, j.options, j.records, j.low, j.epoch, j.flushes,
    {", ".join(f"j.{name}" for name in _COUNTED)}
"""  # noqa: S608  # the names above

_FLUSH: Final = """
WITH held AS (
  UPDATE jobs SET flushes = flushes + 1, low = greatest(low, %(low)s), rate = %(rate)s,
      seconds = seconds + %(seconds)s, error = %(error)s,
      updated = updated + %(updated)s, unchanged = unchanged + %(unchanged)s,
      failed = failed + %(failed)s, superseded = superseded + %(superseded)s,
      held_until = clock_timestamp() + make_interval(secs => %(hold)s)
    WHERE id = %(job)s AND epoch = %(epoch)s AND flushes = %(flushes)s AND state = 'running'
    RETURNING cancel_requested
), written AS (
  INSERT INTO {outcomes} AS o (job, record, superseded_by, http_status, attempts, outcome, error,
      status, request_id, reason)
    SELECT %(job)s, u.* FROM held, unnest(
      %(record)s::integer[], %(by)s::integer[], %(http_status)s::smallint[],
      %(attempts)s::integer[], %(outcome)s::text[], %(kind)s::text[], %(status)s::text[],
      %(request_id)s::text[], %(reason)s::text[]) u
    ON CONFLICT (record) DO UPDATE SET outcome = excluded.outcome,
        superseded_by = excluded.superseded_by, ended_at = excluded.ended_at
      WHERE o.outcome = 'failed'
)
SELECT cancel_requested FROM held
"""

_APPLIED: Final = """
SELECT cancel_requested FROM jobs
  WHERE id = %(job)s AND epoch = %(epoch)s AND flushes = %(flushes)s + 1 AND state = 'running'
"""

_END: Final = """
UPDATE jobs SET error = %(error)s, held_until = NULL, rate = 0,
    state = CASE WHEN %(state)s = 'queued' AND cancel_requested THEN 'cancelled'
      ELSE %(state)s END,
    ended_at = CASE WHEN %(state)s <> 'queued' OR cancel_requested THEN clock_timestamp() END
  WHERE id = %(job)s AND epoch = %(epoch)s AND state = 'running' RETURNING state
"""

_RECORDS: Final = """
SELECT number, line, message_id, metadata, messages_source FROM {records}
  WHERE number > %s AND number <= %s ORDER BY number
"""

_ENDED: Final = "SELECT record FROM {outcomes} WHERE record > %s AND record <= %s"

_FILL: Final = """
INSERT INTO {outcomes} (job, record, outcome, reason)
  SELECT %(job)s, -n, 'failed', %(text)s FROM generate_series(1, %(number)s::integer) n
"""

_FAILED: Final = """
SELECT o.record, r.message_id FROM {outcomes} o JOIN {records} r ON r.number = o.record
  WHERE o.outcome = 'failed' AND o.record > %s ORDER BY o.record LIMIT 10000
"""


@attrs.frozen
class _Batch:
    """The outcomes of one flush, and the values that the flush writes to the job's row."""

    entries: tuple[Entry, ...]
    changes: Mapping[Outcome, int]
    low: int
    rate: float
    seconds: float
    error: str | None


class PostgresLedger:
    """The ledger of one hold on a job; see the top of this file. Made by :meth:`take`.

    ``cancelled``: a user has asked to cancel the job. ``outage``: the API's last error during an
    outage; the next flush writes it to the job's row.
    """

    def __init__(self, dsn: str, connection: Connection, spec: Spec, hold: Hold, at: float) -> None:
        self.spec = spec
        self.cancelled = False
        self.outage: str | None = None
        self.late = False
        """Whether another worker may have taken the job."""
        self.counts: dict[Outcome, int] = dict(spec.counts)
        self._dsn = dsn
        self._connection: Connection | None = connection
        self._hold = hold
        self._states = States(supersedes=not spec.options.get("merge"), max_gap=None)
        self._waiting: dict[int, Entry] = {}
        self._changes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self._batch: _Batch | None = None
        self._flushes = spec.flushes
        self._turn = asyncio.Lock()  # one operation at a time on the connection
        self._flushing = asyncio.Lock()
        self._over = asyncio.Event()
        self._under_way: dict[int, None] = {}  # numbers of records, in rising order
        self._read_to = spec.low
        self._held_until = at + hold.seconds
        self._worked_at = at
        self._ended: deque[tuple[float, int]] = deque([(at, 0)])
        self._number_ended = 0
        names = {name: partition(name, spec.id) for name in ("records", "outcomes")}
        self._sql = {
            text: sql.SQL(text).format(**names).as_bytes(connection)
            for text in (_FLUSH, _RECORDS, _ENDED, _FILL, _FAILED)
        }

    @classmethod
    async def take(cls, dsn: str, job: int, hold: Hold) -> PostgresLedger | None:
        """Take the job; None if this worker may not take it. Raises psycopg.Error."""
        connection = await open_connection(dsn)
        try:
            at = now()
            who = [hold.engine_job, hold.engine_worker, hold.attempts]
            row = await (
                await connection.execute(_TAKE, [hold.name, hold.seconds, job, *who])
            ).fetchone()
            if row is None:
                await connection.close()
                return None
            counts = {Outcome(name): row[8 + at] for at, name in enumerate(_COUNTED)}
            id_, project_id, region, options, records, low, epoch, flushes = row[:8]
            spec = Spec(id_, project_id, region, options, records, counts, low, epoch, flushes)
            ledger = cls(dsn, connection, spec, hold, at)
            await ledger._check_room()
        except BaseException:
            await connection.close()
            raise
        return ledger

    async def _check_room(self) -> None:
        """Raises psycopg.Error if the database has no room for the outcomes of a flush.

        Without this check, workers would send the same records again and again while the disk of
        the database is full, because they could store no outcome.
        """
        assert self._connection is not None  # take() has just opened it
        async with self._connection.transaction(force_rollback=True):
            await self._connection.execute(
                self._sql[_FILL], {"job": self.spec.id, "number": BATCH, "text": "x" * ROOM}
            )

    # The hold

    def may_send(self) -> bool:
        """Whether no other worker can have taken the job. Once false, it stays false."""
        if now() >= self._held_until - self._hold.seconds / 6:
            self.late = True
        return not self.late

    async def keep(self, on_cancel: Callable[[], object]) -> None:
        """Flush at intervals until :meth:`let_go`. Raises LostError.

        ``on_cancel`` is called after each flush if a user has asked to cancel the job.
        """
        while not self._over.is_set():
            await self.flush()
            if self.cancelled:
                on_cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), self._hold.seconds / 6)

    def let_go(self) -> None:
        """End :meth:`keep`. A flush that has begun is finished first."""
        self._over.set()

    async def end(self, state: str, error: str | None) -> str | None:
        """Write the waiting outcomes and the state. Return the state, or None if the hold is lost.

        If a user has asked to cancel the job, it becomes ``cancelled`` instead of ``queued``.
        """
        try:
            while self._batch is not None or self._waiting:
                await self.flush(patience=self._hold.seconds)
            words = {
                "state": state,
                "error": kept(error),
                "job": self.spec.id,
                "epoch": self.spec.epoch,
            }
            rows = await self._patiently(lambda: self._query(_END, words), self._hold.seconds)
        except LedgerError:
            return None
        return rows[0][0] if rows else None

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # A ledger

    @property
    def last(self) -> int:
        """Always 0: :meth:`records` gives each record without an outcome, so none is missing."""
        return 0

    def state(self, record: int) -> Outcome | None:
        """Always None: :meth:`records` gives only records without an outcome."""
        return None

    def agrees(self, item: Numbered) -> bool:
        """Always True: the records in the database never change."""
        return True

    async def write(self, entry: Entry) -> None:
        """Keep the entry for the next flush, with the entries that it supersedes.

        If ``BATCH`` entries wait, flush them now. Raises LostError if the hold is lost.
        """
        superseded: list[Entry] = []
        if entry.outcome is Outcome.UPDATED and entry.message_id is not None:
            superseded = self._states.superseded(entry.record, entry.message_id)
        for each in superseded:
            self._count(Outcome.FAILED, -1)
            self._note(each)
        self._note(entry)
        self._states.apply(entry)
        self._under_way.pop(entry.record, None)
        self._number_ended += 1
        if len(self._waiting) >= BATCH:
            await self.flush()

    def _note(self, entry: Entry) -> None:
        before = self._waiting.get(entry.record)
        if before is not None:  # the record failed, and was superseded before a flush
            entry = attrs.evolve(before, outcome=entry.outcome, by=entry.by)
        self._waiting[entry.record] = entry
        self._count(entry.outcome, 1)

    def _count(self, outcome: Outcome, change: int) -> None:
        self.counts[outcome] += change
        self._changes[outcome] += change

    # Records

    async def load_failed(self) -> None:
        """Load the records that failed in earlier holds: a later record may supersede them.

        Call this before the first record is read. Run :meth:`keep` at the same time, because
        loading hundreds of thousands of records takes longer than a hold. Raises LostError.
        """
        last = 0
        while rows := await self._failed_after(last):
            for record, message_id in rows:
                self._states.apply(
                    Entry(record=record, outcome=Outcome.FAILED, message_id=message_id)
                )
            last = rows[-1][0]

    async def _failed_after(self, record: int) -> list[tuple[Any, ...]]:
        return await self._patiently(lambda: self._query(self._sql[_FAILED], [record]), 0.0)

    async def records(self) -> AsyncIterator[Record]:
        """The records without an outcome, in the order of the input."""
        spec = self.spec
        merge = bool(spec.options.get("merge"))
        constant: str = spec.options.get("metadata", "")
        before = spec.low
        while before < spec.records:
            to = min(before + PAGE, spec.records)
            page, ended = await self._page(before, to)
            for number, line, message_id, metadata, source in page:
                self._read_to = number
                if number in ended:
                    continue
                self._under_way[number] = None
                text: str = constant if metadata is None else metadata
                place: dict[str, Any] = {"number": number, "line": line, "raw": b""}
                if merge:
                    yield MergeRecord(message_id, text, source, change=text, **place)
                else:
                    yield Record(message_id, text, source, **place)
            self._read_to = before = to

    async def _page(self, before: int, to: int) -> tuple[list[tuple[Any, ...]], set[int]]:
        async def read() -> tuple[list[tuple[Any, ...]], set[int]]:
            ended = await self._query(self._sql[_ENDED], [before, to])
            return await self._query(self._sql[_RECORDS], [before, to]), {row[0] for row in ended}

        return await self._patiently(read, 0.0)

    # Flushing

    async def flush(self, *, patience: float = 0.0) -> None:
        """Write the waiting outcomes, and extend the hold. Raises LostError.

        ``patience``: for how many seconds after the end of the hold to go on trying.
        """
        async with self._flushing:
            if self._batch is None:
                self._batch = self._cut()
            batch = self._batch
            arguments = self._arguments(batch)
            first = now()

            async def apply() -> float:
                at = now()
                rows = await self._query(self._sql[_FLUSH], arguments)
                if not rows:
                    # Perhaps an earlier try was applied, and its answer was lost. Then the hold
                    # counts from the first try.
                    at, rows = first, await self._query(_APPLIED, arguments)
                if not rows:
                    self.late = True
                    raise LostError("another worker has taken the job")
                self.cancelled = self.cancelled or rows[0][0]
                return at

            at = await self._patiently(apply, patience)
            self._held_until = at + self._hold.seconds
            self._flushes += 1
            self._batch = None

    def _cut(self) -> _Batch:
        """Take the waiting outcomes out as one batch, with the numbers for the job's row."""
        at = now()
        entries = tuple(self._waiting.values())
        self._waiting.clear()
        changes, self._changes = self._changes, dict.fromkeys(Outcome, 0)
        self._ended.append((at, self._number_ended))
        while len(self._ended) > 2 and self._ended[1][0] <= at - RATE_OVER:
            self._ended.popleft()
        (then, number), seconds = self._ended[0], at - self._worked_at
        self._worked_at = at
        rate = (self._number_ended - number) / (at - then) if at > then else 0.0
        low = next(iter(self._under_way), self._read_to + 1) - 1
        return _Batch(entries, changes, low, rate, seconds, self.outage)

    def _arguments(self, batch: _Batch) -> dict[str, Any]:
        entries = batch.entries
        return {
            "job": self.spec.id,
            "epoch": self.spec.epoch,
            "flushes": self._flushes,
            "hold": self._hold.seconds,
            "low": batch.low,
            "rate": batch.rate,
            "seconds": batch.seconds,
            "error": kept(batch.error),
            **{str(outcome): change for outcome, change in batch.changes.items()},
            "record": [entry.record for entry in entries],
            "by": [entry.by for entry in entries],
            "http_status": [entry.http_status for entry in entries],
            "attempts": [entry.attempts for entry in entries],
            "outcome": [str(entry.outcome) for entry in entries],
            "kind": [entry.error for entry in entries],
            "status": [kept(entry.status) for entry in entries],
            "request_id": [kept(entry.request_id) for entry in entries],
            "reason": [kept(entry.reason) for entry in entries],
        }

    # The database

    async def _query(self, statement: bytes | str, arguments: Any) -> list[tuple[Any, ...]]:
        """Run one statement on the connection; open a new one if the old one was lost."""
        async with self._turn:
            if self._connection is None:
                self._connection = await open_connection(self._dsn)
            connection = self._connection
            query = statement.encode() if isinstance(statement, str) else statement
            try:
                return await within(
                    self._hold.seconds, connection, _rows(connection, query, arguments)
                )
            except BaseException:
                self._connection = None
                await connection.close()
                raise

    async def _patiently(
        self, operation: Callable[[], Coroutine[Any, Any, T]], patience: float
    ) -> T:
        """Try the operation until it succeeds, or until ``patience`` seconds after the hold."""
        first = True
        until = max(self._held_until, now()) + patience if patience else self._held_until
        while True:
            try:
                return await operation()
            except psycopg.Error as error:
                kind = type(error).__name__
            if not first and now() >= until:
                raise LostError(f"the database gave no answer: {kind}")
            first = False
            await asyncio.sleep(RECONNECT_EVERY)


async def _rows(connection: Connection, query: bytes, arguments: Any) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, arguments)).fetchall()
