"""One run of a bulk job: from records and a journal to outcomes, each written down before it is shown or counted.

Knows the client, the journal and the records; nothing of the command line. A run may end at any moment, and another one goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self

import attrs

from ..bulk import BulkUpdate
from ..client import ConversationClient
from ..errors import ApiError, InvalidArgumentError, SinchError, TokenError, TransportError
from ..models import UpdateOutcome
from .input import BadLine, InputError, Layout, Record, RecordReader, Source
from .journal import Header, Journal, JournalError, Line, Outcome, States
from .progress import Progress

__all__ = ["Counts", "FailureLimit", "Job", "Survey", "header_of", "part_of", "survey", "write_failures"]

SHARE_FROM: Final = 100
"""Updates that have ended before a share of failures means anything."""

READ_AHEAD: Final = 256
"""Records of a pipe that are read before they are asked for."""

SHOW_EVERY: Final = 0.5
"""Seconds between looks at a job in which nothing ends, so that an outage is seen."""

MOST_BAD_LINES_SHOWN: Final = 10


@attrs.frozen
class FailureLimit:
    """``--max-failures``: a number of failed updates, or a share of those that have ended."""

    number: float
    percent: bool = False

    def exceeded(self, failed: int, ended: int) -> bool:
        if self.percent:
            return ended >= SHARE_FROM and 100 * failed > self.number * ended
        return failed > self.number

    def __str__(self) -> str:
        return f"{self.number:g}%" if self.percent else f"{self.number:.0f}"


@attrs.define
class Counts:
    """What this run has done; what all runs together have done is in the journal's states."""

    updated: int = 0
    failed: int = 0
    superseded: int = 0
    invalid: int = 0
    kinds: Counter[str] = attrs.field(factory=Counter[str])
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Updates that ended, a second."""
        return (self.updated + self.failed) / self.seconds if self.seconds else 0.0


@attrs.frozen
class Survey:
    """What a first look at the whole input found."""

    records: int
    invalid: int
    layout: dict[str, str]


def survey(source: Source, say: Callable[[str], None]) -> Survey:
    """Reads the input from end to end, checks each record, and tells of the first bad lines. Raises InputError."""
    records = invalid = 0
    with source.open() as reader:
        for item in reader:
            records += 1
            if isinstance(item, BadLine):
                invalid += 1
                if invalid <= MOST_BAD_LINES_SHOWN:
                    say(f"line {item.line}: {item.reason}")
    if invalid > MOST_BAD_LINES_SHOWN:
        say(f"and {invalid - MOST_BAD_LINES_SHOWN:,} more bad lines")
    return Survey(records, invalid, layout_as_read(reader, source.layout))


def layout_as_read(reader: RecordReader, layout: Layout) -> dict[str, str]:
    """What the journal's header says of how the input was read."""
    found: dict[str, str] = {"format": reader.format}
    if reader.format == "csv":
        found["delimiter"] = layout.delimiter
    return {
        **found,
        "message_id": layout.message_id,
        "metadata": layout.metadata,
        "messages_source": layout.messages_source,
    }


def header_of(source: Source, project_id: str, fingerprint: str, layout: dict[str, str]) -> Header:
    """The header of the journal that belongs to this job."""
    return Header(project_id=project_id, input=source.name, fingerprint=fingerprint, layout=layout)


