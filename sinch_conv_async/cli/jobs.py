"""``sinch-conv jobs``: jobs in a PostgreSQL database, and the workers that do them."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import functools
import io
import json
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import attrs
import click

from .._job.input import REASON_COLUMN, InputError
from .._job.signals import handled
from ..enums import Region
from ..errors import InvalidArgumentError
from .access import (
    Finite,
    access_of,
    credentials_option,
    fleet_at,
    read_credentials,
    with_access,
)
from .input import input_of, with_input
from .output import (
    INTERRUPTED,
    REFUSED,
    SOME_FAILED,
    USAGE,
    Ended,
    PrintingCommand,
    PrintingGroup,
    put,
    put_json,
    say,
)
from .progress import duration, progress_on
from .words import sentence

if TYPE_CHECKING:
    from ..jobs import JobStatus, JobStore, WorkerReport

__all__ = ["jobs"]

T = TypeVar("T")

FOLLOW_EVERY: Final = 0.5
"""Seconds between two looks at a job that is followed."""

_NEEDED: Final = ("cryptography", "procrastinate", "psycopg", "psycopg_pool")


@click.group(cls=PrintingGroup)
def jobs() -> None:
    """Jobs that outlive their machine: in a PostgreSQL database, sent by any number of workers.

    Credentials never enter the database: each worker has its own. The database is --database, or
    SINCH_CONV_DATABASE.

    Exit code 0: done as asked. 1: some failed. 2: bad arguments or input. 3: database or
    credentials. 130: interrupted.
    """


_database: Final = click.option(
    "--database",
    envvar="SINCH_CONV_DATABASE",
    required=True,
    metavar="URL",
    help="Such as postgresql://user@host/name. Better in SINCH_CONV_DATABASE if it has a password.",
)
_id: Final = click.argument("job", metavar="ID", type=click.IntRange(1, 2**31 - 1))
_output: Final = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The form of what is printed.",
)
_rows: Final = click.option(
    "--output",
    type=click.Choice(["csv", "jsonl"]),
    default="csv",
    show_default=True,
    help="The form of the rows.",
)


@jobs.command(cls=PrintingCommand)
@_database
def schema(database: str) -> None:
    """Make the tables, or bring them up to date. Needs the right to create a schema."""
    with _told():
        _run(lambda store: store.create_schema(), database)
    say("The tables are up to date.")


@jobs.command(cls=PrintingCommand)
@with_input
@click.option(
    "--max-outage",
    type=Finite(min=0, min_open=True),
    metavar="SECONDS",
    help="How long to wait for an API that takes no updates.  [default: for ever]",
)
@credentials_option
@click.option("--project-id", metavar="ID", help="Instead of SINCH_PROJECT_ID.")
@click.option(
    "--region",
    type=click.Choice([str(region) for region in Region], case_sensitive=False),
    help="By default the region that the worker has for the project.",
)
@_database
def submit(
    database: str,
    max_outage: float | None,
    credentials: Path | None,
    project_id: str | None,
    region: str | None,
    **options: Any,
) -> None:
    """Hand in every update that FILE names, and print the job's id; - for standard input.

    All or nothing: if a line is bad, or the input breaks off, no job is made.
    """
    given = input_of(options)
    limit, known = given.limit, {} if credentials is None else read_credentials(credentials)
    with _told():
        job = _run(
            lambda store: store.submit(
                given.source,
                project_id=project_id or known.get("project_id"),
                region=region,
                bad_lines=given.bad_lines,
                rate_limit=given.rate,
                concurrency=given.concurrency,
                max_failures=None if limit is None or limit.percent else limit.number,
                max_failures_percent=limit.number if limit is not None and limit.percent else None,
                max_outage=max_outage,
                say=say,
            ),
            database,
        )
    put(str(job), done=f"; job {job} was made")


@jobs.command("list", cls=PrintingCommand)
@_output
@_database
def list_(database: str, output: Literal["text", "json"]) -> None:
    """List the jobs, the newest first."""
    with _told():
        found = _run(lambda store: store.list(), database)
    if output == "json":
        put_json([_fields(status) for status in found])
        return
    for status in found:
        put(
            f"{status.id:>6}  {status.state:<9}  {status.records:>12,} records"
            f"  {status.remaining:>12,} remaining  {status.failed:>9,} failed"
            f"  {status.submitted_at:%Y-%m-%d %H:%M}  {status.input}"
        )


@jobs.command(cls=PrintingCommand)
@_id
@click.option("--follow", is_flag=True, help="Show the progress until the job has ended.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@_output
@_database
def status(
    database: str, job: int, follow: bool, quiet: bool, output: Literal["text", "json"]
) -> int:
    """Say how far a job is. Ctrl-C ends --follow, and not the job.

    With --follow the exit code is 1 if some updates failed, or the job was cancelled or failed.
    """
    with _told():
        if follow:
            found, interrupted = _run(functools.partial(_followed, job=job, quiet=quiet), database)
        else:
            found, interrupted = _run(lambda store: store.status(job), database), False
    code = 0
    if interrupted:
        code = INTERRUPTED
    elif follow and (found.state != "done" or found.failed or found.invalid):
        code = SOME_FAILED
    _show(found, output, code)
    return code


@jobs.command(cls=PrintingCommand)
@_id
@_output
@_database
def cancel(database: str, job: int, output: Literal["text", "json"]) -> None:
    """End a job. The worker of a running one finishes what is under way."""
    with _told():
        found = _run(lambda store: store.cancel(job), database)
    if not found.final:
        say("The worker finishes what is under way, and then the job is cancelled.")
    _show(found, output, 0)


@jobs.command(cls=PrintingCommand)
@_id
@_output
@_database
def retry(database: str, job: int, output: Literal["text", "json"]) -> None:
    """Put a job that has ended back into the queue: what failed, and what remains, is tried."""
    with _told():
        _show(_run(lambda store: store.retry(job), database), output, 0)


@jobs.command(cls=PrintingCommand)
@_id
@_database
def delete(database: str, job: int) -> None:
    """Delete a job that has ended, with its records and outcomes."""
    with _told():
        _run(lambda store: store.delete(job), database)
    say(f"Job {job} is deleted.")


@jobs.command(cls=PrintingCommand)
@_id
@_rows
@_database
def failures(database: str, job: int, output: Literal["csv", "jsonl"]) -> None:
    """Print the records that failed, as an input of bulk or of another job, with the reason.

    Bad lines that were left out are not among them: outcomes has these.
    """

    async def rows(store: JobStore) -> AsyncGenerator[dict[str, Any], None]:
        async with contextlib.aclosing(store.failures(job)) as found:
            async for failure in found:
                yield {
                    "message_id": failure.message_id,
                    "metadata": failure.metadata,
                    "messages_source": failure.messages_source,
                    REASON_COLUMN: failure.reason,
                }

    columns = ("message_id", "metadata", "messages_source", REASON_COLUMN)
    with _told():
        _run(lambda store: _print_rows(rows(store), columns, output), database)


@jobs.command(cls=PrintingCommand)
@_id
@_rows
@_database
def outcomes(database: str, job: int, output: Literal["csv", "jsonl"]) -> None:
    """Print what became of each record that has an outcome."""

    async def rows(store: JobStore) -> AsyncGenerator[dict[str, Any], None]:
        async with contextlib.aclosing(store.outcomes(job)) as found:
            async for outcome in found:
                yield {**attrs.asdict(outcome), "ended_at": outcome.ended_at.isoformat()}

    with _told():
        columns = tuple(field.name for field in attrs.fields(_module().JobOutcome))
        _run(lambda store: _print_rows(rows(store), columns, output), database)


@jobs.command(cls=PrintingCommand)
@click.option(
    "--jobs",
    "number",
    type=click.IntRange(1, 1_000),
    default=5,
    show_default=True,
    metavar="N",
    help="Jobs at a time, each of another project.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 10_000),
    default=256,
    show_default=True,
    metavar="N",
    help="Requests under way at a time, over all jobs.",
)
@click.option(
    "--retake-after",
    type=Finite(min=0.5),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="After this worker's last sign of life, until others take its jobs.",
)
@click.option(
    "--also",
    type=click.Path(readable=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Credentials of a further project, a file as for --credentials. May be repeated.",
)
@_database
@with_access
def worker(
    database: str,
    number: int,
    max_connections: int,
    retake_after: float,
    also: tuple[Path, ...],
    **options: Any,
) -> int:
    """Do the jobs of the projects whose credentials this process has, until it is stopped.

    Ctrl-C or SIGTERM finishes what is under way and gives the rest back to other workers; a second
    one ends at once.
    """
    access = access_of(options)
    for name in ("procrastinate", "psycopg"):
        # What these two log is said here in sentences of our own.
        logging.getLogger(name).addHandler(logging.NullHandler())
    module = _module()
    keys = [access.client_options(), *(access.client_options(path) for path in also)]
    stop = asyncio.Event()

    def run() -> Coroutine[Any, Any, WorkerReport]:
        running: Coroutine[Any, Any, WorkerReport] = module.run_worker(
            database,
            credentials=keys,
            jobs=number,
            max_connections=max_connections,
            fleet=None if access.fleet is None else fleet_at(access.fleet),
            proxy=access.proxy,
            retake_after=retake_after,
            stop=stop,
        )
        return running

    with _told(credentials=True):
        report = asyncio.run(_until_stopped(run, stop))
    if report is None:
        say("Ended at once. What was under way may be sent again.")
        return INTERRUPTED
    for job, state in report.ended.items():
        say(f"Job {job} is {state}.")
    for job, remaining in report.given_back.items():
        say(f"Gave back job {job}: {remaining:,} records remain.")
    if not report.given_back:
        say("Gave back nothing.")
    return 0


async def _until_stopped(
    run: Callable[[], Coroutine[Any, Any, WorkerReport]], stop: asyncio.Event
) -> WorkerReport | None:
    """What the worker did; None if it was interrupted twice."""
    loop = asyncio.get_running_loop()
    working = loop.create_task(run())

    def interrupt() -> None:
        if stop.is_set():
            working.cancel()
        else:
            say("Finishing the updates under way; a second signal ends the job now.")
            stop.set()

    with handled(functools.partial(loop.call_soon_threadsafe, interrupt)):
        say("Waiting for jobs.")
        try:
            return await working
        except asyncio.CancelledError:
            return None


async def _followed(store: JobStore, *, job: int, quiet: bool) -> tuple[JobStatus, bool]:
    """The job as it ended, and whether it was interrupted before."""
    progress, stop = progress_on(sys.stderr, quiet=quiet), asyncio.Event()
    async with store:
        found = await store.status(job)
        progress.start(found.records, found.records - found.remaining)
        loop = asyncio.get_running_loop()
        try:
            with handled(functools.partial(loop.call_soon_threadsafe, stop.set)):
                if not quiet:
                    progress.say(f"Following job {job}. Ctrl-C ends this, and not the job.")
                while not (found.final or stop.is_set()):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), FOLLOW_EVERY)
                    found = await store.status(job)
                    done = found.records - found.remaining
                    # A running job's error is what it waits for.
                    outage = found.error if found.state == "running" else None
                    progress.see(done, found.failed, outage=outage)
        finally:
            progress.stop()
    return found, not found.final


async def _print_rows(
    rows: AsyncGenerator[dict[str, Any], None],
    columns: tuple[str, ...],
    form: Literal["csv", "jsonl"],
) -> None:
    if form == "csv" and not put(_csv_line(columns)):
        return
    async with contextlib.aclosing(rows):
        async for row in rows:
            text = (
                _csv_line([row[name] for name in columns])
                if form == "csv"
                else json.dumps({name: value for name, value in row.items() if value is not None})
            )
            if not put(text):
                return


def _csv_line(fields: tuple[str, ...] | list[Any]) -> str:
    out = io.StringIO()
    # Python 3.11 quotes a field with a line break only if the break is part of this terminator.
    csv.writer(out, lineterminator="\r\n").writerow(fields)
    return out.getvalue().removesuffix("\r\n")


def _show(status: JobStatus, output: Literal["text", "json"], code: int) -> None:
    if output == "json":
        put_json(_fields(status), code=code)
        return
    rows: list[tuple[str, str, str]] = [
        ("job", str(status.id), status.state),
        ("updated", f"{status.updated:,}", f"of {status.records:,}"),
        ("failed", f"{status.failed:,}", ""),
    ]
    rows += [
        (name, f"{number:,}", "")
        for name, number in (
            ("unchanged", status.unchanged),
            ("superseded", status.superseded),
            ("bad lines", status.invalid),
        )
        if number
    ]
    rate = f"{status.rate:,.0f}/s"
    left = duration(status.remaining / status.rate) if status.rate and status.remaining else ""
    rows.append(("remaining", f"{status.remaining:,}", f"about {left} left" if left else ""))
    rows.append(("rate", rate, f"{duration(status.seconds)} of work"))
    lines = [f"{name:<10}  {number:>12}  {more}".rstrip() for name, number, more in rows]
    if status.error is not None:
        lines.append(status.error)
    put("\n".join(lines), code=code)


def _fields(status: JobStatus) -> dict[str, Any]:
    """The status for machines."""
    fields = attrs.asdict(status)
    for name in ("submitted_at", "started_at", "ended_at"):
        fields[name] = None if fields[name] is None else fields[name].isoformat()
    return {
        **fields,
        "rate": round(status.rate, 1),
        "seconds": round(status.seconds, 3),
    }


def _module() -> Any:
    """The package's part that needs the extra. It is imported by these commands alone."""
    try:
        # Here: it needs an extra that the other commands can do without.
        from .. import jobs as module
    except ModuleNotFoundError as missing:
        if missing.name not in _NEEDED:
            raise
        raise Ended(
            f"jobs need {missing.name}: pip install 'sinch-conv-async[jobs]'", USAGE
        ) from None
    return module


def _run(call: Callable[[JobStore], Coroutine[Any, Any, T]], database: str) -> T:
    store: JobStore = _module().JobStore(database)
    return asyncio.run(call(store))


@contextlib.contextmanager
def _told(*, credentials: bool = False) -> Generator[None]:
    """Ends the command for what the store or the input refuses."""
    module = _module()
    try:
        yield
    except InputError as error:
        raise Ended(sentence(error), USAGE) from None
    except InvalidArgumentError as error:
        raise Ended(str(error), REFUSED if credentials else USAGE) from None
    except (module.JobNotFoundError, module.JobStateError) as error:
        raise Ended(str(error), USAGE) from None
    except module.JobStoreError as error:
        raise Ended(str(error), REFUSED) from None
