"""One run of ``sinch-conv bulk`` from its files to its report: the input, the journal, the job, the signals, the failures.

Prints nothing but progress; the report says the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

import attrs

from .._core.manager import SessionManager, SessionStats
from ..bulk import MAX_OUTAGE, TO_GO_ON
from ..client import ConversationClient
from ..errors import AuthenticationError, InvalidArgumentError, SinchError, TokenError
from .input import BadLine, InputError, Record, RecordReader, Source
from .job import (
    FailureLimit,
    FromPipe,
    Job,
    Spool,
    header_of,
    layout_as_read,
    survey,
    write_failures,
)
from .journal import Journal, JournalError, Outcome, States
from .progress import Progress, duration

__all__ = [
    "CONCURRENCY",
    "INTERRUPTED",
    "REFUSED",
    "SOME_FAILED",
    "USAGE",
    "Report",
    "Run",
    "exit_code",
    "header_of",
    "sentence",
    "survey",
]

SOME_FAILED: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
INTERRUPTED: Final = 130
"""128 and SIGINT, as shells have it."""

CONCURRENCY: Final = 256
"""Updates under way at a time: enough for 800 a second with answers that take 300 ms."""

TAKES_A_WHILE: Final = 10_000_000
"""Bytes of a file that takes seconds to read, so that a person should be told what the program does."""


def exit_code(error: SinchError) -> int:
    """What a command ends with that ended with this error."""
    if isinstance(error, InvalidArgumentError):
        return USAGE
    if isinstance(error, AuthenticationError):
        return REFUSED
    if isinstance(error, TokenError):
        # An endpoint that is out says nothing about the credentials.
        return REFUSED if error.refused else SOME_FAILED
    return SOME_FAILED


def sentence(error: SinchError) -> str:
    """The error as a person reads it."""
    # That advice is for who calls `update_many`; here the same command goes on, and says so at its end.
    notes = (note.removesuffix(f" {TO_GO_ON}") for note in getattr(error, "__notes__", []))
    return "\n".join([f"{type(error).__name__}: {error}", *notes])


@attrs.frozen
class Report:
    """How a run ended. The counts are those of all runs so far, by the journal; ``kinds`` and what follows are this run's."""

    exit_code: int
    error: str | None
    interrupted: bool
    input: str
    journal: str | None
    records: int | None
    updated: int
    failed: int
    invalid: int
    superseded: int
    failures: str | None
    failures_written: int
    kinds: Counter[str]
    sent: int
    retried: int
    throttled: int
    token_requests: int
    seconds: float
    rate: float
    at_bad_line: bool = False

    @property
    def remaining(self) -> int | None:
        """Records that no run has come to; None where the end of the input is not known."""
        if self.records is None:
            return None
        return max(self.records - self.updated - self.failed - self.invalid - self.superseded, 0)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            **attrs.asdict(self),
            "kinds": dict(self.kinds),
            "seconds": round(self.seconds, 3),
            "rate": round(self.rate, 1),
            "remaining": self.remaining,
        }

    def to_text(self) -> str:
        """For people: a line for each thing that there is something to say of."""
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.kinds.most_common(5))
        rows: list[tuple[str, str, str]] = [
            ("updated", f"{self.updated:,}", "" if self.records is None else f"of {self.records:,}"),
            ("failed", f"{self.failed:,}", f"this run: {kinds}" if kinds else ""),
        ]
        if self.invalid:
            rows.append(("bad lines", f"{self.invalid:,}", "never sent"))
        if self.superseded:
            rows.append(
                ("superseded", f"{self.superseded:,}", "failed, and a later record updated the message")
            )
        if self.remaining:
            rows.append(("remaining", f"{self.remaining:,}", ""))
        rows.append(
            (
                "retried",
                f"{self.retried:,}",
                f"answers 429 (too fast): {self.throttled:,}" if self.throttled else "",
            )
        )
        rows.append(("tokens fetched", f"{self.token_requests:,}", ""))
        rows.append(("rate", f"{self.rate:,.0f}/s", f"{self.sent:,} in {duration(self.seconds)}"))
        lines = [f"{name:<14}  {number:>12}  {more}".rstrip() for name, number, more in rows]
        if self.journal is not None:
            lines.append(f"journal         {self.journal}")
        if self.failures is not None:
            lines.append(f"failures        {self.failures}  ({self.failures_written:,})")
        return "\n".join(lines)


