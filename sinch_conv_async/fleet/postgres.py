"""A fleet on PostgreSQL: one function divides the limit, four statements keep the token.

Needs the ``[jobs]`` extra. The function does the arithmetic of
:func:`sinch_conv_async.fleet.allot`, and the conformance suite compares the two. All times are by
the clock of the database server. The tables are not logged: they live for seconds, and after a
crash of the server they are empty, which the division knows how to deal with. Sealed tokens so get
into no backup.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from string import Template
from typing import Any, Final, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool

from ..errors import InvalidArgumentError
from . import (
    INTERVAL,
    KEPT_BACK,
    KEPT_BACK_FROM,
    LEASE,
    LEAST_WISH,
    MANY,
    FleetError,
    ProjectKey,
    Share,
    Wish,
)
from ._store import CONNECT_TIMEOUT, FRESH, LOCK, TIMEOUT, Found, StoreFleet, in_time, seen

__all__ = ["PostgresFleet"]

T = TypeVar("T")

CREATE_TIMEOUT: Final = 10.0
"""Seconds that the creation of the tables may take, once in the life of a database."""

_Connection = psycopg.AsyncConnection[tuple[Any, ...]]

# The names are those of `allot` and its helpers. A later version gets functions of its own names,
# so that two versions of the package can share a database for the time of a deployment.
_CREATE: Final = """
SELECT pg_advisory_xact_lock(hashtext('sinch_conv_async fleet'));
CREATE SCHEMA IF NOT EXISTS $schema;
CREATE UNLOGGED TABLE IF NOT EXISTS $schema.fleet_projects (
  project text COLLATE "C" PRIMARY KEY,
  heard_at float8 NOT NULL DEFAULT '-Infinity',
  learning_until float8 NOT NULL DEFAULT '-Infinity',
  paused_until float8 NOT NULL DEFAULT '-Infinity'
);
CREATE UNLOGGED TABLE IF NOT EXISTS $schema.fleet_leases (
  project text COLLATE "C",
  member text COLLATE "C",
  share int NOT NULL,
  until float8 NOT NULL,
  wanted int NOT NULL,
  max_rate float8 NOT NULL,
  kept_back bool NOT NULL,
  PRIMARY KEY (project, member)
);
CREATE UNLOGGED TABLE IF NOT EXISTS $schema.fleet_tokens (
  name text COLLATE "C" PRIMARY KEY,
  sealed text,
  life float8 NOT NULL DEFAULT 0,
  expires_at float8 NOT NULL DEFAULT '-Infinity',
  owner text,
  locked_until float8 NOT NULL DEFAULT '-Infinity'
);
CREATE OR REPLACE FUNCTION $schema.fleet_allot_1(
  p_project text, p_member text, p_limit float8, p_wanted int, p_holds int, p_paused_for float8,
  p_leaves bool, p_now float8,
  OUT share int, OUT lease float8, OUT members int, OUT paused_for float8
) LANGUAGE plpgsql AS $$body$$
DECLARE
  state $schema.fleet_projects;
  own $schema.fleet_leases;
  now float8;
  lowest float8;
  whole int;
  capacity int;
  lent int;
  kept bool := false;
