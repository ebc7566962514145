"""A worker: takes jobs from a queue, and on SIGTERM stops without losing one.

    python examples/worker.py jobs.sqlite

The queue is a table, so that the example needs no broker. With any queue, a job is claimed, done,
and only then marked as done. A job that a killed worker had claimed is claimed again, so it may be
done twice; a metadata update may be repeated. Of two jobs for one message the later one is claimed
only when the earlier one has ended: a retry of the earlier one would bring old metadata back.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
import time
from typing import NamedTuple

from sinch_conv_async import (
    AuthenticationError,
    BadRequestError,
    ConversationClient,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    SinchError,
    TokenError,
)

WORKERS = 20
POLL = 0.1  # seconds between looks at an empty queue
PAUSE = 5.0  # seconds before a job that failed for a temporary reason is tried again
# Errors that this job would get again, and no other job.
HOPELESS = (InvalidArgumentError, BadRequestError, NotFoundError)
# Errors that every other job would get too.
REFUSED = (TokenError, AuthenticationError, PermissionDeniedError)


class Job(NamedTuple):
    number: int
    message_id: str
    metadata: str


class Queue:
    def __init__(self, path: str) -> None:
        # Every statement is a transaction.
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute(
            "create table if not exists jobs (number integer primary key, "
            "message_id text collate nocase, metadata text, state text default 'new', "
            "error text, not_before real default 0)"
        )
        self._db.execute(
            "create index if not exists open_jobs on jobs (message_id, number) "
            "where state in ('new', 'claimed')"
        )

    def close(self) -> None:
        self._db.close()

    def put(self, message_id: str, metadata: str) -> None:
        insert = "insert into jobs (message_id, metadata) values (?, ?)"
        self._db.execute(insert, (message_id, metadata))

    def recover(self) -> None:
        """Claims of a worker that has ended; only one worker runs at a time."""
        self._db.execute("update jobs set state = 'new' where state = 'claimed'")

    def claim(self) -> Job | None:
        rows = self._db.execute(
            "update jobs set state = 'claimed' where number = (select number from jobs j "
            "where state = 'new' and not_before <= ? and not exists (select * from jobs e "
            "where e.message_id = j.message_id and e.number < j.number "
            "and e.state in ('new', 'claimed')) order by number limit 1) "
            "returning number, message_id, metadata",
            (time.time(),),
        ).fetchall()
        return Job(*rows[0]) if rows else None

    def finish(self, job: Job, state: str, error: str | None = None) -> None:
        update = "update jobs set state = ?, error = ? where number = ?"
        self._db.execute(update, (state, error, job.number))

    def put_back(self, job: Job, seconds: float, error: str | None = None) -> None:
        """It is not claimed before so many seconds have passed."""
        update = (
            "update jobs set state = 'new', error = ?, not_before = ? where number = ?"
        )
        self._db.execute(update, (error, time.time() + seconds, job.number))

    def count(self, state: str) -> int:
        select = "select count(*) from jobs where state = ?"
        return self._db.execute(select, (state,)).fetchone()[0]


async def work(
    queue: Queue, client: ConversationClient, stopping: asyncio.Event
) -> None:
    while not stopping.is_set():
        job = queue.claim()
        if job is None:
            await pause(stopping, POLL)
            continue
        try:
            await client.update_message_metadata(job.message_id, job.metadata)
        except HOPELESS as error:
            queue.finish(job, "failed", str(error))
        except REFUSED:
            queue.put_back(job, 0)
            raise  # every job would fail: stop, and let the supervisor report it
        except SinchError as error:
            # Try it later: it waits in the queue, not in memory.
            queue.put_back(job, PAUSE, str(error))
        else:
            queue.finish(job, "done")


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)


async def main(path: str) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    queue = Queue(path)
    try:
        queue.recover()
        async with ConversationClient.from_env() as client:
            await client.authenticate()
            async with asyncio.TaskGroup() as workers:
                for _ in range(WORKERS):
                    workers.create_task(work(queue, client, stopping))
        print(
            f"stopped: {queue.count('done')} done, "
            f"{queue.count('failed')} failed, {queue.count('new')} left"
        )
    finally:
        queue.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
