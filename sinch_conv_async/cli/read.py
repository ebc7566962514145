"""``sinch-conv get`` and ``sinch-conv list``: messages as the API has them."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, Literal

import click

from .._wire.structure import to_dict
from ..client import ConversationClient
from ..enums import Channel, Direction, MessagesSource, MessagesView
from ..errors import SinchError
from ..models import ConversationMessage
from .access import Access, Finite, access_of, with_access
from .output import Ended, PrintingCommand, put, put_json
from .progress import Lines, Quiet
from .words import exit_code_of, sentence

__all__ = ["get", "list_"]

COLUMNS: Final = (
    "id",
    "metadata",
    "accept_time",
    "direction",
    "conversation_id",
    "contact_id",
    "channel",
    "identity",
)
"""Of ``list --output csv``."""


def _word(words: type[StrEnum]) -> click.Choice[str]:
    return click.Choice([str(word) for word in words], case_sensitive=False)


class _Moment(click.ParamType[datetime.datetime]):
    """A time with its zone, in the forms of ISO 8601."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime.datetime:
        """The time, or a usage error."""
        try:
            moment = datetime.datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-11-24T08:00:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(
                f"{value!r} has no zone; add Z for UTC, or an offset such as +01:00", param, ctx
            )
        return moment


@click.command(cls=PrintingCommand)
@click.argument("message_id")
@click.option(
    "--messages-source",
    type=_word(MessagesSource),
    help="Where the message is kept. The API assumes CONVERSATION_SOURCE.",
)
@click.option(
    "--timeout",
    type=Finite(min=0, min_open=True),
    metavar="SECONDS",
    help="Seconds after which to give up.",
)
@with_access
def get(message_id: str, messages_source: str | None, timeout: float | None, **options: Any) -> int:
    """Read one message, and print it as JSON.

    Exit code 0: printed. 1: not read. 2: bad arguments. 3: bad credentials.
    """
    found: list[ConversationMessage] = []

    async def read(client: ConversationClient) -> None:
        source = None if messages_source is None else MessagesSource(messages_source)
        found.append(await client.get_message(message_id, messages_source=source, timeout=timeout))

    _called(access_of(options), read)
    put_json(to_dict(found[0]), indent=2)
    return 0


@click.command("list", cls=PrintingCommand)
@click.option("--conversation-id", metavar="ID", help="Only messages of this conversation.")
@click.option("--contact-id", metavar="ID", help="Only messages of this contact.")
@click.option("--app-id", metavar="ID", help="Only messages of this app.")
@click.option(
    "--channel-identity", metavar="TEXT", help="Only messages of this recipient on a channel."
)
@click.option(
    "--channel", type=_word(Channel), metavar="NAME", help="Only messages on this channel."
)
@click.option("--direction", type=_word(Direction), help="Only messages in this direction.")
@click.option(
    "--start-time", type=_Moment(), metavar="TIME", help="Only messages accepted after then."
)
@click.option(
    "--end-time", type=_Moment(), metavar="TIME", help="Only messages accepted before then."
)
@click.option(
    "--only-recipient-originated",
    is_flag=True,
    default=None,
    help="Only messages that recipients have sent.",
)
@click.option("--view", type=_word(MessagesView), help="Whether messages come with their metadata.")
@click.option(
    "--messages-source",
    type=_word(MessagesSource),
    help="Where the messages are kept. The API assumes CONVERSATION_SOURCE.",
)
@click.option(
    "--page-size",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    metavar="N",
    help="Messages of one request.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after so many messages.")
@click.option(
    "--output",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="One JSON object a line with all fields, or the columns " + ", ".join(COLUMNS) + ".",
)
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@with_access
def list_(limit: int | None, output: Literal["jsonl", "csv"], quiet: bool, **options: Any) -> int:
    """Print messages, the newest first, one a line.

    The output is an input of bulk. Progress is shown when standard output is no terminal.

    Exit code 0: all printed. 1: the API failed on the way. 2: bad arguments. 3: bad credentials.
    """
    access = access_of(options)
    errors = sys.stderr
    hidden = quiet or sys.stdout is None or sys.stdout.isatty()
    progress = Quiet(errors) if hidden or errors is None else Lines(errors, unit="messages")
    if limit is not None:
        options["page_size"] = min(limit, options["page_size"])
    line = _json_line if output == "jsonl" else _csv_line

    async def read(client: ConversationClient) -> None:
        if output == "csv" and not put(_row(COLUMNS)):
            return
        number = 0
        progress.start(limit, 0)
        async with client.list_messages(**options) as messages:
            async for message in messages:
                if not line(message):
                    return
                number += 1
                progress.see(number, 0, outage=None)
                if number == limit:
                    return

    _called(access, read)
    return 0


def _called(access: Access, work: Callable[[ConversationClient], Any]) -> None:
    """Do the work with a client; an error ends the command."""

    async def call() -> None:
        async with access.manager() as manager, access.client(manager) as client:
            await work(client)

    try:
        asyncio.run(call())
    except SinchError as error:
        raise Ended(sentence(error), exit_code_of(error)) from None


def _json_line(message: ConversationMessage) -> bool:
    return put_json(to_dict(message))


def _csv_line(message: ConversationMessage) -> bool:
    fields = to_dict(message)
    fields |= fields.get("channel_identity") or {}
    return put(_row(["" if fields.get(name) is None else fields[name] for name in COLUMNS]))


def _row(fields: Any) -> str:
    out = io.StringIO()
    # Python 3.11 quotes a field with a line break only if the break is part of this terminator.
    csv.writer(out, lineterminator="\r\n").writerow(fields)
    return out.getvalue().removesuffix("\r\n")
