"""The command line: what is asked for in words, what is answered in sentences and exit codes.

Secrets come from the environment or a file, never from an argument, which every process of the machine can read. Metadata is
not printed, but for the one message that ``update`` answers with.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar

import attrs
import click

from .._core.manager import SessionManager
from .._job.input import InputError, Layout, Source
from .._job.job import SHARE_FROM, FailureLimit, part_of
from .._job.journal import JournalError, Outcome, States, look
from .._job.progress import duration, progress_on
from .._job.run import (
    CONCURRENCY,
    INTERRUPTED,
    REFUSED,
    SOME_FAILED,
    USAGE,
    Report,
    Run,
    exit_code,
    header_of,
    sentence,
    survey,
)
from .._wire import http as _wire
from .._wire.structure import to_dict
from ..bulk import MAX_OUTAGE
from ..client import _ENVIRONMENT, RATE_LIMIT, ClientOptions, ConversationClient
from ..enums import MessagesSource, Region
from ..errors import InvalidArgumentError, SinchError

try:
    import resource
except ImportError:  # pragma: no cover  # Windows has no such module
    resource = None  # type: ignore[assignment]  # mypy sees a module

if TYPE_CHECKING:
    from ..sandbox import Sandbox

__all__ = ["run"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Ended(click.ClickException):
    """The command ends here, with this sentence and this exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # a class variable to mypy; click reads it of the instance


class _Finite(click.FloatRange):
    """A number that is one: click takes ``nan`` and ``inf`` too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        code = main.main(arguments, prog_name="sinch-conv", standalone_mode=False)
    except click.exceptions.Abort:
        _say("Interrupted.")
        return INTERRUPTED
    except click.ClickException as error:
        with contextlib.suppress(OSError, ValueError):
            error.show()
        return error.exit_code
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _printing(done: str = "", code: int = 0) -> Generator[None]:
    """For what goes to standard output. If there is no room, the command says so and what is ``done``.

    It then ends with ``code``, or with 1 instead of 0.
    """
    try:
        yield
    except OSError as error:
        # EPIPE: the reader has seen enough, and wants to hear no more.
        if error.errno != errno.EPIPE:
            problem = f"standard output cannot be written: {error.strerror}{done}"
            raise Ended(problem, code or SOME_FAILED) from None


class _PrintingCommand(click.Command):
    """A command whose --help and --version are printed like everything else."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _printing():
            return super().parse_args(ctx, args)
        raise click.exceptions.Exit(0)


class _PrintingGroup(_PrintingCommand, click.Group):
    command_class = _PrintingCommand


@click.group(cls=_PrintingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_wire.VERSION, package_name="sinch-conv-async")
def main() -> None:
    """Change the metadata of messages in the Sinch Conversation API. Unofficial.

    Credentials are read from SINCH_PROJECT_ID, SINCH_KEY_ID, SINCH_KEY_SECRET and
    SINCH_CONVERSATION_REGION, or from a file of such lines (--credentials).
    """


# Options of every command that calls the API


@attrs.frozen
class Access:
    """Where to, as whom, and how fast, as the options have it."""

    file: Path | None
    credentials: dict[str, str] = attrs.field(repr=False)  # what the file says
    project_id: str | None
    region: str | None
    conversation_origin: str | None
    auth_origin: str | None
    auth: Literal["oauth2", "basic"]

    def client(self, manager: SessionManager, *, rate: float | None = None) -> ConversationClient:
        """A client for these options. What is missing or wrong ends the command with exit code 3."""
        options: ClientOptions = {"session_manager": manager, "auth": self.auth}
        options.update(self.credentials)  # type: ignore[typeddict-item]  # its keys are a client's
        for name, value in (
            ("project_id", self.project_id),
            ("conversation_region", self.region),
            ("conversation_origin", self.conversation_origin),
            ("auth_origin", self.auth_origin),
        ):
            if value is not None:
                options[name] = value  # type: ignore[literal-required]  # the four names above
        if rate is not None:
            options["rate_limit"] = rate
        try:
            return ConversationClient.from_env(**options)
        except InvalidArgumentError as error:
            refusal = str(error)
        # A name misspelt there is passed over, and nobody would look for it.
        looked = "" if self.file is None else f" (credentials were read from {self.file}, too)"
        raise Ended(refusal + looked, REFUSED)

    def known_project(self) -> str | None:
        """The project, where that much is known."""
        return self.project_id or self.credentials.get("project_id") or os.environ.get("SINCH_PROJECT_ID")


