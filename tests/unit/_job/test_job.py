"""One run of a bulk job, where a process of its own would not show what happens in it."""

from __future__ import annotations

import asyncio
import gzip
import io
import resource
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async import ConversationClient
from sinch_conv_async._job.input import BadLine, InputError, Layout, Record, RecordReader
from sinch_conv_async._job.job import FailureLimit, FromPipe, Job, Spool, write_failures
from sinch_conv_async._job.journal import Header, Journal, States
from sinch_conv_async._job.progress import Progress
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


@pytest.mark.parametrize("total", [3, None])
async def test_a_job_is_unfinished_while_a_record_that_was_read_has_no_outcome(
    total: int | None, tmp_path: Path
) -> None:
    async with Sandbox(auto_create=True) as sandbox, ConversationClient(**sandbox.client_options()) as client:
        with Journal.open(tmp_path / "j") as journal:
            job = Job(
                journal,
                journal.load(HEADER),
                Progress(io.StringIO()),
                bad_lines="stop",
                limit=None,
                total=total,
            )
            assert job.unfinished
            sandbox.hold()
            running = asyncio.create_task(job.run(client, records(3), concurrency=5, max_outage=900.0))
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
    async with Sandbox(auto_create=True) as sandbox, ConversationClient(**sandbox.client_options()) as client:
        for number in (3, now):
            with Journal.open(tmp_path / "j") as journal:
                states = journal.load(HEADER, digests=True)
                job = Job(journal, states, Progress(io.StringIO()), bad_lines="stop", limit=None, total=None)
                running = job.run(client, FromPipe(records(number)), concurrency=None, max_outage=900.0)
                if number == 3:
                    await running
                else:
                    with pytest.raises(
                        InputError,
                        match="ended after record 1, but the journal knows record 3: pipe in the whole",
                    ):
                        await running
                assert job.exhausted is (number == 3)
        assert len(sandbox.requests) == 3


async def test_what_ends_the_reading_of_a_pipe_is_raised_whatever_it_is() -> None:
    def broken() -> Iterator[Record | BadLine]:
        yield from records(1)
        raise RecursionError("much too deep")

    pipe = FromPipe(broken())
    assert (await anext(pipe)).number == 1
    async with asyncio.timeout(30):  # it used to be waited for without end
        with pytest.raises(RecursionError, match="much too deep"):
            await anext(pipe)


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


def test_a_spool_without_room_says_so_when_it_is_read(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with Spool(tmp_path) as spool:
            for number in (1, 2, 3):
                spool.add(number, b"x" * 100_000)
            with pytest.raises(OSError, match="File too large"):
                list(spool)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["failed.csv", "failed.csv.gz"])
def test_failures_that_are_not_whole_leave_the_older_ones_and_nothing_else(name: str, tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[int, bytes]]:
        yield 1, b"A,m\n"
        raise KeyboardInterrupt

    path = tmp_path / name
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        write_failures(path, b"message_id,metadata\n", interrupted(), States())
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize("name", ["failed.csv", "failed.csv.gz"])
def test_failures_hold_metadata_and_are_their_owners_alone(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    left = tmp_path / f"{name}.part"  # by a run that was killed
    left.touch(0o644)
    write_failures(path, b"message_id,metadata\n", [], States())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_bytes()
    assert (gzip.decompress(written) if name.endswith(".gz") else written) == b"message_id,metadata\n"


def test_failures_are_not_written_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "failed.csv.part").symlink_to("theirs")
    with pytest.raises(OSError, match="symbolic links"):
        write_failures(tmp_path / "failed.csv", b"message_id,metadata\n", [], States())
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_spool_gives_back_the_bytes_it_was_given(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.add(3, b"A,\xff\n")
        spool.add(9, b"")
        assert list(spool) == [(3, b"A,\xff\n"), (9, b"")]
    assert list(tmp_path.iterdir()) == []
