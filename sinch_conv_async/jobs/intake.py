"""Records into the database: one COPY into a table of the job's own, then its key, then the parent.

All of it is part of the caller's transaction: an input that breaks off leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import attrs
from psycopg import sql

from .._job.input import BadLine, InputError, InputReason, Layout, Record, Source
from .._job.pipe import FromPipe
from .._wire import json as _json
from .._wire.arguments import checked_id, checked_metadata, checked_word
from ..enums import MessagesSource
from ..errors import InvalidArgumentError
from ..models import MetadataUpdate
from .database import Connection, kept

__all__ = ["NO_NUL", "NO_OBJECT", "Taken", "Updates", "is_object", "load", "partition"]

BLOCK: Final = 1_000
"""Records that are sent to the database at a time."""

MOST_BAD_LINES_SHOWN: Final = 10

NO_NUL: Final = "has a NUL character, which PostgreSQL cannot keep"
NO_OBJECT: Final = "must be a JSON object to be merged"

_COLUMNS: Final = """
SELECT string_agg(
    format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod))
    || coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '')
    || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END, ', ' ORDER BY a.attnum)
  FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
"""

Updates = (
    str
    | Path
    | Source
    | Iterable[MetadataUpdate | tuple[str, str]]
    | AsyncIterable[MetadataUpdate | tuple[str, str]]
)
"""What a job is made of: the path of a file, or updates."""

_Items = Iterable[Record | BadLine] | AsyncIterable[Record | BadLine]


@attrs.define
class Taken:
    """What was taken in. ``bad``: the bad lines, if they are left out."""

    records: int = 0
    bad: list[BadLine] = attrs.field(factory=list[BadLine])
    invalid: int = 0


def partition(table: str, job: int) -> sql.Identifier:
    """The name of a job's own part of a table."""
    return sql.Identifier(f"{table}_{job}")


async def load(
    connection: Connection,
    job: int,
    updates: Updates,
    layout: Layout,
    *,
    skip: bool,
    say: Callable[[str], None],
) -> Taken:
    """Copies the records into tables of their own and attaches these. Raises InputError.

    ``skip``: bad lines are left out, and written as outcomes. Otherwise they are counted, the first
    ten are told of by ``say``, and InputError is raised.
    """
    records, outcomes = partition("records", job), partition("outcomes", job)
    check = sql.SQL("CHECK (job = {})").format(sql.Literal(job))
    for table, parent in ((records, "records"), (outcomes, "outcomes")):
        columns = await _columns(connection, parent)
        await connection.execute(sql.SQL("CREATE TABLE {} ({}, {})").format(table, columns, check))
    taken = Taken()
    with ExitStack() as stack:
        items = _opened(updates, layout, stack)
        copy = sql.SQL(
            "COPY {} (job, number, line, message_id, metadata, messages_source) FROM STDIN"
        ).format(records)
        async with connection.cursor() as cursor, cursor.copy(copy) as into:
            async for block in _blocks(job, items, layout, taken, skip=skip, say=say):
                await into.write(block)
            # Inside: the COPY ends with the error, and the transaction with it.
            _refuse_bad_lines(taken, skip=skip, say=say)
    for statement in (
        "ALTER TABLE {records} ADD PRIMARY KEY (number)",
        "ALTER TABLE {outcomes} ADD PRIMARY KEY (record)",
        "CREATE INDEX ON {outcomes} (record) WHERE outcome IN ('failed', 'invalid')",
    ):
        await connection.execute(sql.SQL(statement).format(records=records, outcomes=outcomes))
    copy = sql.SQL("COPY {} (job, record, line, outcome, reason) FROM STDIN").format(outcomes)
    async with connection.cursor() as cursor, cursor.copy(copy) as into:
        for bad in taken.bad:
            await into.write_row((job, bad.number, bad.line, "invalid", kept(bad.reason)))
    await connection.execute(sql.SQL("ANALYZE {}").format(records))
    for table, parent in ((records, "records"), (outcomes, "outcomes")):
        await connection.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES IN ({})").format(
                sql.Identifier(parent), table, sql.Literal(job)
            )
        )
    return taken


async def _columns(connection: Connection, parent: str) -> sql.Composable:
    """The columns of a parent, as CREATE TABLE takes them; also those of a later version.

    Not LIKE: that would lock the parents, and so hold up deletions, as long as the input lasts.
    """
    row = await (await connection.execute(_COLUMNS, [parent])).fetchone()
    assert row is not None  # an aggregate gives one row
    return sql.SQL(row[0])


