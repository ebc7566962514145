"""``sinch-conv demo``: a bulk job against a sandbox that fails in many ways loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import click

from .._core.manager import SessionManager
from .._job.input import Layout, Source
from .._job.local import LocalJob, run_local
from .._job.progress import Progress
from .._job.report import Report
from .._job.signals import terminated_as_interrupted
from ..client import ConversationClient
from .bulk import tell
from .input import CONCURRENCY
from .output import SOME_FAILED, Ended, PrintingCommand, put, say
from .progress import progress_on

if TYPE_CHECKING:
    from ..sandbox import Sandbox

__all__ = ["demo", "demonstrate"]

PROJECT: Final = "sandbox-project"


@click.command(cls=PrintingCommand)
@click.option(
    "--messages",
    type=click.IntRange(100, 100_000),
    default=4000,
    show_default=True,
    metavar="N",
    help="How many to update.",
)
def demo(messages: int) -> int:
    """Update a few thousand messages in a sandbox that misbehaves, and check that none was lost.

    A file is generated and run through the same code as bulk does, at the API's own 800 requests a
    second.
    """
    with terminated_as_interrupted():
        report, lost = demonstrate(messages, progress_on(sys.stderr), say)
    code = tell(report, output="text")
    if code:
        return code
    if lost:
        raise Ended(f"{lost:,} messages do not hold what they should", SOME_FAILED)
    put(f"All {messages:,} messages hold the right metadata.")
    return 0


def demonstrate(
    messages: int, progress: Progress, say: Callable[[str], None]
) -> tuple[Report, int]:
    """The job's report, and the number of messages with wrong metadata."""
    # Imported here, because the other commands do not need its web server, which is slow to load.
    from ..sandbox import Sandbox

    sandbox = Sandbox(project_id=PROJECT, rate_limit=800, latency=0.05)
    wanted = {
        f"01DEMO{number:020}": json.dumps({"ticket": number, "state": "closed"})
        for number in range(messages)
    }
    for message_id in wanted:
        sandbox.add_message(message_id, metadata="old")
    manager = SessionManager(max_connections=CONCURRENCY)
    with tempfile.TemporaryDirectory(prefix="sinch-conv-demo-") as folder:
        path = Path(folder) / "messages.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["message_id", "metadata"])
            writer.writerows(wanted.items())
        say(
            f"Updating {messages:,} messages in a sandbox that answers 429 and 503, "
            "drops connections and lets the token expire."
        )
        journal = path.with_name("journal.jsonl")
        job = LocalJob(Source(path, Layout()), PROJECT, "sandbox", journal)
        report = run_local(job, _client(sandbox, manager, messages), manager, progress)
    lost = sum(
        sandbox.messages[message_id].metadata != metadata for message_id, metadata in wanted.items()
    )
    return attrs.evolve(report, journal=None), lost


@contextlib.asynccontextmanager
async def _client(
    sandbox: Sandbox, manager: SessionManager, messages: int
) -> AsyncGenerator[ConversationClient]:
    async with (
        sandbox,
        ConversationClient(**sandbox.client_options(), session_manager=manager) as client,
    ):
        trouble = asyncio.create_task(_trouble(sandbox, messages))
        try:
            yield client
        finally:
            trouble.cancel()


async def _trouble(sandbox: Sandbox, messages: int) -> None:
    """The faults, one after the other, spread over the job."""
    troubles: tuple[tuple[float, Callable[[], None]], ...] = (
        (0.15, lambda: sandbox.fail_next(503, times=8)),
        (0.3, lambda: sandbox.drop_next(times=4)),
        (0.45, lambda: sandbox.fail_next(429, times=3)),
        (0.6, sandbox.expire_tokens),
        (0.75, lambda: sandbox.drop_next(times=4, when="mid_body", applied=True)),
        (0.85, lambda: sandbox.fail_next(502, times=4, body="html")),
    )
    for share, happens in troubles:
        await sandbox.wait_for_requests(int(share * messages))
        happens()
