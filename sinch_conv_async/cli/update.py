"""``sinch-conv update``: one message."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from .._wire.structure import to_dict
from ..enums import MessagesSource, MessagesSourceName
from ..errors import SinchError
from .access import Finite, access_of, with_access
from .output import Ended, PrintingCommand, put_json
from .words import exit_code_of, sentence

__all__ = ["update"]


@click.command(cls=PrintingCommand)
@click.argument("message_id")
@click.argument("metadata")
@click.option(
    "--messages-source",
    type=click.Choice([str(source) for source in MessagesSource]),
    help="Where the message is kept. The API assumes CONVERSATION_SOURCE.",
)
@click.option(
    "--timeout",
    type=Finite(min=0, min_open=True),
    metavar="SECONDS",
    help="Seconds after which to give up.",
)
@with_access
def update(
    message_id: str,
    metadata: str,
    messages_source: MessagesSourceName | None,
    timeout: float | None,
    **options: Any,
) -> int:
    """Set the metadata of one message, and print the message as the API answers it.

    Exit code 0: updated. 1: not updated. 2: bad arguments. 3: bad credentials.
    """
    access = access_of(options)

    async def call() -> dict[str, Any]:
        async with access.manager() as manager, access.client(manager) as client:
            message = await client.update_message_metadata(
                message_id, metadata, messages_source=messages_source, timeout=timeout
            )
            return to_dict(message)

    try:
        message = asyncio.run(call())
    except SinchError as error:
        raise Ended(sentence(error), exit_code_of(error)) from None
    put_json(message, indent=2, done="; the message is updated")
    return 0