BEGIN
  -- Locks the project: whoever asks at the same time waits here.
  INSERT INTO $schema.fleet_projects AS p (project) VALUES (p_project)
    ON CONFLICT (project) DO UPDATE SET heard_at = p.heard_at RETURNING * INTO state;
  now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  SELECT * INTO own FROM $schema.fleet_leases l
    WHERE l.project = p_project AND l.member = p_member AND l.until > now;
  DELETE FROM $schema.fleet_leases l
    WHERE l.project = p_project AND (l.until <= now OR (p_leaves AND l.member = p_member));
  SELECT count(*), least(min(l.max_rate), p_limit) INTO members, lowest FROM $schema.fleet_leases l
    WHERE l.project = p_project AND l.member <> p_member;
  state.paused_until := greatest(state.paused_until, now + p_paused_for);
  lease := $LEASE * greatest(1.0, (members + 1) / $MANY.0);
  IF NOT (state.heard_at <= now AND now < state.heard_at + lease) THEN
    state.learning_until := now + lease;
  END IF;
  UPDATE $schema.fleet_projects p
    SET heard_at = now, learning_until = state.learning_until, paused_until = state.paused_until
    WHERE p.project = p_project;
  paused_for := greatest(0, state.paused_until - now);
  IF p_leaves THEN
    share := 0;
    lease := 0;
    RETURN;
  END IF;
  members := members + 1;
  whole := greatest(1, floor(lowest)::int);
  capacity := whole;
  IF whole >= $KEPT_BACK_FROM THEN
    capacity := whole - ceil(whole / $KEPT_BACK.0)::int;
  END IF;
  IF now >= state.learning_until THEN
    share := $schema.fleet_fair_share_1(
      p_project, p_member, p_wanted, capacity, floor(now / $LEASE)::bigint);
    SELECT coalesce(sum(l.share), 0) INTO lent FROM $schema.fleet_leases l
      WHERE l.project = p_project AND l.member <> p_member;
    share := greatest(0, least(share, capacity - lent));
  ELSIF own.member IS NOT NULL THEN
    share := least(own.share, p_wanted);
    kept := own.kept_back;
  ELSE
    kept := p_holds = 0;
    SELECT coalesce(sum(l.share), 0) INTO lent FROM $schema.fleet_leases l
      WHERE l.project = p_project AND l.member <> p_member AND l.kept_back = kept;
    IF kept THEN
      share := greatest(0, least($LEAST_WISH, p_wanted, whole - capacity - lent));
    ELSE
      share := greatest(0, least(p_holds, p_wanted, capacity - lent));
    END IF;
  END IF;
  INSERT INTO $schema.fleet_leases AS l VALUES
    (p_project, p_member, share, now + lease, p_wanted, p_limit, kept)
    ON CONFLICT (project, member) DO UPDATE SET share = excluded.share, until = excluded.until,
      wanted = excluded.wanted, max_rate = excluded.max_rate, kept_back = excluded.kept_back;
END $$body$$;
CREATE OR REPLACE FUNCTION $schema.fleet_fair_share_1(
  p_project text, p_member text, p_wanted int, p_capacity int, p_turn bigint
) RETURNS int LANGUAGE plpgsql STABLE AS $$body$$
DECLARE
  entry record;
  capacity int := p_capacity;
  part int;
BEGIN
  FOR entry IN
    WITH asking AS (
      SELECT l.member, l.wanted FROM $schema.fleet_leases l
        WHERE l.project = p_project AND l.member <> p_member
      UNION ALL SELECT p_member COLLATE "C", p_wanted
    ), numbered AS (
      SELECT member, wanted, row_number() OVER (ORDER BY member COLLATE "C") - 1 AS at,
        count(*) OVER () AS many FROM asking
    )
    SELECT member,
      many - row_number() OVER (ORDER BY wanted, (at + p_turn) % many) + 1 AS left_over,
      wanted FROM numbered ORDER BY wanted, (at + p_turn) % many
  LOOP
    part := least(entry.wanted, capacity / entry.left_over::int);
    IF entry.member = p_member THEN
      RETURN part;
    END IF;
    capacity := capacity - part;
  END LOOP;
END $$body$$;
"""

_ALLOT: Final = "SELECT * FROM $schema.fleet_allot_1(%s, %s, %s, %s, %s, %s, %s, %s)"

_LOOK: Final = """
WITH kept AS (
  INSERT INTO $schema.fleet_tokens AS t (name) VALUES (%(name)s)
    ON CONFLICT (name) DO UPDATE SET name = t.name
    RETURNING t.sealed, greatest(0, t.expires_at - $NOW) AS lifetime, t.life, t.locked_until
)
SELECT CASE WHEN lifetime > 0 THEN sealed END, lifetime,
  (sealed IS NULL OR lifetime <= $FRESH * life) AND locked_until <= $NOW FROM kept
"""

_LOCK: Final = """
UPDATE $schema.fleet_tokens SET owner = %(owner)s, locked_until = $NOW + $LOCK
  WHERE name = %(name)s AND locked_until <= $NOW
    AND (sealed IS NULL OR expires_at - $NOW <= $FRESH * life) RETURNING 1
"""

_RENEW_LOCK: Final = """
UPDATE $schema.fleet_tokens SET locked_until = $NOW + $LOCK
  WHERE name = %(name)s AND owner = %(owner)s AND locked_until > $NOW RETURNING 1