@attrs.define
class Run:
    """One run, to be called once. Raises InputError and JournalError for what keeps it from beginning."""

    source: Source
    project_id: str
    journal: Path
    failures: Path | None = None
    bad_lines: Literal["stop", "skip"] = "stop"
    limit: FailureLimit | None = None
    concurrency: int | None = None
    max_outage: float = MAX_OUTAGE
    fsync: bool = False
    _stack: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack, init=False)
    _signals: int = attrs.field(default=0, init=False)

    def __call__(
        self,
        client: AbstractAsyncContextManager[ConversationClient],
        manager: SessionManager,
        progress: Progress,
    ) -> Report:
        """Runs, and tells how it ended."""
        with self._stack:
            journal = self._stack.enter_context(Journal.open(self.journal, fsync=self.fsync))
            if self.source.is_pipe:
                return self._run_pipe(journal, client, manager, progress)
            return self._run_file(journal, client, manager, progress)

    def _run_file(
        self,
        journal: Journal,
        client: AbstractAsyncContextManager[ConversationClient],
        manager: SessionManager,
        progress: Progress,
    ) -> Report:
        source = self.source
        before = source.status()
        if before.st_size >= TAKES_A_WHILE:
            progress.say(f"Checking {source.name} ({before.st_size / 1e6:,.0f} MB) before anything is sent.")
        found = survey(source, progress.say)
        if found.invalid and self.bad_lines == "stop":
            lines, them = (
                ("1 bad line", "it") if found.invalid == 1 else (f"{found.invalid:,} bad lines", "them")
            )
            raise InputError(
                f"{source.name} has {lines}, so nothing was sent; --on-bad-line skip leaves {them} out"
            )
        if not found.records:
            progress.say(f"{source.name} has no records.")
        header = header_of(source, self.project_id, source.fingerprint(), found.layout)
        states = self._load(journal, header, progress)
        reader = self._stack.enter_context(source.open())

        def records() -> Iterator[Record | BadLine]:
            for item in reader:
                # A line that is read of the file as it was surveyed is sent, and no other.
                if states[item.number] in (None, Outcome.FAILED):
                    _check_unchanged(source, before)
                yield item
            _check_unchanged(source, before)

        _check_unchanged(source, before)
        job = self._job(journal, states, progress, total=found.records)
        code, error = self._go(job, records(), client, manager, progress)

        def failed() -> Iterator[tuple[int, bytes]]:
            if states.counts[Outcome.FAILED] or states.counts[Outcome.INVALID]:
                _check_unchanged(source, before)
                with source.open() as again:
                    for item in again:
                        yield item.number, item.raw
                _check_unchanged(source, before)

        return self._report(job, states, reader, failed(), manager, found.records, code, error)

    def _run_pipe(
        self,
        journal: Journal,
        client: AbstractAsyncContextManager[ConversationClient],
        manager: SessionManager,
        progress: Progress,
    ) -> Report:
        source = self.source
        reader = self._stack.enter_context(source.open())
        header = header_of(source, self.project_id, reader.fingerprint, layout_as_read(reader, source.layout))
        states = self._load(journal, header, progress, digests=True)
        spool = None
        if self.failures is not None:
            folder = self.failures.absolute().parent
            try:
                spool = self._stack.enter_context(Spool(folder))
            except OSError as problem:
                raise InputError(
                    f"{folder}: no room for what fails, until --failures is written: {problem.strerror}"
                ) from None
        job = self._job(journal, states, progress, total=None, failures=spool)
        code, error = self._go(job, reader, client, manager, progress, is_pipe=True)
        records = job.read if job.exhausted else None
        if spool is not None and job.unfinished and self.failures is not None and self.failures.exists():
            progress.say(f"{self.failures} is left as it was: not every record of the input has been tried.")
            spool = self.failures = None
        return self._report(job, states, reader, spool or (), manager, records, code, error)

    def _load(self, journal: Journal, header: Any, progress: Progress, *, digests: bool = False) -> States:
        size = journal.length
        if size >= TAKES_A_WHILE:
            progress.say(f"Reading what was done before in {self.journal} ({size / 1e6:,.0f} MB).")
        states = journal.load(header, digests=digests)
        if journal.cut:
            progress.say(f"The last line of {self.journal} was cut short; its record is sent again.")
        if states.last:
            counts = states.counts
            progress.say(
                f"Going on: {counts[Outcome.UPDATED]:,} updated and {counts[Outcome.FAILED]:,} failed before, by {self.journal}."
            )
        return states

    def _job(
        self,
        journal: Journal,
        states: States,
        progress: Progress,
        *,
        total: int | None,
        failures: Spool | None = None,
    ) -> Job:
        return Job(
            journal,
            states,
            progress,
            bad_lines=self.bad_lines,
            limit=self.limit,
            total=total,
            failures=failures,
        )

    def _go(
        self,
        job: Job,
        records: Iterable[Record | BadLine],
        client: AbstractAsyncContextManager[ConversationClient],
        manager: SessionManager,
        progress: Progress,
        *,
        is_pipe: bool = False,
    ) -> tuple[int, str | None]:
        """Runs the job on an event loop of its own; the exit code and the error that ended it, if one did."""
        try:
            asyncio.run(self._work(job, records, client, manager, progress, is_pipe=is_pipe))
        except (asyncio.CancelledError, KeyboardInterrupt):
            # The second signal, or one that came before the loop was ready for it, or while it was being closed.
            self._signals += 1
        except SinchError as error:
            return exit_code(error), sentence(error)
        except InputError as error:
            return USAGE, str(error)
        except JournalError as error:
            return REFUSED, str(error)
        if not job.unfinished:
            return 0, None
        if job.over_limit and not self._signals:
            return SOME_FAILED, f"more than {self.limit} of the updates failed, so the rest was not tried"
        return INTERRUPTED, None

    async def _work(
        self,
        job: Job,
        records: Iterable[Record | BadLine],
        client: AbstractAsyncContextManager[ConversationClient],
        manager: SessionManager,
        progress: Progress,
        *,
        is_pipe: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        this = asyncio.current_task()
        assert this is not None

        def interrupt() -> None:
            self._signals += 1
            if self._signals == 1:
                progress.say("Finishing what is under way; once more ends it now.")
                job.stop()
            else:
                this.cancel()

        with _signals_call(functools.partial(loop.call_soon_threadsafe, interrupt)):
            async with manager, client as opened:
                await job.run(
                    opened,
                    FromPipe(records) if is_pipe else records,
                    concurrency=self.concurrency,
                    max_outage=self.max_outage,
                )

    def _report(
        self,
        job: Job,
        states: States,
        reader: RecordReader,
        failed: Iterable[tuple[int, bytes]],
        manager: SessionManager,
        records: int | None,
        code: int,
        error: str | None,
    ) -> Report:
        counts = states.counts
        failures: str | None = None
        written = 0
        # After the second signal nothing but the end is wanted.
        if self.failures is not None and self._signals < 2:
            try:
                written = write_failures(self.failures, reader.header, failed, states)
                failures = str(self.failures)
            except OSError as problem:
                error = error or f"{self.failures} could not be written: {problem}"
                code = code or SOME_FAILED
            except InputError as problem:
                error = error or f"{self.failures} was not written: {problem}"
                code = code or USAGE
            except KeyboardInterrupt:
                self._signals += 1
                error = error or f"{self.failures} was not written: interrupted"
                code = INTERRUPTED
        if not code and (counts[Outcome.FAILED] or counts[Outcome.INVALID]):
            code = SOME_FAILED
        stats: SessionStats = manager.stats()
        return Report(
            exit_code=code,
            error=error,
            interrupted=bool(self._signals),
            input=self.source.name,
            journal=str(self.journal),
            records=records,
            updated=counts[Outcome.UPDATED],
            failed=counts[Outcome.FAILED],
            invalid=counts[Outcome.INVALID],
            superseded=counts[Outcome.SUPERSEDED],
            failures=failures,
            failures_written=written,
            kinds=job.counts.kinds,
            sent=job.counts.updated + job.counts.failed,
            retried=stats.retries,
            throttled=stats.throttled,
            token_requests=stats.token_requests,
            seconds=job.counts.seconds,
            rate=job.counts.rate,
            at_bad_line=job.at_bad_line,
        )


@contextlib.contextmanager
def _signals_call(interrupt: Callable[[], object]) -> Generator[None]:
    """Ctrl-C and SIGTERM call this, and afterwards do what they did before.

    Not by the loop's own ``add_signal_handler``: when the loop is closed, that leaves SIGTERM to kill the process without a word.
    """

    def arrived(number: int, frame: FrameType | None) -> None:
        interrupt()

    before = {number: signal.signal(number, arrived) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_unchanged(source: Source, before: Any) -> None:
    """The journal's numbers are those of one input: another one in its place would be updated by chance."""
    now = source.status()
    if (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) != (
        before.st_dev,
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    ):
        raise InputError(
            f"{source.name} was changed while the job was running; the journal goes on with it only as it was"
        )
