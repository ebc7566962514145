"""The options of an input, which ``bulk`` and ``jobs submit`` share."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import attrs
import click

from .._job.input import Layout, Source
from .._job.run import SHARE_FROM, FailureLimit
from .._wire import json as _json
from .._wire.arguments import checked_metadata
from ..client import RATE_LIMIT
from ..enums import MessagesSource
from ..errors import InvalidArgumentError
from .access import Finite

__all__ = ["CONCURRENCY", "Input", "input_of", "with_input"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

CONCURRENCY: Final = 256
"""Updates under way at a time: enough for 800 a second with answers that take 300 ms."""


@attrs.frozen
class Input:
    """The values of these options: records, bad lines, pace and limits."""

    source: Source
    bad_lines: Literal["stop", "skip"]
    rate: float | None
    concurrency: int | None
    limit: FailureLimit | None


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


def _encoding(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """An encoding that contains ASCII: quotes, delimiters and line ends are single bytes."""
    signs = "".join(map(chr, range(128)))
    try:
        name = codecs.lookup(value).name
        if name == "utf-8-sig":
            return "utf-8"  # a byte order mark is skipped in any case
        fits = signs.encode(name) == signs.encode("ascii") and not name.startswith("iso2022")
    except (LookupError, UnicodeError):
        raise click.BadParameter(f"{value!r} is not a text encoding") from None
    if not fits:
        raise click.BadParameter(f"{value} does not contain ASCII; save the input as UTF-8")
    return name


def _constant(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The metadata of every record.

    It must be JSON, so that quotes which the shell has removed are noticed.
    """
    if value is None:
        return None
    try:
        _json.loads(value.encode())
        checked_metadata(value)
    except InvalidArgumentError as error:
        raise click.BadParameter(str(error)) from None
    except ValueError:
        raise click.BadParameter("it is not JSON; put single quotes around it") from None
    return value


def _format_of(name: str) -> Literal["csv", "jsonl"] | None:
    if name.endswith((".csv", ".tsv")):
        return "csv"
    return "jsonl" if name.endswith((".jsonl", ".ndjson")) else None


_OPTIONS: Final = (
    click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True)),
    click.option(
        "--on-bad-line",
        "bad_lines",
        type=click.Choice(["stop", "skip"]),
        default="stop",
        show_default=True,
        help="What to do with an invalid line.",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(["csv", "jsonl"]),
        help="By default the file's name decides, else the first line.",
    ),
    click.option(
        "--delimiter",
        callback=_delimiter,
        metavar="CHAR",
        help="Between the fields of a CSV.  [default: a comma; a tab for .tsv]",
    ),
    click.option(
        "--encoding",
        default="utf-8",
        show_default=True,
        callback=_encoding,
        metavar="NAME",
        help="Of the input, such as latin-1 or cp1252.",
    ),
    click.option(
        "--id-column",
        metavar="NAME",
        help="Column or key of the message id.  [default: message_id, or id if there is none]",
    ),
    click.option(
        "--metadata-column",
        default="metadata",
        show_default=True,
        metavar="NAME",
        help="Column or key of the metadata.",
    ),
    click.option(
        "--source-column",
        default="messages_source",
        show_default=True,
        metavar="NAME",
        help="Column or key of the messages source; may be missing.",
    ),
    click.option(
        "--messages-source",
        type=click.Choice([str(source) for source in MessagesSource]),
        help="Where the messages are kept, for records that do not say it. "
        "The API assumes CONVERSATION_SOURCE.",
    ),
    click.option(
        "--set",
        "constant",
        callback=_constant,
        metavar="JSON",
        help="The metadata of every record. The input then needs no metadata column.",
    ),
    click.option(
        "--merge",
        is_flag=True,
        help="Read each message, and merge the JSON object of its record (or of --set) "
        "into its metadata.",
    ),
    click.option(
        "--rate",
        type=Finite(min=0, min_open=True),
        metavar="N",
        help=f"Requests a second.  [default: {RATE_LIMIT:g}, what the API allows a project]",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 10_000),
        metavar="N",
        help=f"Updates under way at a time.  [default: {CONCURRENCY}]",
    ),
    click.option(
        "--max-failures",
        "limit",
        callback=_failure_limit,
        metavar="N|N%",
        help="End the job when more records than this have failed; "
        f"a percentage counts from {SHARE_FROM} updates on.",
    ),
)


def with_input(command: _Command) -> _Command:
    """Adds FILE and the options of its records; :func:`input_of` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def input_of(options: dict[str, Any]) -> Input:
    """Take these options out of ``options``. UsageError if two of them exclude each other."""
    file, merge, constant = options.pop("file"), options.pop("merge"), options.pop("constant")
    path = None if file == "-" else Path(file)
    names = "" if path is None else path.name.removesuffix(".gz")
    layout = Layout(
        format=options.pop("form") or _format_of(names),
        delimiter=options.pop("delimiter") or ("\t" if names.endswith(".tsv") else ","),
        message_id=options.pop("id_column"),
        metadata=options.pop("metadata_column"),
        messages_source=options.pop("source_column"),
        encoding=options.pop("encoding"),
        source=options.pop("messages_source"),
        constant=constant,
        merge=merge,
    )
    if merge and constant is not None and not isinstance(_json.loads(constant.encode()), dict):
        raise click.UsageError("--set must be a JSON object to be merged")
    if len({layout.message_id or "message_id", layout.metadata, layout.messages_source}) < 3:
        raise click.UsageError(
            "--id-column, --metadata-column and --source-column must name different columns"
        )
    rest = (options.pop(field.name) for field in attrs.fields(Input)[1:])
    return Input(Source(path, layout), *rest)