_IN_CREDENTIALS: Final = {variable: option for option, variable in _ENVIRONMENT.items()}


def read_credentials(path: Path) -> dict[str, str]:
    """The client's options from lines of ``NAME=value``: ``export`` before and quotes around are allowed, other names are passed over."""
    try:
        text = path.read_text("utf-8-sig")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise Ended(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}", REFUSED) from None
    if mode & 0o044 and os.name == "posix":
        _say(f"Warning: others can read {path}, and what is in it; chmod 600 keeps it yours.")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise Ended(f"{path}, line {number}: not NAME=value", REFUSED)
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if name.strip() in _IN_CREDENTIALS and value:
            found[_IN_CREDENTIALS[name.strip()]] = value
    return found


def _origin(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return _wire.checked_origin("it", value)
    except InvalidArgumentError as error:
        raise click.BadParameter(str(error)) from None


_ACCESS_OPTIONS: Final = (
    click.option(
        "--credentials",
        type=click.Path(readable=False, path_type=Path),
        metavar="FILE",
        help="File with lines such as SINCH_KEY_ID=...; wins over the environment.",
    ),
    click.option("--project-id", metavar="ID", help="Instead of SINCH_PROJECT_ID."),
    click.option(
        "--region",
        type=click.Choice([str(region) for region in Region]),
        help="Instead of SINCH_CONVERSATION_REGION.",
    ),
    click.option(
        "--conversation-origin", metavar="URL", callback=_origin, help="Instead of the region's own."
    ),
    click.option("--auth-origin", metavar="URL", callback=_origin, help="Instead of https://auth.sinch.com."),
    click.option(
        "--auth",
        type=click.Choice(["oauth2", "basic"]),
        default="oauth2",
        show_default=True,
        help="How to sign in; basic is for trying things out, since the API limits it heavily.",
    ),
)


def with_access(command: _Command) -> _Command:
    """Adds the options of every command that calls the API."""
    for option in reversed(_ACCESS_OPTIONS):
        command = option(command)
    return command


_SILENT: Final = logging.NullHandler()


def _access(options: dict[str, Any]) -> Access:
    # What the package logs, these commands say in sentences of their own; Python's last resort would print it as well.
    logging.getLogger("sinch_conv_async").addHandler(_SILENT)
    path = options.pop("credentials")
    given = {} if path is None else read_credentials(path)
    return Access(path, given, *(options.pop(field.name) for field in attrs.fields(Access)[2:]))


# update


@main.command()
@click.argument("message_id")
@click.argument("metadata")
@click.option(
    "--messages-source",
    type=click.Choice([str(source) for source in MessagesSource]),
    help="Where the message is kept; the API assumes CONVERSATION_SOURCE.",
)
@click.option(
    "--timeout",
    type=_Finite(min=0, min_open=True),
    metavar="SECONDS",
    help="Seconds after which to give up.",
)
@with_access
def update(
    message_id: str, metadata: str, messages_source: str | None, timeout: float | None, **options: Any
) -> int:
    """Set the metadata of one message, and print the message as the API answers it.

    Exit code 0: updated. 1: not updated. 2: bad arguments. 3: bad credentials.
    """
    access = _access(options)

    async def call() -> dict[str, Any]:
        async with SessionManager() as manager, access.client(manager) as client:
            message = await client.update_message_metadata(
                message_id, metadata, messages_source=messages_source, timeout=timeout
            )
            return to_dict(message)

    try:
        message = asyncio.run(call())
    except SinchError as error:
        _fail(error)
    _print(json.dumps(message, indent=2, ensure_ascii=False), done="; the message is updated")
    return 0


def _fail(error: SinchError) -> NoReturn:
    raise Ended(sentence(error), exit_code(error)) from None


# bulk


def _failure_limit(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> FailureLimit | None:
    if value is None:
        return None
    number, percent, rest = value.partition("%")
    if rest or not number.isascii() or not number.replace(".", "", int(bool(percent))).isdigit():
        raise click.BadParameter("a whole number, or a percentage such as 2.5%")
    if percent and float(number) > 100:
        raise click.BadParameter("more than 100%")
    return FailureLimit(float(number), bool(percent))


def _delimiter(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    value = {"tab": "\t", "\\t": "\t"}.get(value, value) if value is not None else None
    if value is not None and (len(value) != 1 or value in '\r\n"'):
        raise click.BadParameter("one character, or 'tab'")
    return value


def _failures(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Where failures are written: by taking the place of a plain file, or of none, but of nothing else."""
    if value is None:
        return None
    if value == Path("-"):
        raise click.BadParameter("a file is wanted, not standard output")
    if value.exists() and not value.is_file():
        raise click.BadParameter(f"{value} is not a plain file")
    return Path(os.path.realpath(value)) if value.is_symlink() else value


@main.command()
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--dry-run", is_flag=True, help="Check the whole input and say what would be done; needs no credentials."
)
@click.option(
    "--journal",
    # What is wrong with this file the journal says, and with exit code 3.
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="Where to write what became of each record.  [default: FILE.journal.jsonl]",
)
@click.option(
    "--failures",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    callback=_failures,
    help="Where to write the records that failed, in the input's own format.",
)
@click.option(
    "--on-bad-line",
    "bad_lines",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do about a line that is no update.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl"]),
    help="By default told from the name, else from the first line.",
)
@click.option(
    "--delimiter",
    callback=_delimiter,
    metavar="CHAR",
    help="Between the fields of a CSV.  [default: a comma; a tab for .tsv]",
)
@click.option(
    "--id-column",
    default="message_id",
    show_default=True,
    metavar="NAME",
    help="Column or key of the message id.",
)
@click.option(
    "--metadata-column",
    default="metadata",
    show_default=True,
    metavar="NAME",
    help="Column or key of the metadata.",
)
@click.option(
    "--source-column",
    default="messages_source",
    show_default=True,
    metavar="NAME",
    help="Column or key of the messages source; may be missing.",
)
@click.option(
    "--rate",
    type=_Finite(min=0, min_open=True),
    metavar="N",
    help=f"Requests a second.  [default: {RATE_LIMIT:g}, what the API allows a project]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help=f"Updates under way at a time.  [default: {CONCURRENCY}]",
)
@click.option(
    "--max-failures",
    "limit",
    callback=_failure_limit,
    metavar="N|N%",
    help=f"End the job when more than so many have failed; a percentage counts from {SHARE_FROM} updates on.",
)
@click.option(
    "--max-outage",
    type=_Finite(min=0, min_open=True),
    default=MAX_OUTAGE,
    metavar="SECONDS",
    help=f"How long to wait for an API that takes no updates.  [default: {MAX_OUTAGE:g}]",
)
@click.option(
    "--fsync",
    is_flag=True,
    help="Bring each line of the journal to the disk at once: safe from power loss, and slower.",
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
    file: str,
    dry_run: bool,
    journal: Path | None,
    failures: Path | None,
    bad_lines: Literal["stop", "skip"],
    form: Literal["csv", "jsonl"] | None,
    delimiter: str | None,
    id_column: str,
    metadata_column: str,
    source_column: str,
    rate: float | None,
    concurrency: int | None,
    limit: FailureLimit | None,
    max_outage: float,
    fsync: bool,
    output: Literal["text", "json"],
    quiet: bool,
    **options: Any,
) -> int:
    """Update every message that FILE names: CSV with a header, or JSON Lines; gzipped if the name ends in .gz; - for a pipe.

    What became of each record is written to a journal. Started again, the job goes on where it was, and tries
    again what failed. Ctrl-C finishes what is under way; a second Ctrl-C ends at once.

    Exit code 0: all updated. 1: some failed. 2: bad arguments or input. 3: credentials or journal. 130: interrupted.
    """
    path = None if file == "-" else Path(file)
    names = "" if path is None else path.name.removesuffix(".gz")
    layout = Layout(
        form or _format_of(names),
        delimiter or ("\t" if names.endswith(".tsv") else ","),
        id_column,
        metadata_column,
        source_column,
    )
    if len({id_column, metadata_column, source_column}) < 3:
        raise click.UsageError(
            "--id-column, --metadata-column and --source-column must name different columns"
        )
    source = Source(path, layout)
    with _told(output):
        access = _access(options)
        is_pipe = source.is_pipe
        if journal is None and not is_pipe:
            assert path is not None  # standard input is a pipe
            journal = path.with_name(path.name + ".journal.jsonl")
        _check_places(source, journal, failures)
        if dry_run:
            return _dry_run(source, journal, access, bad_lines=bad_lines, rate=rate, output=output)
        if journal is None:
            raise click.UsageError("what comes from a pipe needs --journal FILE")
        manager = SessionManager(max_connections=concurrency or CONCURRENCY)
        client = access.client(manager, rate=rate)  # without credentials nothing else is worth its time
        _allow_files((concurrency or CONCURRENCY) + FILES)
        run_of = Run(
            source,
            access.known_project() or "",  # the client has refused to do without
            journal,
            failures=failures,
            bad_lines=bad_lines,
            limit=limit,
            concurrency=concurrency,
            max_outage=max_outage,
            fsync=fsync,
        )
        with _terminated_as_interrupted():
            report = run_of(client, manager, progress_on(sys.stderr, quiet=quiet))
    _tell(report, output=output)
    if report.remaining != 0 or report.failed:
        what = "To try again what failed" if report.remaining == 0 else "To go on"
        how = ", with the same input" if is_pipe else ""
        given = sys.argv[1:]
        if report.at_bad_line:
            how = ", mend that line in the input, or leave it out"
            # Right behind the command's name: behind a -- it would be no option.
            given[1:1] = ["--on-bad-line", "skip"]
        _say(f"{what}{how}: {shlex.join(['sinch-conv', *given])}")
    return report.exit_code


@contextlib.contextmanager
def _told(output: Literal["text", "json"]) -> Generator[None]:
    """Ends the command for what keeps a job from beginning, with a document for machines where that was asked for."""
    try:
        yield
        return
    except InputError as error:
        ended = Ended(str(error), USAGE)
    except JournalError as error:
        ended = Ended(str(error), REFUSED)
    except Ended as error:
        ended = error
    if output == "json":
        _print(json.dumps({"exit_code": ended.exit_code, "error": ended.message}), code=ended.exit_code)
    raise ended


def _tell(report: Report, *, output: Literal["text", "json"]) -> None:
    if report.error is not None:
        _say(f"Error: {report.error}")
    text = json.dumps(report.to_json()) if output == "json" else report.to_text()
    done = "" if report.journal is None else f"; what became of each record is in {report.journal}"
    _print(text, done=done, code=report.exit_code)


FILES: Final = 32
"""Files that a job has open beside its connections, and some to spare."""


def _allow_files(number: int) -> None:
    """Lets the process open so many files, where the system leaves that to it: some begin with 256, fewer than a job may have connections."""
    if resource is None:
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (limit, most) and most < number:
        _say(
            f"Warning: this process may open {most:,} files only, and needs {number:,};"
            f" --concurrency {max(most - FILES, 1)} would keep within that."
        )
        number = most
    if limit != resource.RLIM_INFINITY and limit < number:
        with contextlib.suppress(OSError, ValueError):  # macOS has a limit beside this one
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, most))


def _format_of(name: str) -> Literal["csv", "jsonl"] | None:
    if name.endswith((".csv", ".tsv")):
        return "csv"
    return "jsonl" if name.endswith((".jsonl", ".ndjson")) else None


def _check_places(source: Source, journal: Path | None, failures: Path | None) -> None:
    """Each of the three files is another one, and failures can be written: better now than after a night's work."""
    taken = [path for path in (source.path, journal) if path is not None]
    if len(taken) == 2 and _are_one(*taken):
        raise click.UsageError("--journal names the input; name a file that is not there yet")
    if failures is None:
        return
    for place in (failures, part_of(failures)):
        if any(_are_one(place, path) for path in taken):
            raise click.UsageError(
                f"--failures would overwrite {place}, which is the input or the journal; name another file"
            )
    if not os.access(failures.absolute().parent, os.W_OK | os.X_OK):
        raise click.UsageError(f"--failures: no file can be made in {failures.absolute().parent}")


def _are_one(path: Path, other: Path) -> bool:
    """Whether these two are one file, by whatever names."""
    try:
        return path.samefile(other)
    except OSError:  # one of them is not there yet
        return os.path.realpath(path) == os.path.realpath(other)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Generator[None]:
    """SIGTERM does what Ctrl-C does, also outside an event loop."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dry_run(
    source: Source,
    journal: Path | None,
    access: Access,
    *,
    bad_lines: Literal["stop", "skip"],
    rate: float | None,
    output: Literal["text", "json"],
) -> int:
    """Says what would be done. Locks nothing, writes nothing, sends nothing."""
    found = survey(source, _say)
    states = States()
    project = access.known_project()
    if journal is not None and journal.exists():
        header = None
        if project is not None and not source.is_pipe:
            header = header_of(source, project, source.fingerprint(), found.layout)
        states = look(journal, header)
    counts = states.counts
    final = counts[Outcome.UPDATED] + counts[Outcome.SUPERSEDED]
    to_send = max(found.records - found.invalid - final, 0)
    seconds = to_send / (rate or RATE_LIMIT)
    if output == "json":
        report = {
            "dry_run": True,
            "records": found.records,
            "invalid": found.invalid,
            "updated": counts[Outcome.UPDATED],
            "superseded": counts[Outcome.SUPERSEDED],
            "to_send": to_send,
            "seconds": round(seconds, 1),
        }
        _print(json.dumps(report))
    else:
        _print(f"records     {found.records:>12,}")
        _print(f"bad lines   {found.invalid:>12,}")
        if final:
            _print(f"updated     {counts[Outcome.UPDATED]:>12,}   by {journal}")
        if counts[Outcome.SUPERSEDED]:
            _print(f"superseded  {counts[Outcome.SUPERSEDED]:>12,}")
        _print(f"to send     {to_send:>12,}   in about {duration(seconds)}")
        _print("Nothing was sent.")
    if not found.invalid:
        return 0
    return USAGE if bad_lines == "stop" else SOME_FAILED


def _print(text: str, *, done: str = "", code: int = 0) -> None:
    """Prints a text on standard output; ``_printing`` says what follows when that fails."""
    with _printing(done, code):
        click.echo(text)


def _say(sentence: str) -> None:
    """To standard error, if that takes it: what a command does, and its exit code, do not depend on who listens."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(sentence, err=True)


# sandbox


@attrs.frozen
class Every:
    """``--fail 503:100``: every hundredth request is answered 503."""

    number: int
    status: int


def _every(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Every, ...]:
    found = []
    for value in values:
        status, _, number = value.partition(":")
        if not (status.isdigit() and number.isdigit() and 400 <= int(status) <= 599 and int(number) > 0):
            raise click.BadParameter("STATUS:N, such as 503:100")
        found.append(Every(int(number), int(status)))
    return tuple(found)


@main.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    metavar="PORT",
    help="0 takes a free one.",
)
@click.option(
    "--rate-limit",
    type=click.IntRange(0),
    default=800,
    show_default=True,
    metavar="N",
    help="Requests in a second before it answers 429; 0: no limit.",
)
@click.option("--latency", type=_Finite(0), default=0.0, metavar="SECONDS", help="Added before each answer.")
@click.option(
    "--token-lifetime",
    type=_Finite(0, min_open=True),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="How long an access token is good for.",
)
@click.option(
    "--fail",
    "fails",
    multiple=True,
    callback=_every,
    metavar="STATUS:N",
    help="Answer every Nth request with this status; may be given more than once.",
)
@click.option("--drop", type=click.IntRange(1), metavar="N", help="Drop the connection of every Nth request.")
@click.option(
    "--expire-tokens", type=click.IntRange(1), metavar="N", help="Let all tokens expire at every Nth request."
)
def sandbox(
    port: int,
    rate_limit: int,
    latency: float,
    token_lifetime: float,
    fails: tuple[Every, ...],
    drop: int | None,
    expire_tokens: int | None,
) -> int:
    """A stand-in for the API on this machine, for trying things out. It knows every message id.

    Prints the environment that leads to it, one NAME=value a line, and runs until Ctrl-C.
    """
    # Here: its web server is of no use to the other commands, and takes its time to load.
    from ..sandbox import Sandbox

    box = Sandbox(
        port=port,
        rate_limit=rate_limit or None,
        latency=latency,
        token_lifetime=token_lifetime,
        auto_create=True,
        keep_requests=0,
    )
    for fail in fails:
        box.every(fail.number, functools.partial(box.fail_next, fail.status))
    if drop is not None:
        box.every(drop, box.drop_next)
    if expire_tokens is not None:
        box.every(expire_tokens, box.expire_tokens)
    try:
        asyncio.run(_serve(box))
    except OSError as error:
        raise Ended(f"port {port}: {error.strerror}", USAGE) from None
    return 0


async def _serve(box: Sandbox) -> None:
    over = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # on Windows, where Ctrl-C ends it all the same
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with box:
        for name, value in environment(box).items():
            _print(f"{name}={value}")  # flushed by click
        await over.wait()


def environment(box: Sandbox) -> dict[str, str]:
    """What leads to a sandbox, as the client reads it."""
    options = box.client_options()
    return {
        "SINCH_PROJECT_ID": options["project_id"],
        "SINCH_KEY_ID": options["key_id"],
        "SINCH_KEY_SECRET": options["key_secret"],
        "SINCH_CONVERSATION_ORIGIN": options["conversation_origin"],
        "SINCH_AUTH_ORIGIN": options["auth_origin"],
    }


# demo


@main.command()
@click.option(
    "--messages",
    type=click.IntRange(100, 100_000),
    default=4000,
    show_default=True,
    metavar="N",
    help="How many to update.",
)
def demo(messages: int) -> int:
    """Update a few thousand messages in a sandbox that misbehaves, and check that none was lost.

    A file is generated and run through the same code as bulk does, at the API's own 800 requests a second.
    """
    from .demo import demonstrate  # here: it brings the sandbox

    with _terminated_as_interrupted():
        report, lost = demonstrate(messages, progress_on(sys.stderr), _say)
    _tell(report, output="text")
    if report.exit_code:
        return report.exit_code
    if lost:
        raise Ended(f"{lost:,} messages do not hold what they should", SOME_FAILED)
    _print(f"All {messages:,} messages hold the right metadata.")
    return 0
