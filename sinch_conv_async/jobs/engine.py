"""procrastinate as the engine of jobs, which decides which worker does which job, and when.

One engine job is one whole bulk job. Each project has a queue and a lock of its own, both of one
name: a worker listens to the projects whose credentials it has, and one job of a project runs at a
time, in the order of submission. The name has the number of the format of jobs: a later format gets
another number, so that older workers leave its jobs alone.

procrastinate finishes a job by its id, even if another worker has it meanwhile. :class:`Jobs` does
so only if this worker still holds the job, in this attempt. It also survives a lost database:
procrastinate's own worker would return without an exception.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
from collections.abc import Iterable
from typing import Any, Final, LiteralString

from procrastinate import App, BaseRetryStrategy, PsycopgConnector, RetryDecision
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager

from .database import Connection

__all__ = ["TASK", "GiveBack", "app_of", "cancel", "defer", "give_back", "queue_of"]

FORMAT: Final = 1
"""Of jobs. A worker does the jobs of the formats that it knows."""

TASK: Final = "sinch_conv_async.jobs.run"

FIRST: Final = 1
"""Priority of a job that is put back: it had begun before those that wait."""

PERSIST_FOR: Final = 50
"""Tries, a fifth of a second apart, to tell a database that is away what became of a job."""

PERSIST_EVERY: Final = 0.2


def queue_of(project_id: str) -> str:
    """The queue and the lock of a project. NOTIFY has room for 63 bytes, a project id has 256."""
    digest = hashlib.blake2b(project_id.encode(), digest_size=8).hexdigest()
    return f"sinch_conv{FORMAT}:{digest}"


class GiveBack(Exception):  # noqa: N818  # no error: the job has not ended, and is to be taken again
    """The job goes back to the queue."""


class Again(BaseRetryStrategy):
    """Whatever ends the engine's job: the bulk job goes on, and the row of the job says when not.

    After a shutdown or a restart of the database procrastinate would end it as aborted for good.
    """

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        """At once if the worker gives it back, else in a second."""
        return RetryDecision(retry_in={"seconds": 0 if isinstance(exception, GiveBack) else 1})


class Jobs(JobManager):
    """procrastinate's statements, fenced, and patient with the database."""

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> Job | None:
        """A job, or None; also while the database is away."""
        try:
            return await super().fetch_job(queues, worker_id)
        except ConnectorException:
            return None

    async def update_heartbeat(self, worker_id: int) -> None:
        """Registers again a worker that was taken for dead."""
        try:
            await self.connector.execute_query_async(
                "INSERT INTO procrastinate_workers (id) OVERRIDING SYSTEM VALUE "
                "VALUES (%(worker_id)s) ON CONFLICT (id) DO UPDATE SET last_heartbeat = now()",
                worker_id=worker_id,
            )
        except ConnectorException:
            return

    async def unregister_worker(self, worker_id: int) -> None:
        """Leaves the row to the next pruning if the database is away."""
        try:
            await super().unregister_worker(worker_id)
        except ConnectorException:
            return

    async def list_jobs_to_abort_async(self, queue: str | None = None) -> Iterable[int]:
        """None: a job that is to be cancelled is told so by its own row."""
        return ()

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        """Ends the engine's job if it is still held by this worker, in this attempt."""
        await self._persist(
            "SELECT procrastinate_finish_job_v1(id, %(status)s, %(delete_job)s)",
            job,
            status=status.value,
            delete_job=delete_job,
        )

    async def retry_job(
        self,
        job: Job,
        retry_at: datetime.datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        """Puts the engine's job back if it is still held by this worker, in this attempt."""
        await self._persist(
            "SELECT procrastinate_retry_job_v2(id, %(retry_at)s, NULL, NULL, NULL)",
            job,
            retry_at=retry_at,
        )

    async def _persist(self, query: LiteralString, job: Job, **arguments: Any) -> None:
        """A job that stays held for no reason is put back by ``retake``."""
        held = (
            " FROM procrastinate_jobs WHERE id = %(id)s AND status = 'doing'"
            " AND worker_id = %(worker)s AND attempts = %(attempts)s FOR UPDATE"
        )
        arguments |= {"id": job.id, "worker": job.worker_id, "attempts": job.attempts}
        for _ in range(PERSIST_FOR):
            try:
                await self.connector.execute_query_async(query + held, **arguments)
            except ConnectorException:
                await asyncio.sleep(PERSIST_EVERY)
            else:
                return


def app_of(dsn: str, *, timeout: float = 3.0) -> App:
    """Procrastinate on this database; it opens nothing yet.

    ``timeout``: seconds that a statement waits for a connection.
    """
    # Two connections: the worker's loop and its heartbeat.
    app = App(connector=PsycopgConnector(conninfo=dsn, min_size=1, max_size=2, timeout=timeout))
    app.job_manager = Jobs(app.connector)
    return app


# Parts of a transaction of ours. The functions are procrastinate's; the versions in their names are
# those of its releases since 3.4, and later releases keep them.


async def defer(connection: Connection, job: int, project_id: str, *, first: bool = False) -> int:
    """Puts a job into its project's queue; the engine's id of it. ``first``: before all others."""
    cursor = await connection.execute(
        "SELECT unnest(procrastinate_defer_jobs_v1(ARRAY[ROW(%(queue)s::text, %(task)s::text, "
        "%(priority)s::integer, %(queue)s::text, NULL, "
        "jsonb_build_object('job', %(job)s::integer), NULL)]"
        "::procrastinate_job_to_defer_v1[]))",
        {
            "queue": queue_of(project_id),
            "task": TASK,
            "priority": FIRST if first else 0,
            "job": job,
        },
    )
    row = await cursor.fetchone()
    assert row is not None  # the function gives an id for each
    return int(row[0])


async def give_back(connection: Connection, engine_job: int) -> None:
    """Puts a job that a worker has lost back in its place of the queue."""
    await connection.execute(
        "SELECT procrastinate_retry_job_v2(%s, now(), NULL, NULL, NULL)", [engine_job]
    )


async def cancel(connection: Connection, engine_job: int | None) -> None:
    """Takes a job that waits, or that no worker holds any more, out of the queue."""
    await connection.execute(
        "SELECT procrastinate_finish_job_v1(id, 'aborted', true) FROM procrastinate_jobs "
        "WHERE id = %s AND status IN ('todo', 'doing')",
        [engine_job],
    )
