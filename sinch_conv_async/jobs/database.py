"""Connections to the database of jobs, and the errors of the database.

All tables lie in one schema, those of procrastinate too: each connection has it as its search path.
An error of psycopg may quote a row or a connection string, so only its kind, its SQLSTATE and the
server's primary message leave this file, and the message only where it cannot quote a row.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, Final, TypeVar

import psycopg
from psycopg import conninfo

from ..errors import InvalidArgumentError
from .errors import JobStoreError, SchemaError

__all__ = [
    "SCHEMA",
    "Connection",
    "connected",
    "dsn_of",
    "kept",
    "open_connection",
    "told",
    "within",
]

SCHEMA: Final = "sinch_conv"

CONNECT_TIMEOUT: Final = 5
"""Seconds that a connection may take, unless the connection string says otherwise."""

_A_DEAD_HOST_IS_NOTICED: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Within some 25 seconds (the last one is in milliseconds). TCP itself would take hours."""

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

T = TypeVar("T")

_OUR_TABLES: Final = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
)


def dsn_of(dsn: str) -> str:
    """The connection string with what every connection needs. Raises InvalidArgumentError."""
    try:
        found = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        problem = "the database must be a URL such as postgresql://user@host/name"
    else:
        options = f"{found.get('options') or ''} -c search_path={SCHEMA}".strip()
        settings: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT,
            **_A_DEAD_HOST_IS_NOTICED,
            "application_name": "sinch_conv_async jobs",
            **found,
            "options": options,
            "client_encoding": "UTF8",
        }
        return conninfo.make_conninfo(**settings)
    # Not raised above: the error there quotes the string, and the string may hold a password.
    raise InvalidArgumentError(problem)


async def open_connection(dsn: str) -> Connection:
    """A connection in which each statement is a transaction of its own. Raises psycopg.Error."""
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True)


@contextlib.asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[Connection]:
    """The same for a ``with`` block. Errors of the database leave it as JobStoreError."""
    with told():
        connection = await open_connection(dsn)
        try:
            yield connection
        finally:
            await connection.close()


@contextlib.contextmanager
def told() -> Generator[None]:
    """Turns errors of the database into JobStoreError."""
    try:
        yield
    except psycopg.Error as error:
        problem = _told(error)
    else:
        return
    raise problem from None


def _told(error: psycopg.Error) -> JobStoreError:
    if isinstance(error, _OUR_TABLES):
        return SchemaError(
            "the database has no tables for jobs, or others; `sinch-conv jobs schema` makes them"
        )
    kind = type(error).__name__
    state = f" ({error.sqlstate})" if error.sqlstate else ""
    # Of the other classes the message may quote a value. 53: no room; 57: the server is stopped;
    # 28, 42501: the role may not.
    state_class = (error.sqlstate or "")[:2]
    says = error.diag.message_primary
    told = f": {says}" if says and state_class in ("28", "42", "53", "57") else ""
    return JobStoreError(f"the database gave no answer: {kind}{state}{told}")


async def within(seconds: float, connection: Connection, operation: Coroutine[Any, Any, T]) -> T:
    """The operation's result, or psycopg.OperationalError when the seconds have passed.

    psycopg cancels an operation by asking the server, and a frozen server does not answer. So the
    socket is shut down instead. The connection cannot be used afterwards.
    """
    task = asyncio.ensure_future(operation)
    task.add_done_callback(_look_at)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        if not task.done():
            _shut_down(connection)
            await asyncio.wait([task])
    return task.result()


def _shut_down(connection: Connection) -> None:
    # A connection that has ended by itself has no socket any more.
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.fileno())) as same,
    ):
        same.shutdown(socket.SHUT_RDWR)


def kept(text: str | None) -> str | None:
    """The text with escapes for what PostgreSQL cannot keep: NUL and lone surrogates."""
    if text is None:
        return None
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _look_at(task: asyncio.Future[Any]) -> None:
    # Of one that nobody waits for any more: asyncio need not report its error.
    _ = task.cancelled() or task.exception()
