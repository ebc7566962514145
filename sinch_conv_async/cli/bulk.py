"""``sinch-conv bulk``: a file or a pipe of updates, with a journal."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final, Literal

import click

from .._job.failures import part_of
from .._job.input import InputError, InputReason, Source
from .._job.journal import JournalError, look
from .._job.ledger import FINAL, Outcome
from .._job.local import LocalJob, header_of, run_local
from .._job.report import Report
from .._job.signals import terminated_as_interrupted
from .._job.states import States
from .._job.survey import survey
from ..bulk import MAX_OUTAGE
from ..client import RATE_LIMIT
from .access import Access, Finite, access_of, with_access
from .input import CONCURRENCY, Input, input_of, with_input
from .output import REFUSED, SOME_FAILED, USAGE, Ended, PrintingCommand, put, put_json, say
from .progress import duration, progress_on
from .words import OTHER_ENCODING, error_of, sentence, to_json, to_text

try:
    import resource
except ImportError:  # pragma: no cover  # Windows has no such module
    resource = None  # type: ignore[assignment]  # mypy sees a module

__all__ = ["bulk", "tell"]

FILES: Final = 32
"""Files that a job has open beside its connections, with a reserve."""


def _failures(
    context: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    """The path of the file of failures. It may replace only a plain file."""
    if value is None:
        return None
    if value == Path("-"):
        raise click.BadParameter("a file is wanted, not standard output")
    if value.exists() and not value.is_file():
        raise click.BadParameter(f"{value} is not a plain file")
    return Path(os.path.realpath(value)) if value.is_symlink() else value


@click.command(cls=PrintingCommand)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the whole input and say what would be done; needs no credentials.",
)
@click.option(
    "--journal",
    # The journal reports what is wrong with this file, with exit code 3.
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="Where to write the outcome of each record.  [default: FILE.journal.jsonl]",
)
@click.option(
    "--failures",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    callback=_failures,
    help="Where to write the failed records, in the input's own format.",
)
@with_input
@click.option(
    "--max-outage",
    type=Finite(min=0, min_open=True),
    default=MAX_OUTAGE,
    metavar="SECONDS",
    help=f"How long to wait for an API that takes no updates.  [default: {MAX_OUTAGE:g}]",
)
@click.option(
    "--fsync",
    is_flag=True,
    help="Write each line of the journal to the disk at once: slower, but safe from power loss.",
)
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The summary's form, on standard output.",
)
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@with_access
def bulk(
    dry_run: bool,
    journal: Path | None,
    failures: Path | None,
    max_outage: float,
    fsync: bool,
    output: Literal["text", "json"],
    quiet: bool,
    **options: Any,
) -> int:
    """Update every message that FILE names: CSV with a header, or JSON Lines; - for standard input.

    The outcome of each record is written to a journal. Started again, the job goes on where it
    stopped, and tries failed records again. Ctrl-C finishes the updates under way; a second Ctrl-C
    ends the job at once.

    Exit code 0: all updated. 1: some failed. 2: bad arguments or input. 3: credentials or journal.
    130: interrupted.
    """
    given = input_of(options)
    source, concurrency = given.source, given.concurrency or CONCURRENCY
    with _told(output):
        progress = progress_on(sys.stderr, quiet=quiet)
        access = access_of(options, tell=progress.say)
        is_pipe = source.is_pipe
        if journal is None and not is_pipe:
            assert source.path is not None  # standard input is a pipe
            journal = source.path.with_name(source.path.name + ".journal.jsonl")
        _check_paths(source, journal, failures)
        if dry_run:
            return _dry_run(given, journal, access, output=output)
        if journal is None:
            raise click.UsageError("a pipe needs --journal FILE")
        manager = access.manager(max_connections=concurrency)
        # First of all, because it needs credentials.
        client = access.client(manager, rate=given.rate)
        _allow_files(concurrency + FILES)
        job = LocalJob(
            source,
            access.known_project() or "",  # the client needs a project id
            access.known_origin() or "",  # the same
            journal,
            failures=failures,
            bad_lines=given.bad_lines,
            limit=given.limit,
            concurrency=concurrency,
            max_outage=max_outage,
            fsync=fsync,
        )
        with terminated_as_interrupted():
            report = run_local(job, client, manager, progress)
    code = tell(report, output=output)
    _say_what_to_do(report, is_pipe=is_pipe)
    return code


def _say_what_to_do(report: Report, *, is_pipe: bool) -> None:
    if report.sent and report.kinds == {"404 NotFoundError": report.sent}:
        say(
            "Every update was answered 404. A message is known only in its own project and region: "
            "is --region the region that the Conversation API app lives in?"
        )
    if report.remaining == 0 and not report.failed:
        return
    if report.failed and report.failures is None:
        say("--failures FILE writes what failed, each with its reason.")
    what = "To try the failed records again" if report.remaining == 0 else "To go on"
    how = ", with the same input" if is_pipe else ""
    given = sys.argv[1:]
    error = report.ended_by
    if isinstance(error, InputError) and error.reason is InputReason.BAD_LINE:
        how = ", mend that line in the input, or leave it out"
        # Right after the command's name, because after a -- it would not be an option.
        given[1:1] = ["--on-bad-line", "skip"]
    elif isinstance(error, InputError) and error.reason is InputReason.NO_END:
        how = ", mend that record in the input"
    say(f"{what}{how}: {shlex.join(['sinch-conv', *given])}")


@contextlib.contextmanager
def _told(output: Literal["text", "json"]) -> Generator[None]:
    """End the command because a job cannot begin; print a document if JSON is wanted."""
    try:
        yield
        return
    except InputError as error:
        ended = Ended(sentence(error), USAGE)
    except JournalError as error:
        ended = Ended(sentence(error), REFUSED)
    except Ended as error:
        ended = error
    if output == "json":
        put_json({"exit_code": ended.exit_code, "error": ended.message}, code=ended.exit_code)
    raise ended


def tell(report: Report, *, output: Literal["text", "json"]) -> int:
    """Print the summary, and return the command's exit code."""
    code, error = error_of(report)
    if error is not None:
        say(f"Error: {error}")
    done = "" if report.journal is None else f"; the outcome of each record is in {report.journal}"
    if output == "json":
        put_json(to_json(report), done=done, code=code)
    else:
        put(to_text(report), done=done, code=code)
    return code


