"""A job of one machine: an input and a journal, from the files to the report.

A file is checked completely before anything is sent, and must not change. A pipe is read once; its
failed records are kept on disk until the run ends.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Final, Literal

import attrs

from .._core.manager import SessionManager
from ..bulk import MAX_OUTAGE
from ..client import ConversationClient
from ..errors import SinchError
from .failures import Form, Spool, write_failures
from .input import BadLine, InputError, InputReason, Record, RecordReader, Source
from .journal import Header, Journal, JournalError, JournalReason, moment
from .ledger import LedgerError, Outcome
from .pipe import FromPipe
from .progress import Progress
from .report import FailuresProblem, Report
from .run import FailureLimit, Run
from .signals import handled
from .states import States
from .survey import Survey, survey

__all__ = ["LocalJob", "header_of", "run_local"]

TAKES_A_WHILE: Final = 10_000_000
"""Reading a file of this many bytes takes seconds, so the user is told."""

Items = Iterable[Record | BadLine] | AsyncIterable[Record | BadLine]


@attrs.frozen
class LocalJob:
    """A job: its input, project, origin, journal and options."""

    source: Source
    project_id: str
    origin: str
    journal: Path
    failures: Path | None = None
    bad_lines: Literal["stop", "skip"] = "stop"
    limit: FailureLimit | None = None
    concurrency: int | None = None
    max_outage: float = MAX_OUTAGE
    fsync: bool = False

    def header(self, fingerprint: str, layout: dict[str, str]) -> Header:
        """The header of the journal that belongs to this job."""
        return header_of(self.source, self.project_id, self.origin, fingerprint, layout)


def header_of(
    source: Source, project_id: str, origin: str, fingerprint: str, layout: dict[str, str]
) -> Header:
    """The header of the journal that belongs to this input, project and origin."""
    size = modified = None
    if not source.is_pipe:
        status = source.status()
        size, modified = status.st_size, moment(status.st_mtime)
    return Header(
        project_id=project_id,
        origin=origin,
        input=source.name,
        fingerprint=fingerprint,
        layout=layout,
        size=size,
        modified=modified,
    )


@attrs.frozen
class _Opened:
    """An input that is ready to be sent.

    ``failed``: the bytes of the failed records, for the file of failures.
    """

    reader: RecordReader
    records: Callable[[], Items]
    total: int | None
    spool: Spool | None
    failed: Callable[[], Iterable[tuple[int, bytes]]]


@attrs.define
class _Interrupts:
    """The number of signals that asked the process to stop."""

    count: int = 0


def run_local(
    job: LocalJob,
    client: AbstractAsyncContextManager[ConversationClient],
    manager: SessionManager,
    progress: Progress,
) -> Report:
    """Run the job on an event loop of its own, and report how it ended.

    Raises InputError or JournalError if the job cannot begin.
    """
    with ExitStack() as stack:
        journal = stack.enter_context(Journal.open(job.journal, fsync=job.fsync))
        opened = (_open_pipe if job.source.is_pipe else _open_file)(job, journal, stack, progress)
        run = Run(
            journal,
            progress,
            merge=job.source.layout.merge,
            total=opened.total,
            bad_lines=job.bad_lines,
            limit=job.limit,
            on_failure=None if opened.spool is None else opened.spool.add,
        )
        interrupts = _Interrupts()
        ended_by = _go(job, run, opened.records, client, manager, progress, interrupts)
        report = _report(job, run, journal, manager, opened, ended_by, interrupts)
        return _with_failures(report, job, run, journal, opened, progress, interrupts)


def _open_file(job: LocalJob, journal: Journal, stack: ExitStack, progress: Progress) -> _Opened:
    source = job.source
    before = source.status()
    found = _check(job, before.st_size, progress)
    header = job.header(source.fingerprint(), found.layout)
    states = _load(job, journal, header, progress, digests=False)
    if states.last > found.records:
        raise JournalError(
            f"{job.journal} names record {states.last:,}, but the input has {found.records:,}",
            JournalReason.DAMAGED,
        )
    reader = stack.enter_context(source.open())
    source.check_unchanged(before)

    def records() -> Iterator[Record | BadLine]:
        for item in reader:
            # A record is sent only if the file is unchanged since the survey.
            if states[item.number] in (None, Outcome.FAILED):
                source.check_unchanged(before)
            yield item
        source.check_unchanged(before)

    def failed() -> Iterator[tuple[int, bytes]]:
        if states.counts[Outcome.FAILED] or states.counts[Outcome.INVALID]:
            source.check_unchanged(before)
            with source.open() as again:
                for item in again:
                    yield item.number, item.raw
            source.check_unchanged(before)

    return _Opened(reader, records, found.records, None, failed)


def _check(job: LocalJob, size: int, progress: Progress) -> Survey:
    """Read the whole file. Raises InputError if it must not be sent."""
    name = job.source.name
    if size >= TAKES_A_WHILE:
        progress.say(f"Checking {name} ({size / 1e6:,.0f} MB) before anything is sent.")
    found = survey(job.source, progress.say)
    if found.invalid and job.bad_lines == "stop":
        lines = "1 bad line" if found.invalid == 1 else f"{found.invalid:,} bad lines"
        raise InputError(
            f"{name} has {lines}, so nothing was sent",
            InputReason.BAD_LINE,
            count=found.invalid,
            undecodable=found.undecodable > 0,
        )
    if not found.records:
        progress.say(f"{name} has no records.")
    return found


def _open_pipe(job: LocalJob, journal: Journal, stack: ExitStack, progress: Progress) -> _Opened:
    reader = stack.enter_context(job.source.open())
    header = job.header(reader.fingerprint, reader.layout)
    _load(job, journal, header, progress, digests=True)
    spool = None
    if job.failures is not None:
        folder = job.failures.absolute().parent
        try:
            spool = stack.enter_context(Spool(folder))
        except OSError as problem:
            raise InputError(
                f"{folder}: no room for what fails until {job.failures} is written: "
                f"{problem.strerror}"
            ) from None
    return _Opened(reader, lambda: FromPipe(reader), None, spool, lambda: spool or ())


def _load(
    job: LocalJob, journal: Journal, header: Header, progress: Progress, *, digests: bool
) -> States:
    size = journal.length
    if size >= TAKES_A_WHILE:
        progress.say(f"Reading what was done before in {job.journal} ({size / 1e6:,.0f} MB).")
    states = States(
        digests=digests,
        reasons=job.failures is not None,
        supersedes=not job.source.layout.merge,
    )
    journal.load(header, states)
    if journal.cut:
        progress.say(f"The last line of {job.journal} was cut short; its record is sent again.")
    if states.last:
        counts = states.counts
        progress.say(
            f"Going on: {counts[Outcome.UPDATED]:,} updated and {counts[Outcome.FAILED]:,} failed "
            f"before, by {job.journal}."
        )
    return states


def _go(
    job: LocalJob,
    run: Run,
    records: Callable[[], Items],
    client: AbstractAsyncContextManager[ConversationClient],
    manager: SessionManager,
    progress: Progress,
    interrupts: _Interrupts,
) -> SinchError | InputError | LedgerError | None:
    """Run on an event loop of its own; return the error that ended the run, if any."""

    async def work() -> None:
        loop, this = asyncio.get_running_loop(), asyncio.current_task()
        assert this is not None  # asyncio.run makes a task

        def interrupt() -> None:
            interrupts.count += 1
            if interrupts.count == 1:
                progress.say("Finishing the updates under way; a second signal ends the job now.")
                run.stop()
            else:
                this.cancel()

        with handled(functools.partial(loop.call_soon_threadsafe, interrupt)):
            async with manager, client as opened:
                await run.go(
                    opened, records(), concurrency=job.concurrency, max_outage=job.max_outage
                )

    try:
        asyncio.run(work())
    except (asyncio.CancelledError, KeyboardInterrupt):
        # The second signal, or a signal that came before the loop was ready or while it closed.
        interrupts.count += 1
    except (SinchError, InputError, LedgerError) as error:
        return error
    return None


def _report(
    job: LocalJob,
    run: Run,
    journal: Journal,
    manager: SessionManager,
    opened: _Opened,
    ended_by: SinchError | InputError | LedgerError | None,
    interrupts: _Interrupts,
) -> Report:
    counts, stats = journal.counts, manager.stats()
    return Report(
        input=job.source.name,
        journal=str(job.journal),
        records=opened.total if opened.total is not None else run.read if run.exhausted else None,
        updated=counts[Outcome.UPDATED],
        failed=counts[Outcome.FAILED],
        invalid=counts[Outcome.INVALID],
        superseded=counts[Outcome.SUPERSEDED],
        unchanged=counts[Outcome.UNCHANGED],
        failures=None,
        failures_written=0,
        kinds=run.counts.kinds,
        sent=run.counts.sent,
        retried=stats.retries,
        throttled=stats.throttled,
        token_requests=stats.token_requests,
        seconds=run.counts.seconds,
        rate=run.counts.rate,
        unfinished=run.unfinished,
        interrupted=interrupts.count > 0,
        ended_by=ended_by,
        limit=job.limit if run.over_limit else None,
    )


def _with_failures(
    report: Report,
    job: LocalJob,
    run: Run,
    journal: Journal,
    opened: _Opened,
    progress: Progress,
    interrupts: _Interrupts,
) -> Report:
    """Write the file of failures, if it is wanted, and add it to the report."""
    path = job.failures
    if path is None or interrupts.count > 1:  # after the second signal, end at once
        return report
    if opened.spool is not None and run.unfinished and path.exists():
        progress.say(f"{path} is left as it was: not every record of the input has been tried.")
        return report
    form = Form.of(opened.reader, job.source.layout)
    error: OSError | InputError | None
    try:
        written = write_failures(path, form, opened.failed(), journal.states)
    except (OSError, InputError) as problem:
        error = problem
    except KeyboardInterrupt:
        report = attrs.evolve(report, interrupted=True)
        error = None
    else:
        return attrs.evolve(report, failures=str(path), failures_written=written)
    return attrs.evolve(report, failures_problem=FailuresProblem(str(path), error))
