"""A database of its own for each test of jobs, in one cluster that all tests of a process share."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any

from sinch_conv_async.jobs import JobStore, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sinch_conv_async.jobs import JobStatus
    from sinch_conv_async.sandbox import Sandbox
    from tests.whole.fleet.stores import Postgres

PROJECT = "sandbox-project"
QUICK = 1.2
"""Seconds after which another worker takes over, where a test waits for that."""
LONG = 60.0
"""The same where a test counts requests, which are sent twice if a busy machine loses the hold."""


def new_database(cluster: Postgres) -> str:
    """The URL of a new database."""
    name = f"t{secrets.token_hex(4)}"
    cluster.tell(f"CREATE DATABASE {name}")
    return cluster.url.replace("/postgres", f"/{name}")


async def until_ended(store: JobStore, job: int) -> JobStatus:
    while not (status := await store.status(job)).final:
        await asyncio.sleep(0.02)
    return status


async def until_state(store: JobStore, job: int, state: str) -> JobStatus:
    while (status := await store.status(job)).state != state:
        await asyncio.sleep(0.02)
    return status


@contextlib.asynccontextmanager
async def working(
    url: str, sandbox: Sandbox, projects: Sequence[str] = (PROJECT,), **options: Any
) -> AsyncIterator[asyncio.Event]:
    """A worker of these projects in this process. Setting the event stops it."""
    stop = asyncio.Event()
    credentials: Any = [sandbox.client_options(project) for project in projects]
    options = {"retake_after": QUICK, **options}
    worker = asyncio.create_task(
        run_worker(url, credentials=credentials, stop=stop, **options), name="worker"
    )
    try:
        yield stop
    finally:
        stop.set()
        await worker


async def outcomes_of(store: JobStore, job: int) -> dict[int, str]:
    return {outcome.record: outcome.outcome async for outcome in store.outcomes(job)}
