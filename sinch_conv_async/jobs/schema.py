"""The tables of jobs, and which versions of the package may work with them.

- ``jobs`` has one row for each job: what is to be done, its state and its counters. So the progress
  of a job is one row.
- ``records`` and ``outcomes`` have one partition for each job. Workers use the partitions by their
  names (``records_7``), so that neither a new job nor a deletion waits for a job that is running.
- An outcome's key is its record: the database itself allows one outcome for each record.
- ``version`` has one row: the version of the tables, and the least version of a program that may
  work with them. A program of version S works if ``least <= S <= version``. So during an upgrade
  the tables come first, and then workers of both versions run side by side.
- procrastinate's own tables lie in the same schema. Which of its migrations have been applied
  stands in ``version`` too, since procrastinate does not keep it.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from procrastinate.schema import SchemaManager
from psycopg import sql

from .database import SCHEMA, Connection
from .errors import SchemaError

__all__ = ["VERSION", "check_version", "create"]

VERSION: Final = 1
"""Of the tables, as this program makes them."""

LEAST: Final = 1
"""The least version of a program that may work with them."""

_OURS: Final = """
CREATE TABLE IF NOT EXISTS version (
  version integer NOT NULL,
  least integer NOT NULL,
  engine text[] NOT NULL
);
CREATE TABLE IF NOT EXISTS jobs (
  id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  state text NOT NULL DEFAULT 'queued'
    CHECK (state IN ('queued', 'running', 'done', 'cancelled', 'failed')),
  project_id text NOT NULL,
  region text,
  input text NOT NULL,
  options jsonb NOT NULL DEFAULT '{}',
  records integer NOT NULL DEFAULT 0,
  updated integer NOT NULL DEFAULT 0,
  unchanged integer NOT NULL DEFAULT 0,
  failed integer NOT NULL DEFAULT 0,
  superseded integer NOT NULL DEFAULT 0,
  invalid integer NOT NULL DEFAULT 0,
  remaining integer NOT NULL
    GENERATED ALWAYS AS (records - updated - unchanged - failed - superseded - invalid) STORED,
  rate float8 NOT NULL DEFAULT 0,
  seconds float8 NOT NULL DEFAULT 0,
  error text,
  submitted_at timestamptz NOT NULL DEFAULT now(),
  started_at timestamptz,
  ended_at timestamptz,
  worker text,
  held_until timestamptz,
  cancel_requested boolean NOT NULL DEFAULT false,
  low integer NOT NULL DEFAULT 0,
  epoch integer NOT NULL DEFAULT 0,
  flushes integer NOT NULL DEFAULT 0,
  engine_job bigint
) WITH (fillfactor = 50);
COMMENT ON COLUMN jobs.held_until IS 'until then no other worker takes a running job';
COMMENT ON COLUMN jobs.low IS 'all records up to this one have an outcome';
COMMENT ON COLUMN jobs.epoch IS 'how often the job was taken; an earlier holder writes nothing';
COMMENT ON COLUMN jobs.flushes IS 'how often outcomes were written';
COMMENT ON COLUMN jobs.seconds IS 'of work, over all workers';
CREATE TABLE IF NOT EXISTS records (
  job integer NOT NULL,
  number integer NOT NULL,
  line integer NOT NULL,
  message_id text NOT NULL,
  metadata text,
  messages_source text
) PARTITION BY LIST (job);
COMMENT ON COLUMN records.metadata IS 'null: the one of the whole job, in its options';
CREATE TABLE IF NOT EXISTS outcomes (
  job integer NOT NULL,
  record integer NOT NULL,
  ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  superseded_by integer,
  line integer,
  http_status smallint,
  attempts integer,
  outcome text NOT NULL,
  error text,
  status text,
  request_id text,
  reason text
) PARTITION BY LIST (job);
"""


async def create(connection: Connection) -> None:
    """Makes the tables, or brings them up to date; one transaction. Raises SchemaError."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('sinch_conv_async jobs'))")
        await _check_encoding(connection)
        await _create_schema(connection)
        found = await _version(connection)
        if found is not None and found[0] > VERSION:
            raise SchemaError(
                f"the tables have version {found[0]}, and this program would make {VERSION}; "
                "nothing was changed"
            )
        for statement in _OURS.split(";\n"):
            await connection.execute(statement)
        applied = None if found is None else found[2]
        migrations = await _upgrade_engine(connection, applied)
        await connection.execute("DELETE FROM version")
        await connection.execute(
            "INSERT INTO version VALUES (%s, %s, %s)", [VERSION, LEAST, migrations]
        )


async def check_version(connection: Connection) -> None:
    """Raises SchemaError unless this program may work with the tables."""
    found = await _version(connection)
    if found is None:
        raise SchemaError(
            "the database has no tables for jobs; `sinch-conv jobs schema` makes them"
        )
    version, least, _ = found
    if version < VERSION:
        raise SchemaError(
            f"the tables have version {version}, and this program needs {VERSION}; "
            "`sinch-conv jobs schema` upgrades them, while workers of both versions go on"
        )
    if least > VERSION:
        raise SchemaError(
            f"the tables have version {version}, which needs a program of version {least} "
            f"or later, and this one has {VERSION}; install a newer sinch-conv-async"
        )


async def _version(connection: Connection) -> tuple[int, int, list[str]] | None:
    there = await (await connection.execute("SELECT to_regclass('version')")).fetchone()
    if there is None or there[0] is None:
        return None
    row = await (await connection.execute("SELECT version, least, engine FROM version")).fetchone()
    return (0, 0, []) if row is None else (row[0], row[1], row[2])


async def _create_schema(connection: Connection) -> None:
    """Makes the schema if it is not there; a role that may not can use one that is there."""
    there = await (await connection.execute("SELECT to_regnamespace(%s)", [SCHEMA])).fetchone()
    if there is None or there[0] is None:
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))


async def _check_encoding(connection: Connection) -> None:
    row = await (await connection.execute("SHOW server_encoding")).fetchone()
    if row is None or row[0] != "UTF8":
        raise SchemaError("the database must have the encoding UTF8")


async def _upgrade_engine(connection: Connection, applied: list[str] | None) -> list[str]:
    """Makes procrastinate's tables, or applies its migrations since then. All their names."""
    folder = resources.files("procrastinate") / "sql" / "migrations"
    migrations = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    if applied is None:
        scripts = [SchemaManager.get_schema()]
    else:
        missing = [name for name in migrations if name not in applied]
        scripts = [(folder / name).read_text("utf-8") for name in missing]
    for script in scripts:
        # Without arguments, a script of several statements is sent as it is.
        await connection.execute(script.encode())
    return sorted({*(applied or ()), *migrations})