"""

_STORE: Final = """
UPDATE $schema.fleet_tokens SET owner = NULL, locked_until = '-Infinity',
    sealed = coalesce(%(sealed)s, sealed),
    life = CASE WHEN %(sealed)s::text IS NULL THEN life ELSE %(lifetime)s END,
    expires_at = CASE WHEN %(sealed)s::text IS NULL THEN expires_at ELSE $NOW + %(lifetime)s END
  WHERE name = %(name)s AND owner = %(owner)s AND locked_until > $NOW RETURNING 1
"""

_DELETE: Final = """
UPDATE $schema.fleet_tokens SET sealed = NULL, expires_at = '-Infinity', life = 0
  WHERE name = %(name)s AND sealed = %(sealed)s RETURNING 1
"""

_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")

_WORDS: Final = {
    "NOW": "extract(epoch FROM clock_timestamp())::float8",
    "FRESH": str(FRESH),
    "KEPT_BACK": str(KEPT_BACK),
    "KEPT_BACK_FROM": str(KEPT_BACK_FROM),
    "LEASE": str(LEASE),
    "LEAST_WISH": str(LEAST_WISH),
    "LOCK": str(LOCK),
    "MANY": str(MANY),
}
"""What stands for ``$WORD`` in the statements."""

_NOT_CREATED: Final = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
)


class PostgresFleet(StoreFleet):
    """Shares limit and token through one PostgreSQL database.

    ``SessionManager(fleet=PostgresFleet("postgresql://..."))``.

    ``dsn_or_pool``: a connection string, or an open ``psycopg_pool.AsyncConnectionPool`` of
    autocommit connections that the caller closes. ``schema``: where the tables lie; processes with
    the same database, schema and project share. The fleet makes schema, tables and functions where
    they are missing, if its role may; :meth:`create_schema` does it beforehand. ``timeout``:
    seconds that one operation may take before the process goes on as without the store.

    Opens nothing before its first use, and then one connection for each process. Raises
    :class:`~sinch_conv_async.InvalidArgumentError` for a schema that is not lower-case letters,
    digits and ``_``.
    """

    def __init__(
        self,
        dsn_or_pool: str | AsyncConnectionPool[_Connection],
        *,
        schema: str = "sinch_conv",
        timeout: float = TIMEOUT,
    ) -> None:
        if not _SCHEMA.fullmatch(schema):
            raise InvalidArgumentError("schema must be lower-case letters, digits and '_'")
        self._pool = None if isinstance(dsn_or_pool, str) else dsn_or_pool
        self._dsn = dsn_or_pool if isinstance(dsn_or_pool, str) else ""
        self._schema = schema
        self._timeout = timeout
        self._connection: _Connection | None = None
        self._owner: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._inherited: list[object] = []

    def __repr__(self) -> str:
        # The connection string may hold a password.
        return f"<PostgresFleet schema={self._schema!r}>"

    async def create_schema(self) -> None:
        """Makes schema, tables and functions, or brings them up to date. Raises FleetError."""
        await self._within(CREATE_TIMEOUT, self._create)

    async def share_at(self, project: ProjectKey, wish: Wish, now: float | None) -> Share:
        """The share of one process: one round trip; see :class:`StoreFleet`."""
        row = await self._one(
            _ALLOT,
            [
                f"{project.origin} {project.project_id}",
                wish.member,
                wish.limit,
                wish.wanted,
                wish.holds,
                wish.paused_for,
                wish.leaves,
                now,
            ],
        )
        assert row is not None  # a function without RETURNS SETOF gives one row
        share, lease, members, paused_for = row
        return Share(
            share, lease, members, INTERVAL * (lease / LEASE if lease else 1.0), paused_for
        )

    async def close(self) -> None:
        """Closes the connection that the fleet has opened; a pool that was given stays open."""
        if not self._is_ours():
            return
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # A token

    async def look(self, name: str, owner: str) -> Found:
        """What is kept of one token; see :class:`StoreFleet`."""
        row = await self._one(_LOOK, {"name": name})
        assert row is not None  # the statement inserts the row that it returns
        sealed, lifetime, free = row
        locked = (
            bool(owner and free)
            and await self._one(_LOCK, {"name": name, "owner": owner}) is not None
        )
        return Found(sealed, lifetime, locked)

    async def renew_lock(self, name: str, owner: str) -> None:
        """Prolongs the owner's lock."""
        await self._one(_RENEW_LOCK, {"name": name, "owner": owner})

    async def store(self, name: str, owner: str, sealed: str | None, lifetime: float) -> None:
        """Stores the owner's token, and gives the lock back."""
        await self._one(
            _STORE, {"name": name, "owner": owner, "sealed": sealed, "lifetime": float(lifetime)}
        )

    async def delete(self, name: str, sealed: str) -> None:
        """Deletes the token if it is still this one."""
        await self._one(_DELETE, {"name": name, "sealed": sealed})

    # One statement

    async def _one(
        self, statement: str, arguments: Sequence[Any] | Mapping[str, Any]
    ) -> tuple[Any, ...] | None:
        query = self._statement(statement)

        async def run(connection: _Connection) -> tuple[Any, ...] | None:
            try:
                return await (await connection.execute(query, arguments)).fetchone()
            except _NOT_CREATED:
                return _MISSING

        row = await self._within(self._timeout, run)
        if row is _MISSING:
            await self.create_schema()
            row = await self._within(self._timeout, run)
        if row is _MISSING:
            raise FleetError("PostgreSQL has other tables in the fleet's schema")
        return row

    async def _create(self, connection: _Connection) -> None:
        # One transaction, since all statements go in one message.
        await connection.execute(self._statement(_CREATE))

    def _statement(self, text: str) -> bytes:
        return Template(text).substitute(_WORDS, schema=self._schema).encode()

    async def _within(self, seconds: float, run: Callable[[_Connection], Awaitable[T]]) -> T:
        """Runs one operation, and lets go of its connection when the time has passed.

        To cancel a psycopg operation is to ask the server and to wait for its answer. A server that
        is frozen gives none. So the socket is shut down instead, and the operation ends with an
        error.
        """
        operation = seen(self._operate(run))
        try:
            await in_time(operation, seconds)
        finally:
            late = not operation.done()
            if late:
                if not self._shut_down():
                    operation.cancel()  # it was still connecting
                await asyncio.wait([operation])
        if late or operation.cancelled():  # also where the fleet was closed meanwhile
            problem: BaseException = TimeoutError()
        elif isinstance(failed := operation.exception(), psycopg.Error | OSError):
            problem = failed
        else:
            return operation.result()
        # The text of the error may quote a statement or a connection string.
        raise FleetError(f"PostgreSQL gave no answer: {type(problem).__name__}")

    async def _operate(self, run: Callable[[_Connection], Awaitable[T]]) -> T:
        if self._pool is not None:
            async with self._pool.connection() as connection:
                return await run(connection)
        connection = await self._connected()
        try:
            return await run(connection)
        except BaseException:
            if self._connection is connection:
                self._connection = None
            await connection.close()
            raise

    def _shut_down(self) -> bool:
        """Ends what is under way on the fleet's connection; False if it has none."""
        connection, self._connection = self._connection, None
        if connection is None:
            return False
        # A connection that has ended by itself has no socket any more.
        with (
            contextlib.suppress(psycopg.Error, OSError),
            socket.socket(fileno=os.dup(connection.fileno())) as same,
        ):
            same.shutdown(socket.SHUT_RDWR)
        return True

    def _is_ours(self) -> bool:
        return self._owner == (asyncio.get_running_loop(), os.getpid())

    async def _connected(self) -> _Connection:
        """The connection of the running event loop and process."""
        if not self._is_ours():
            self._leave_behind()
            self._owner = (asyncio.get_running_loop(), os.getpid())
        while self._connection is None:
            if self._connecting is None:
                self._connecting = seen(self._connect())
            await asyncio.shield(self._connecting)
        return self._connection

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                self._connection = await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True, application_name="sinch_conv_async fleet"
                )
        finally:
            self._connecting = None

    def _leave_behind(self) -> None:
        """Lets go of the connection of another event loop or process."""
        if self._owner is not None and self._owner[1] != os.getpid():
            # The parent process still uses them.
            self._inherited += [self._connection, self._connecting]
        elif self._connection is not None:
            self._connection.pgconn.finish()  # its event loop is closed
        self._connection = self._connecting = None


_MISSING: Final[tuple[Any, ...]] = ("missing",)
"""In place of a row: the schema is not there, or a part of it."""
