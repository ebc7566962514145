"""The simulation behind the page on sizing, and its formula against real tables."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import jobs_sizing
from benchmarks.jobs_sizing import Plan, Project, simulate
from sinch_conv_async.jobs import RETAKE_AFTER, JobStore
from sinch_conv_async.sandbox import Sandbox
from tests.whole.jobs.database import LONG, PROJECT, until_ended, working
from tests.whole.jobs.test_pages import asked

PAGE_BYTES = jobs_sizing.PAGE
PAGE = Path(__file__).parent.parent.parent.parent / "docs" / "how-to" / "size-jobs.rst"


def found(*projects: Project, workers: int = 1, seed: int = 1, **more: float) -> jobs_sizing.Found:
    return simulate(Plan(projects, workers, **more), random.Random(seed))  # type: ignore[arg-type]  # numbers


def test_a_job_takes_its_records_at_the_pace() -> None:
    one = found(Project(200, (20_000,)))
    assert 100 <= one.seconds <= 100.5
    assert (one.kills, one.sent_twice) == (0, 0)
    assert one.reached > 0.99


def test_the_jobs_of_a_project_follow_one_another() -> None:
    assert 200 <= found(Project(200, (20_000, 20_000)), workers=4).seconds <= 201.5


def test_a_worker_sends_no_more_than_it_can_and_divides_it_fairly() -> None:
    slow, fast = Project(100, (10_000,)), Project(800, (90_000,))
    assert 100 <= found(slow, fast, most=1_000, seed=2).seconds <= 113.5
    # 500 in all: 100 for the one, and 400 for the other while both are there.
    assert 190 <= found(slow, fast, most=500, seed=2).seconds <= 206


def test_a_worker_sends_no_more_than_its_connections_allow() -> None:
    """256 connections and answers of 2 s: 128 a second."""
    assert 100 <= found(Project(800, (12_800,)), answer=2.0).seconds <= 100.6


def test_a_job_without_a_place_waits() -> None:
    waits = found(Project(100, (10_000,)), Project(100, (10_000,)), places=1)
    assert 200 <= waits.seconds <= 201.5
    assert waits.reached == pytest.approx(2 / 3, abs=0.02)


def test_a_death_costs_the_retaking_and_repeats_what_was_not_written() -> None:
    whole = found(Project(200, (20_000,)), workers=2, kill_every=60)
    assert whole.kills == 1
    # Half a second of updates at most, and those under way.
    assert 20 <= whole.sent_twice <= 120
    lost = whole.seconds - 100 - whole.sent_twice / 200
    assert 0 <= lost <= RETAKE_AFTER + 2.1


def test_the_death_of_the_only_worker_costs_its_restart() -> None:
    alone = found(Project(200, (20_000,)), kill_every=70, down=30.0)
    assert 130 <= alone.seconds <= 132


def test_deaths_without_a_living_worker_kill_nobody() -> None:
    often = found(Project(200, (2_000,)), kill_every=6, down=20.0)
    assert 0 < often.kills < often.seconds / 20 + 1


def test_the_page_has_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    jobs_sizing.main([])
    page = PAGE.read_text("utf-8")
    for block in capsys.readouterr().out.strip().split("\n\n"):
        assert "\n".join(f"   {line}" for line in block.splitlines()) in page


def test_a_plan_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    own = "--projects 12 --pace 400 --records 250000 --workers 4 --jobs 4"
    assert own in PAGE.read_text("utf-8")
    jobs_sizing.main(own.split())
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[:6] == ["12", "400", "250,000", "4", "4", "never"]


@pytest.mark.needs_program("initdb")
@pytest.mark.parametrize("metadata", ["", "x" * 100, "x" * 130, "ü" * 500])
async def test_the_size_of_a_record_is_that_of_real_tables(
    store: JobStore, url: str, metadata: str
) -> None:
    number = 3_000
    items = [(f"01FC66621XXXXX119Z8PM{each:05}", metadata) for each in range(number)]
    job = await store.submit(items, project_id=PROJECT)
    size = number * jobs_sizing.record_bytes(26, len(metadata.encode()))
    # Pages are whole, and the index has one of its own.
    assert size * 0.98 <= size_of(url, f"records_{job}") <= size * 1.02 + 3 * PAGE_BYTES


@pytest.mark.needs_program("initdb")
async def test_the_size_of_an_outcome_is_that_of_real_tables(store: JobStore, url: str) -> None:
    number = 5_000
    async with Sandbox(auto_create=True, rate_limit=10_000) as sandbox:
        items = [(f"01FC66621XXXXX119Z8PM{each:05}", "") for each in range(number)]
        job = await store.submit(items, project_id=PROJECT, rate_limit=10_000)
        async with working(url, sandbox, retake_after=LONG):
            assert (await until_ended(store, job)).updated == number
    size = number * jobs_sizing.outcome_bytes()
    # Several statements fill pages of their own, and the keys come in the order of the answers.
    assert size * 0.98 <= size_of(url, f"outcomes_{job}") <= size * 1.15 + 12 * PAGE_BYTES


def size_of(url: str, table: str) -> int:
    name = f"'sinch_conv.{table}'"
    (said,) = asked(url, f"SELECT pg_relation_size({name}) + pg_indexes_size({name})")
    return int(said)