def _allow_files(number: int) -> None:
    """Let the process open so many files; some systems allow 256 at first."""
    if resource is None:
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (limit, most) and most < number:
        say(
            f"Warning: this process may open {most:,} files only, and needs {number:,};"
            f" --concurrency {max(most - FILES, 1)} would keep within that."
        )
        number = most
    if limit != resource.RLIM_INFINITY and limit < number:
        with contextlib.suppress(OSError, ValueError):  # macOS has a limit beside this one
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, most))


def _check_paths(source: Source, journal: Path | None, failures: Path | None) -> None:
    """Raise UsageError unless the three files differ and failures can be written."""
    taken = [path for path in (source.path, journal) if path is not None]
    if len(taken) == 2 and _are_one(*taken):
        raise click.UsageError("--journal names the input; name a file that does not exist yet")
    if failures is None:
        return
    for place in (failures, part_of(failures)):
        if any(_are_one(place, path) for path in taken):
            raise click.UsageError(
                f"--failures would overwrite {place}, which is the input or the journal; "
                "name another file"
            )
    if not os.access(failures.absolute().parent, os.W_OK | os.X_OK):
        raise click.UsageError(f"--failures: no file can be made in {failures.absolute().parent}")


def _are_one(path: Path, other: Path) -> bool:
    """Whether these two paths lead to one file."""
    try:
        return path.samefile(other)
    except OSError:  # one of them does not exist yet
        return os.path.realpath(path) == os.path.realpath(other)


def _dry_run(
    given: Input, journal: Path | None, access: Access, *, output: Literal["text", "json"]
) -> int:
    """Say what would be done. Locks, writes and sends nothing."""
    source = given.source
    found = survey(source, say, ids=True)
    if found.undecodable:
        say(f"{OTHER_ENCODING}.")
    states = States(supersedes=not source.layout.merge)
    project, origin = access.known_project(), access.known_origin()
    if journal is not None and journal.exists():
        header = None
        if project is not None:
            fingerprint = found.beginning if source.is_pipe else source.fingerprint()
            header = header_of(source, project, origin or "", fingerprint, found.layout)
        look(journal, header, states)
    counts = states.counts
    final = sum(counts[outcome] for outcome in FINAL - {Outcome.INVALID})
    to_send = max(found.records - found.invalid - final, 0)
    seconds = to_send / (given.rate or RATE_LIMIT)
    if output == "json":
        put_json(
            {
                "dry_run": True,
                "records": found.records,
                "invalid": found.invalid,
                "emptied": found.emptied,
                "repeated": found.repeated,
                "updated": counts[Outcome.UPDATED],
                "superseded": counts[Outcome.SUPERSEDED],
                "unchanged": counts[Outcome.UNCHANGED],
                "to_send": to_send,
                "seconds": round(seconds, 1),
            }
        )
    else:
        rows = [
            ("records", found.records, ""),
            ("bad lines", found.invalid, ""),
            ("empty", found.emptied, "metadata is empty, which clears the message's"),
            ("repeated", found.repeated, "an earlier record has the same id"),
            ("updated", counts[Outcome.UPDATED], f"by {journal}"),
            ("unchanged", counts[Outcome.UNCHANGED], f"by {journal}"),
            ("superseded", counts[Outcome.SUPERSEDED], ""),
            ("to send", to_send, f"in about {duration(seconds)}"),
        ]
        for name, number, more in rows:
            if number or name in ("records", "bad lines", "to send"):
                put(f"{name:<10}  {number:>12,}   {more}".rstrip())
        put("Nothing was sent.")
    if not found.invalid:
        return 0
    return USAGE if given.bad_lines == "stop" else SOME_FAILED
