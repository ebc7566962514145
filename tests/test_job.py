"""One run of a bulk job, where a process of its own would not show what happens in it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async import ConversationClient
from sinch_conv_async._job import FailureLimit, FromPipe, Job, Spool
from sinch_conv_async._journal import Header, Journal
from sinch_conv_async._progress import Progress
from sinch_conv_async._records import BadLine, InputError, Layout, Record, RecordReader
from sinch_conv_async.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = Header(project_id="sandbox-project", input="-", fingerprint="", layout={})


def records(number: int) -> list[Record | BadLine]:
    rows = b"".join(b"ID%d,m\n" % row for row in range(number))
    return list(RecordReader(io.BytesIO(b"message_id,metadata\n" + rows), Layout()))


async def test_a_job_that_is_stopped_before_it_runs_sends_nothing(tmp_path: Path) -> None:
    async with Sandbox(auto_create=True) as sandbox, ConversationClient(**sandbox.client_options()) as client:
        with Journal.open(tmp_path / "j") as journal:
            job = Job(
                journal, journal.load(HEADER), Progress(io.StringIO()), bad_lines="stop", limit=None, total=5
            )
            job.stop()
            await job.run(client, records(5), concurrency=None, max_outage=900.0)
        assert not job.exhausted
        assert not sandbox.requests


async def test_a_pipe_hands_over_what_it_read_before_it_broke() -> None:
    def broken() -> Iterator[Record | BadLine]:
        yield from records(3)
        raise InputError("line 5: cannot be read")

    pipe = FromPipe(broken())
    assert [(await anext(pipe)).number for _ in range(3)] == [1, 2, 3]
    with pytest.raises(InputError, match="line 5"):
        await anext(pipe)
    with pytest.raises(InputError, match="line 5"):
        await anext(pipe)


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


def test_a_spool_gives_back_the_bytes_it_was_given(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.add(3, b"A,\xff\n")
        spool.add(9, b"")
        assert list(spool) == [(3, b"A,\xff\n"), (9, b"")]
    assert list(tmp_path.iterdir()) == []