class Job:
    """One run: hands records to the client, writes outcomes down, counts. :meth:`stop` may be called at any time."""

    def __init__(
        self,
        journal: Journal,
        states: States,
        progress: Progress,
        *,
        bad_lines: Literal["stop", "skip"],
        limit: FailureLimit | None,
        total: int | None,
        failures: Spool | None = None,
    ) -> None:
        self._journal = journal
        self._states = states
        self._progress = progress
        self._bad_lines = bad_lines
        self._limit = limit
        self._total = total
        self._failures = failures
        self._bulk: BulkUpdate | None = None
        self._stopping = False
        self._under_way = 0  # records that were handed over and have no outcome
        self.counts = Counts()
        self.read = 0
        """The number of the last record that was read."""
        self.exhausted = False
        """Whether the input was read to its end."""
        self.at_bad_line = False
        """Whether a bad line ended it, as it would end the next run."""
        self.over_limit = False
        """Whether so many updates failed that the rest was not tried."""

    @property
    def done(self) -> int:
        """Records, of all runs, that are dealt with."""
        counts = self._states.counts
        final = counts[Outcome.UPDATED] + counts[Outcome.SUPERSEDED] + counts[Outcome.INVALID]
        # What is superseded now has failed in this run: the records of one id are sent in their order.
        return final + self.counts.failed - self.counts.superseded

    @property
    def unfinished(self) -> bool:
        """Whether there is a record that has no outcome of this run and none that is final, read or unread."""
        if self._total is not None:
            return self.done < self._total
        return self._under_way > 0 or not self.exhausted

    def stop(self) -> None:
        """Reads no more. What is under way is finished, and then the run ends."""
        self._stopping = True
        if self._bulk is not None:
            self._bulk.stop_reading()

    async def run(
        self,
        client: ConversationClient,
        records: Iterable[Record | BadLine] | AsyncIterator[Record | BadLine],
        *,
        concurrency: int | None,
        max_outage: float,
    ) -> None:
        """Runs until the input ends or :meth:`stop` is called. Raises SinchError, InputError or JournalError for what ends it before."""
        updates = self._each_of(records) if isinstance(records, AsyncIterator) else self._each(records)
        self._progress.start(self._total, self.done)
        began = time.monotonic()
        try:
            async with client.update_many(
                updates, concurrency=concurrency, max_outage=max_outage
            ) as self._bulk:
                if self._stopping:
                    self._bulk.stop_reading()
                ticking = asyncio.create_task(self._tick())
                try:
                    async for outcome in self._bulk:
                        self._ended(outcome)
                finally:
                    ticking.cancel()
        finally:
            self.counts.seconds = time.monotonic() - began
            self._show()
            self._progress.stop()

    def _each(self, records: Iterable[Record | BadLine]) -> Iterator[Record]:
        for item in records:
            if (record := self._to_send(item)) is not None:
                yield record
        self.exhausted = True

    async def _each_of(self, records: AsyncIterator[Record | BadLine]) -> AsyncIterator[Record]:
        async for item in records:
            if (record := self._to_send(item)) is not None:
                yield record
        if self.read < self._states.last:
            raise InputError(
                f"the input ended after record {self.read:,}, but the journal knows record {self._states.last:,}: "
                "pipe in the whole of the input that the journal was begun with"
            )
        self.exhausted = True

    def _to_send(self, item: Record | BadLine) -> Record | None:
        """The record, unless there is nothing to be done about it."""
        self.read = item.number
        state = self._states[item.number]
        if (
            self._states.keeps_digests
            and state is not None
            and not self._states.agrees(item.number, item.digest)
        ):
            raise JournalError(
                f"line {item.line}: this is not the record that the journal knows: it is another input's journal"
            )
        if isinstance(item, Record):
            if state not in (None, Outcome.FAILED):
                return None
            self._under_way += 1
            return item
        if self._bad_lines == "stop":
            self.at_bad_line = True
            raise InputError(
                f"line {item.line}: {item.reason}; nothing after it was sent; --on-bad-line skip leaves it out"
            )
        if self._total is None:
            self._progress.say(f"line {item.line}: {item.reason}")
        if self._failures is not None:
            self._failures.add(item.number, item.raw, bad=True)
        if state is not Outcome.INVALID:
            self._write(
                Line(
                    record=item.number,
                    outcome=Outcome.INVALID,
                    line=item.line,
                    digest=item.digest,
                    reason=item.reason,
                )
            )
            self.counts.invalid += 1
        return None

    def _ended(self, outcome: UpdateOutcome) -> None:
        record = outcome.update
        assert isinstance(record, Record)  # what was handed in comes back
        self._under_way -= 1
        counts = self.counts
        if outcome.error is None:
            superseded = self._states.superseded(record.number, record.message_id)
            self._write(*superseded, _line(record, outcome, Outcome.UPDATED))
            counts.updated += 1
            counts.superseded += len(superseded)
        else:
            self._write(_line(record, outcome, Outcome.FAILED))
            if self._failures is not None:
                self._failures.add(record.number, record.raw)
            counts.failed += 1
            counts.kinds[_kind(outcome.error)] += 1
            if self._limit is not None and not self.over_limit:
                self.over_limit = self._limit.exceeded(counts.failed, counts.updated + counts.failed)
                if self.over_limit:
                    self.stop()
        self._show()

    def _write(self, *lines: Line) -> None:
        """Into the journal first, and only then into what is counted and shown."""
        self._journal.write(lines)
        for line in lines:
            self._states.apply(line)

    def _show(self) -> None:
        self._progress.see(
            self.done, self.counts.failed, outage=self._bulk is not None and self._bulk.in_outage
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(SHOW_EVERY)
            self._show()


def _line(record: Record, outcome: UpdateOutcome, word: Outcome) -> Line:
    error = outcome.error
    api = error if isinstance(error, ApiError) else None
    return Line(
        record=record.number,
        outcome=word,
        line=record.line,
        message_id=record.message_id,
        digest=record.digest,
        attempts=outcome.attempts,
        error=None if error is None else type(error).__name__,
        http_status=None if api is None else api.http_status,
        # The server's own sentence may quote the metadata; a status word or an id cannot well.
        status=None
        if api is None or api.status is None or not api.status.isidentifier()
        else api.status[:64],
        request_id=None if api is None else api.request_id,
        reason=str(error) if isinstance(error, TransportError | InvalidArgumentError | TokenError) else None,
    )


def _kind(error: SinchError) -> str:
    return (
        f"{error.http_status} {type(error).__name__}" if isinstance(error, ApiError) else type(error).__name__
    )


class Spool:
    """What failed, kept on disk until the run ends: of a pipe nothing can be read again.

    Bad lines come last: a quote that is never closed would swallow the records after it. A disk that has no room
    for it ends no job: who reads it is told, by an OSError.
    """

    def __init__(self, folder: Path) -> None:
        self._problem: OSError | None = None
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix=".sinch-conv-")  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Closing writes what is still in memory, which nobody wants any more.
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, number: int, raw: bytes, *, bad: bool = False) -> None:
        if self._problem is not None:
            return
        try:
            self._file.write(json.dumps([number, raw.decode("latin-1"), bad]).encode() + b"\n")
        except OSError as problem:
            self._problem = problem

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        if self._problem is not None:
            raise self._problem
        for wanted in (False, True):
            self._file.seek(0)
            for line in self._file:
                number, raw, bad = json.loads(line)
                if bad is wanted:
                    yield number, raw.encode("latin-1")


