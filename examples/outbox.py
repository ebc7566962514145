"""An outbox in PostgreSQL: the relay sends what a service has written into a table.

    python examples/outbox.py postgresql://127.0.0.1/app

The service inserts a row in the transaction that also holds its own data. The relay deletes a row
when its update succeeded, and records the error of a failed one.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import attrs
import psycopg

from sinch_conv_async import ConversationClient, MetadataUpdate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POLL = 0.2  # seconds between looks at an empty outbox

TABLE = """
create table if not exists outbox (
    number bigint generated always as identity primary key,
    message_id text not null,
    metadata text not null,
    error text
)"""
NEXT = """
select number, message_id, metadata from outbox
where error is null and number <> all(%s) order by number limit 100"""


@attrs.frozen
class Row(MetadataUpdate):
    number: int = 0


async def rows(
    db: psycopg.AsyncConnection, under_way: set[int]
) -> AsyncIterator[MetadataUpdate]:
    while True:
        found = await (await db.execute(NEXT, [list(under_way)])).fetchall()
        for number, message_id, metadata in found:
            under_way.add(number)
            yield Row(message_id, metadata, number=number)
        if not found:
            await asyncio.sleep(POLL)


async def main(url: str) -> None:
    connect = psycopg.AsyncConnection.connect
    under_way: set[int] = set()
    async with (
        await connect(url, autocommit=True) as reading,
        await connect(url, autocommit=True) as writing,
        ConversationClient.from_env() as client,
        client.update_many(rows(reading, under_way), max_outage=None) as outcomes,
    ):
        # One relay at a time: another one waits here.
        await writing.execute("select pg_advisory_lock(hashtext('outbox'))")
        await writing.execute(TABLE)
        # If a crash undoes the delete, the update is sent once more.
        await writing.execute("set synchronous_commit = off")
        await client.authenticate()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, outcomes.stop_reading)
        async for outcome in outcomes:
            row = outcome.update
            assert isinstance(row, Row)
            if outcome.error is None:
                await writing.execute(
                    "delete from outbox where number = %s", [row.number]
                )
            else:
                note = "update outbox set error = %s where number = %s"
                await writing.execute(note, [str(outcome.error), row.number])
            under_way.discard(row.number)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
