"""A user's code, read by mypy and pyright and never run: jobs in a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, assert_type

from sinch_conv_async import MetadataUpdate
from sinch_conv_async.jobs import (
    FailedRecord,
    JobOutcome,
    JobStatus,
    JobStore,
    Layout,
    WorkerReport,
    run_worker,
)


async def updates() -> AsyncIterator[MetadataUpdate]:
    yield MetadataUpdate("id", "two")


async def jobs(store: JobStore) -> None:
    await store.create_schema()
    job = await store.submit([("id", "one")], project_id="project", rate_limit=100)
    assert_type(job, int)
    await store.submit(updates(), region="eu", merge=True, bad_lines="skip")
    await store.submit("ids.csv", layout=Layout(delimiter=";"))
    await store.submit(Path("ids.csv"), max_failures_percent=2.5)
    await store.submit(5)  # type: ignore[arg-type]
    status = await store.status(job)
    assert_type(status, JobStatus)
    assert_type(status.state, Literal["queued", "running", "done", "cancelled", "failed"])
    async for failure in store.failures(job):
        assert_type(failure, FailedRecord)
    async for outcome in store.outcomes(job):
        assert_type(outcome, JobOutcome)
    assert_type(await store.cancel(job), JobStatus)
    await store.delete(job)


async def worker(stop: asyncio.Event) -> None:
    report = await run_worker(
        "postgresql://localhost/jobs",
        credentials=[{"project_id": "project", "key_id": "id", "key_secret": "secret"}],
        jobs=3,
        stop=stop,
    )
    assert_type(report, WorkerReport)