def _opened(updates: Updates, layout: Layout, stack: ExitStack) -> _Items:
    if isinstance(updates, str | Path):
        updates = Source(Path(updates), layout)
    if isinstance(updates, Source):
        is_pipe = updates.is_pipe
        reader = stack.enter_context(updates.open())
        return FromPipe(reader) if is_pipe else reader
    if isinstance(updates, AsyncIterable):
        return _each_async(updates, layout)
    return _each(updates, layout)


def _each(updates: Iterable[object], layout: Layout) -> Iterator[Record | BadLine]:
    for number, item in enumerate(updates, 1):
        yield _record_of(item, number, layout)


async def _each_async(
    updates: AsyncIterable[object], layout: Layout
) -> AsyncIterator[Record | BadLine]:
    number = 0
    async for item in updates:
        number += 1
        yield _record_of(item, number, layout)


def _record_of(item: object, number: int, layout: Layout) -> Record | BadLine:
    """The record of an update or a pair. InvalidArgumentError for what is neither."""
    if isinstance(item, tuple | list) and len(item) == 2:
        item = MetadataUpdate(*item)
    if not isinstance(item, MetadataUpdate):
        what = type(item).__name__
        raise InvalidArgumentError(
            f"item {number} of the input must be a MetadataUpdate or a pair of message id and "
            f"metadata, not {what}"
        )
    source = layout.source if item.messages_source is None else item.messages_source
    metadata = layout.constant if item.metadata is None else item.metadata
    try:
        checked_id("message_id", item.message_id)
        checked = checked_metadata(metadata)
        if source is not None:
            checked_word("messages_source", MessagesSource, source)
    except InvalidArgumentError as refused:
        return BadLine(number=number, line=number, reason=str(refused), raw=b"")
    if layout.merge and not is_object(checked):
        reason = f"metadata {NO_OBJECT}"
        return BadLine(number=number, line=number, reason=reason, raw=b"")
    return Record(item.message_id, checked, source, number=number, line=number, raw=b"")


def is_object(text: str) -> bool:
    """Whether the text is a JSON object."""
    try:
        return isinstance(_json.loads(text.encode()), dict)
    except ValueError:
        return False


async def _blocks(
    job: int,
    items: _Items,
    layout: Layout,
    taken: Taken,
    *,
    skip: bool,
    say: Callable[[str], None],
) -> AsyncIterator[bytes]:
    """The records as COPY takes them, many at a time; counts them and the bad lines."""
    rows: list[str] = []
    if isinstance(items, AsyncIterable):
        async for item in items:
            _take(job, item, layout, taken, rows, skip=skip, say=say)
            if len(rows) >= BLOCK:
                yield "".join(rows).encode()
                rows.clear()
    else:
        for item in items:
            _take(job, item, layout, taken, rows, skip=skip, say=say)
            if len(rows) >= BLOCK:
                yield "".join(rows).encode()
                rows.clear()
    yield "".join(rows).encode()


def _take(
    job: int,
    item: Record | BadLine,
    layout: Layout,
    taken: Taken,
    rows: list[str],
    *,
    skip: bool,
    say: Callable[[str], None],
) -> None:
    taken.records += 1
    if isinstance(item, Record) and "\0" in (item.metadata or ""):
        reason = f"metadata {NO_NUL}"
        item = BadLine(number=item.number, line=item.line, reason=reason, raw=b"")
    if isinstance(item, BadLine):
        taken.invalid += 1
        if taken.invalid <= MOST_BAD_LINES_SHOWN:
            say(f"line {item.line}: {item.reason}")
        if skip:
            taken.bad.append(attrs.evolve(item, raw=b""))
        return
    metadata = item.metadata
    text = "\\N" if metadata is None or metadata == layout.constant else _escaped(metadata)
    source = "\\N" if item.messages_source is None else item.messages_source
    rows.append(f"{job}\t{item.number}\t{item.line}\t{item.message_id}\t{text}\t{source}\n")


def _escaped(text: str) -> str:
    """The text in PostgreSQL's text format of COPY. Ten times as fast as ``str.translate``."""
    text = text.replace("\\", "\\\\")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _refuse_bad_lines(taken: Taken, *, skip: bool, say: Callable[[str], None]) -> None:
    if taken.invalid > MOST_BAD_LINES_SHOWN:
        say(f"and {taken.invalid - MOST_BAD_LINES_SHOWN:,} more bad lines")
    if taken.invalid and not skip:
        lines = "1 bad line" if taken.invalid == 1 else f"{taken.invalid:,} bad lines"
        raise InputError(
            f"the input has {lines}, so no job was made",
            InputReason.BAD_LINE,
            count=taken.invalid,
        )
