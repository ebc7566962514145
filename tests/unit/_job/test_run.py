"""One run of a job: what it sends, what it writes, and when it is finished."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async import ConversationClient
from sinch_conv_async._job.input import BadLine, InputError, Layout, Record, RecordReader
from sinch_conv_async._job.journal import Header, Journal
from sinch_conv_async._job.ledger import Outcome
from sinch_conv_async._job.pipe import FromPipe
from sinch_conv_async._job.run import FailureLimit, OtherRecordError, Run
from sinch_conv_async._job.states import States
from sinch_conv_async.cli.progress import Quiet
from sinch_conv_async.sandbox import Sandbox
from tests.servers import client_of

if TYPE_CHECKING:
    from pathlib import Path

HEADER = Header(
    project_id="sandbox-project", origin="http://127.0.0.1", input="-", fingerprint="", layout={}
)


def records(number: int) -> list[Record | BadLine]:
    rows = b"".join(b"ID%d,m\n" % row for row in range(number))
    return list(RecordReader(io.BytesIO(b"message_id,metadata\n" + rows), Layout()))


async def test_a_job_that_is_stopped_before_it_runs_sends_nothing(tmp_path: Path) -> None:
    async with (
        Sandbox(auto_create=True) as sandbox,
        ConversationClient(**sandbox.client_options()) as client,
    ):
        with Journal.open(tmp_path / "j") as journal:
            journal.load(HEADER, States())
            job = Run(journal, Quiet(io.StringIO()), total=5)
            job.stop()
            await job.go(client, records(5), concurrency=None, max_outage=900.0)
        assert not job.exhausted
        assert not sandbox.requests


@pytest.mark.parametrize("total", [3, None])
async def test_a_job_is_unfinished_while_a_record_that_was_read_has_no_outcome(
    total: int | None, tmp_path: Path
) -> None:
    async with (
        Sandbox(auto_create=True) as sandbox,
        ConversationClient(**sandbox.client_options()) as client,
    ):
        with Journal.open(tmp_path / "j") as journal:
            journal.load(HEADER, States())
            job = Run(journal, Quiet(io.StringIO()), total=total)
            assert job.unfinished
            sandbox.hold()
            running = asyncio.create_task(
                job.go(client, records(3), concurrency=5, max_outage=900.0)
            )
            await sandbox.wait_for_requests(3)
            assert job.exhausted
            assert job.unfinished
            sandbox.release()
            await running
            assert not job.unfinished


@pytest.mark.parametrize("now", [1, 3])
async def test_a_pipe_that_ends_before_what_the_journal_knows_is_not_the_whole_input(
    now: int, tmp_path: Path
) -> None:
    async with (
        Sandbox(auto_create=True) as sandbox,
        ConversationClient(**sandbox.client_options()) as client,
    ):
        for number in (3, now):
            with Journal.open(tmp_path / "j") as journal:
                journal.load(HEADER, States(digests=True))
                job = Run(journal, Quiet(io.StringIO()))
                running = job.go(
                    client, FromPipe(records(number)), concurrency=None, max_outage=900.0
                )
                if number == 3:
                    await running
                else:
                    with pytest.raises(
                        InputError,
                        match="ended after record 1, but an earlier run came to record 3; give the whole",
                    ):
                        await running
                assert job.exhausted is (number == 3)
        assert len(sandbox.requests) == 3


@pytest.mark.parametrize(
    ("limit", "failed", "ended", "exceeded"),
    [
        (FailureLimit(0), 0, 10, False),
        (FailureLimit(0), 1, 1, True),
        (FailureLimit(3), 3, 3, False),
        (FailureLimit(3), 4, 4, True),
        (FailureLimit(10, percent=True), 50, 99, False),  # a share of few means nothing
        (FailureLimit(10, percent=True), 10, 100, False),
        (FailureLimit(10, percent=True), 11, 100, True),
        (FailureLimit(0.5, percent=True), 26, 5000, True),
    ],
)
def test_a_limit_is_exceeded_by_more_than_it_says(
    limit: FailureLimit, failed: int, ended: int, exceeded: bool
) -> None:
    assert limit.exceeded(failed, ended) is exceeded


async def test_in_an_outage_the_progress_is_told_the_last_error(tmp_path: Path) -> None:
    class Watching(Quiet):
        def see(self, done: int, failed: int, *, outage: str | None) -> None:
            if outage is not None:
                said.append(outage)
                run.stop()

    said: list[str] = []
    async with (
        Sandbox(auto_create=True) as sandbox,
        client_of(sandbox) as client,
    ):
        sandbox.fail_next(503, times=10_000)
        with Journal.open(tmp_path / "j") as journal:
            journal.load(HEADER, States())
            run = Run(journal, Watching(None), total=3)
            await run.go(client, records(3), concurrency=None, max_outage=900.0)
            assert run.unfinished
    assert said[0].startswith("ServerError: 503")


async def test_what_a_merge_leaves_as_it_is_is_unchanged(tmp_path: Path) -> None:
    layout = Layout(merge=True, constant='{"tag": "x"}')
    changes = list(RecordReader(io.BytesIO(b"id\nA\nB\n"), layout))
    async with Sandbox() as sandbox, ConversationClient(**sandbox.client_options()) as client:
        sandbox.add_message("A", metadata='{"tag": "x"}')
        sandbox.add_message("B", metadata='{"tag": "y"}')
        with Journal.open(tmp_path / "j") as journal:
            journal.load(HEADER, States(supersedes=False))
            run = Run(journal, Quiet(None), merge=True, total=2)
            await run.go(client, changes, concurrency=None, max_outage=900.0)
            assert [journal.state(number) for number in (1, 2)] == [
                Outcome.UNCHANGED,
                Outcome.UPDATED,
            ]
        assert not run.unfinished
        assert (run.counts.updated, run.counts.unchanged, run.counts.sent) == (1, 1, 2)
        assert (sandbox.messages["A"].updates, sandbox.messages["B"].updates) == (0, 1)


async def test_another_record_under_a_known_number_ends_the_run(tmp_path: Path) -> None:
    async with (
        Sandbox(auto_create=True) as sandbox,
        ConversationClient(**sandbox.client_options()) as client,
    ):
        for data, error in ((b"A,m\nB,m\n", None), (b"A,m\nC,m\n", OtherRecordError)):
            items = list(RecordReader(io.BytesIO(b"message_id,metadata\n" + data), Layout()))
            with Journal.open(tmp_path / "j") as journal:
                journal.load(HEADER, States(digests=True))
                run = Run(journal, Quiet(None))
                going = run.go(client, items, concurrency=None, max_outage=900.0)
                if error is None:
                    await going
                else:
                    with pytest.raises(error, match="line 3: this is not the record"):
                        await going
        assert [request.message_id for request in sandbox.requests] == ["A", "B"]