def write_failures(path: Path, header: bytes, rows: Iterable[tuple[int, bytes]], states: States) -> int:
    """Writes the rows that failed and are not superseded as an input of their own, and returns their number. Raises OSError.

    The file takes the place of an older one only when it is whole; nothing is left of one that is not. It holds metadata, so others may not
    read it.
    """
    written = 0
    part = part_of(path)
    # Opened outside of `try`: what cannot be opened is not ours to remove.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)  # of one that a killed run has left, too
    try:
        with (
            open(descriptor, "wb") as plain,
            gzip.open(plain, "wb") if path.suffix == ".gz" else contextlib.nullcontext(plain) as file,
        ):
            file.write(_whole(header))
            for number, raw in rows:
                if raw and states[number] in (Outcome.FAILED, Outcome.INVALID):
                    file.write(_whole(raw))
                    written += 1
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return written


def part_of(path: Path) -> Path:
    """Where the failures are written until they are whole."""
    return path.with_name(path.name + ".part")


def _whole(raw: bytes) -> bytes:
    """With its end of line, which the last one of a file may lack."""
    return raw if raw.endswith(b"\n") or not raw else raw + b"\n"


class FromPipe:
    """The records of a pipe, read in a thread of their own: whoever writes into it may take hours, and answers go on coming meanwhile."""

    def __init__(self, reader: Iterable[Record | BadLine]) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._found: deque[Record | BadLine] = deque()
        self._room = threading.Semaphore(READ_AHEAD)
        self._news = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None  # whatever ended the reading before the input's end
        # A daemon: nothing can end its read, so the program must be able to end without it.
        threading.Thread(target=self._read, name="sinch-conv input", daemon=True).start()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record | BadLine:
        while not self._found:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._room.release()
        return self._found.popleft()

    def _read(self) -> None:
        try:
            for item in self._reader:
                self._room.acquire()
                self._tell(item)
        except Exception as error:  # noqa: BLE001  # raised where the records are asked for; here nobody would hear of it
            self._error = error
        finally:
            self._tell(None)

    def _tell(self, item: Record | BadLine | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the job ended before its input did
            self._loop.call_soon_threadsafe(self._take, item)

    def _take(self, item: Record | BadLine | None) -> None:
        if item is None:
            self._ended = True
        else:
            self._found.append(item)
        self._news.set()
