"""Puts jobs back that no live worker has; each worker does it about once a second.

A job is put back if

- it runs, and its hold is over: the worker has died, is stopped, or cannot reach the database. Not
  in the first seconds after a start of the server: the holder has just lost it too, and may come
  back.
- it waits, and the engine has no job for it that waits or has just been fetched: the worker died
  between two steps, or the engine gave the job up.

A job of the engine whose bulk job has ended, or was deleted, is removed: its worker died before it
could tell the engine, and the engine would let no other job of the project begin.

The epoch is raised, so the former holder of the job cannot write any more.
"""

from __future__ import annotations

from typing import Final

import attrs

from .._core.log import WARNING, log
from . import engine
from .database import Connection

__all__ = ["retake"]

_LOST: Final = """
SELECT j.id, j.state, j.project_id, j.cancel_requested, j.engine_job, e.status::text
  FROM jobs j LEFT JOIN procrastinate_jobs e ON e.id = j.engine_job
  WHERE (j.state = 'running' AND j.held_until < clock_timestamp()
      AND pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => %(grace)s))
    OR (j.state = 'queued' AND e.id IS NULL)
    OR (j.state = 'queued' AND e.status NOT IN ('todo', 'doing'))
    OR (j.state = 'queued' AND e.status = 'doing' AND NOT EXISTS (
      SELECT FROM procrastinate_events v WHERE v.job_id = e.id AND v.type = 'started'
        AND v.at > clock_timestamp() - make_interval(secs => %(grace)s)))
  ORDER BY j.id LIMIT 20 FOR UPDATE OF j SKIP LOCKED
"""


_LEFT_OVER: Final = """
WITH left_over AS (
  SELECT e.id FROM procrastinate_jobs e
  WHERE e.task_name = %(task)s AND e.status IN ('todo', 'doing')
    AND NOT EXISTS (SELECT FROM jobs j
      WHERE j.engine_job = e.id AND j.state IN ('queued', 'running'))
    AND NOT EXISTS (SELECT FROM procrastinate_events v WHERE v.job_id = e.id
      AND v.at > clock_timestamp() - make_interval(secs => %(grace)s))
  FOR UPDATE OF e SKIP LOCKED)
SELECT procrastinate_finish_job_v1(id, 'aborted', true) FROM left_over
"""


@attrs.frozen
class _Found:
    id: int
    state: str
    project_id: str
    cancel_requested: bool
    engine_job: int | None
    engine_state: str | None


async def retake(connection: Connection, grace: float) -> None:
    """Puts lost jobs back; one transaction. ``grace``: seconds. Raises psycopg.Error."""
    async with connection.transaction():
        rows = await (await connection.execute(_LOST, {"grace": grace})).fetchall()
        for row in rows:
            await _put_back(connection, _Found(*row))
        await connection.execute(_LEFT_OVER, {"task": engine.TASK, "grace": grace})


async def _put_back(connection: Connection, found: _Found) -> None:
    engine_job = found.engine_job
    state = "cancelled" if found.cancel_requested else "queued"
    if found.cancel_requested:
        await engine.cancel(connection, engine_job)
    elif engine_job is not None and found.engine_state in ("doing", "failed"):
        await engine.give_back(connection, engine_job)
    elif found.engine_state != "todo":
        engine_job = await engine.defer(connection, found.id, found.project_id, first=True)
    await connection.execute(
        "UPDATE jobs SET state = %(state)s, epoch = epoch + 1, held_until = NULL, rate = 0, "
        "engine_job = %(engine_job)s, "
        "ended_at = CASE WHEN %(state)s = 'cancelled' THEN clock_timestamp() END "
        "WHERE id = %(id)s",
        {"state": state, "engine_job": engine_job, "id": found.id},
    )
    log(WARNING, "job %d was held by no worker; it is %s", found.id, state, job=found.id)
