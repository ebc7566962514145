"""How long jobs in PostgreSQL take, how many workers they need, how large the database gets.

A simulation: it sends nothing, needs no database, and takes some seconds. Run it with
``python -m benchmarks.jobs_sizing`` for a table of examples, or with your own numbers:
``--projects 20 --pace 200 --records 1000000 --workers 4 --kill-every 3600``.

The model. Each project has jobs, which follow one another. Each worker looks for jobs again and
again, and takes as many as it has places for: so the first one that looks may take all. It divides
what it can send among its jobs, max-min fair, and no job gets more than its project's pace. A
worker that is killed loses the outcomes that it has not flushed. Its jobs wait until another worker
may take them. It is started again after a while.

The size of a table follows from PostgreSQL's layout: rows in pages of 8 KiB, and an index of
integers. A test compares it with real tables.
"""

import argparse
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from sinch_conv_async.cli.progress import duration
from sinch_conv_async.fleet import fair_share
from sinch_conv_async.jobs import RETAKE_AFTER
from sinch_conv_async.jobs.ledger import BATCH
from sinch_conv_async.jobs.worker import CONNECTIONS, JOBS

LIMIT: Final = 800
"""Requests a second that the API allows a project."""

MOST: Final = 2_000
"""Updates a second of one worker on one core; benchmarks/jobs.py measures it as ``million``."""

FLUSH_EVERY, ASK_EVERY, RETAKE_EVERY = RETAKE_AFTER / 6, RETAKE_AFTER / 6, RETAKE_AFTER / 3
"""Seconds between two flushes, two looks for a job, and two looks for lost jobs, of a worker."""


# How long


@attrs.frozen
class Project:
    """A project's pace in requests a second, and the records of its jobs in their order."""

    pace: int
    jobs: tuple[int, ...]


@attrs.frozen
class Plan:
    """What is to be done, and by how many workers.

    ``places``: jobs that a worker does at a time. ``most``: updates a second that it can send at
    all. ``answer``: seconds that the API takes for an answer. ``kill_every``: seconds after which
    one worker, taken at random, is killed; ``None``: never. ``down``: seconds until it runs again.
    """

    projects: tuple[Project, ...]
    workers: int
    places: int = JOBS
    most: int = MOST
    answer: float = 0.1
    kill_every: float | None = None
    down: float = 5.0

    @property
    def worker_rate(self) -> int:
        """Updates a second of one worker: by its core, and by its connections (Little's law)."""
        return min(self.most, int(CONNECTIONS / self.answer))

    @property
    def paces(self) -> int:
        """The sum of the projects' paces: more is not to be had."""
        return sum(project.pace for project in self.projects)


@attrs.frozen
class Found:
    """What a plan comes to.

    ``seconds``: until the last job is done. ``reached``: the part of the paces that was reached,
    of each project for as long as it had work. ``kills``: workers that were killed.
    ``sent_twice``: updates that may have been sent a second time after the kills.
    """

    seconds: float
    reached: float
    kills: int
    sent_twice: int


@attrs.define(eq=False)
class _Project:
    pace: int
    left: list[float]  # records of each job, the current one first
    worker: int | None = None
    free_at: float = 0.0  # from then on a worker may take it
    rate: float = 0.0
    worked: float = 0.0


@attrs.define(eq=False)
class _Worker:
    number: int
    asks_at: float  # and then every ASK_EVERY seconds
    back_at: float = 0.0  # when it runs (again)

    def next_ask(self, now: float) -> float:
        """When it looks for jobs next, now or later."""
        earliest = max(now, self.back_at)
        return (
            self.asks_at
            + max(0, math.ceil((earliest - self.asks_at) / ASK_EVERY - 1e-9)) * ASK_EVERY
        )


def simulate(plan: Plan, rng: random.Random) -> Found:
    """Plays the plan through, from event to event; between two events all rates stay the same."""
    projects = [_Project(project.pace, [*map(float, project.jobs)]) for project in plan.projects]
    workers = [_Worker(number, rng.uniform(0, ASK_EVERY)) for number in range(plan.workers)]
    next_kill = math.inf if plan.kill_every is None else plan.kill_every
    now, kills, repeated = 0.0, 0, 0.0
    while left := [project for project in projects if project.left]:
        _take(left, workers, plan, now)
        _divide(left, plan)
        step = min(_events(left, workers, plan, next_kill, now)) - now
        now += step
        for project in left:
            _advance(project, step, now)
        if now >= next_kill:
            assert plan.kill_every is not None  # else it would never be reached
            next_kill += plan.kill_every
            if alive := [worker for worker in workers if worker.back_at <= now]:
                chosen = rng.choice(alive)
                kills += 1
                chosen.back_at = now + plan.down
                repeated += _kill(left, chosen, plan, now, rng)
    done = sum(sum(project.jobs) for project in plan.projects)
    possible = sum(project.pace * project.worked for project in projects)
    return Found(now, done / possible, kills, round(repeated))


def _places(left: Sequence[_Project], worker: _Worker, plan: Plan) -> int:
    return plan.places - sum(project.worker == worker.number for project in left)


def _take(left: Sequence[_Project], workers: Sequence[_Worker], plan: Plan, now: float) -> None:
    for worker in workers:
        if worker.next_ask(now) - now < 1e-6:
            free = [project for project in left if project.worker is None]
            free = [project for project in free if project.free_at <= now]
            for project in free[: _places(left, worker, plan)]:
                project.worker = worker.number


def _divide(left: Sequence[_Project], plan: Plan) -> None:
    for worker in range(plan.workers):
        own = {str(at): project.pace for at, project in enumerate(left) if project.worker == worker}
        for at, rate in fair_share(plan.worker_rate, own, 0).items() if own else ():
            left[int(at)].rate = rate
    for project in left:
        if project.worker is None:
            project.rate = 0.0


def _events(
    left: Sequence[_Project],
    workers: Sequence[_Worker],
    plan: Plan,
    next_kill: float,
    now: float,
) -> Iterator[float]:
    yield next_kill
    yield from (now + project.left[0] / project.rate for project in left if project.rate)
    free_at = [project.free_at for project in left if project.worker is None]
    for worker in workers if free_at else ():
        if _places(left, worker, plan):
            # A look at this moment has just been answered.
            yield worker.next_ask(max(min(free_at), now + 1e-5))


def _advance(project: _Project, step: float, now: float) -> None:
    project.worked += step
    project.left[0] -= project.rate * step
    if project.left[0] < 1e-3:
        project.left.pop(0)
        project.worker, project.free_at = None, now


def _kill(
    left: Sequence[_Project], worker: _Worker, plan: Plan, now: float, rng: random.Random
) -> float:
    """Takes its jobs from the worker; how many updates will be sent again."""
    repeated = 0.0
    for project in left:
        if project.worker == worker.number:
            # Since the last flush; and what is under way.
            since = rng.uniform(0, FLUSH_EVERY)
            again = min(float(BATCH), project.rate * since) + project.rate * plan.answer
            repeated += again
            project.left[0] += again
            project.worker = None
            held = RETAKE_AFTER - since
            project.free_at = now + held + rng.uniform(0, RETAKE_EVERY)
    return repeated


# How large

PAGE, PAGE_HEADER, POINTER, TUPLE_HEADER, ALIGNMENT = 8_192, 24, 4, 23, 8
INDEX_ENTRY, INDEX_FILL = 20, 0.9
"""Bytes: of PostgreSQL's pages, of what it keeps for each row, and of an index of integers."""


def record_bytes(message_id: int, metadata: int | None) -> float:
    """Bytes in the database of one record with its key.

    ``metadata``: bytes of its metadata in UTF-8; ``None`` if all records have the job's own.
    """
    used = 3 * 4 + _text(message_id)
    if metadata is not None:
        used = _text_after(used, metadata)
    return _row(columns=6, used=used) + _key()


def outcome_bytes() -> float:
    """Bytes in the database of the outcome of a record that was updated, with its key."""
    return _row(columns=12, used=2 * 4 + 8 + 4 + _text(len("updated"))) + _key()


def _text(length: int) -> int:
    return length + (1 if length < 127 else 4)


def _text_after(used: int, length: int) -> int:
    # A length of four bytes begins at a multiple of four.
    return used + _text(length) if length < 127 else _aligned(used, 4) + _text(length)


def _aligned(number: int, to: int) -> int:
    return -(-number // to) * to


def _row(*, columns: int, used: int) -> float:
    # Some columns are null, so a row has a bit for each.
    header = _aligned(TUPLE_HEADER + -(-columns // 8), ALIGNMENT)
    whole = header + _aligned(used, ALIGNMENT) + POINTER
    return PAGE / ((PAGE - PAGE_HEADER) // whole)


def _key() -> float:
    return INDEX_ENTRY / INDEX_FILL


# What it says

EXAMPLES: Final = (
    (1, LIMIT, 1_000_000, 1, JOBS, None),
    (1, LIMIT, 5_000_000, 2, JOBS, None),
    (1, LIMIT, 5_000_000, 2, JOBS, 600.0),
    (4, 200, 1_000_000, 1, JOBS, None),
    (4, LIMIT, 1_000_000, 2, JOBS, None),
    (4, LIMIT, 1_000_000, 2, 2, None),
    (20, 200, 1_000_000, 1, 20, None),
    (20, 200, 1_000_000, 4, JOBS, None),
    (20, 200, 1_000_000, 4, JOBS, 20.0),
    (20, 200, 1_000_000, 4, 7, 20.0),
    (20, 200, 1_000_000, 4, 7, 3600.0),
)
"""Projects, pace, records of each, workers, jobs of each, and seconds between two kills."""

SEEDS: Final = 9
"""Plays of each example; the table has their medians."""

SIZES: Final = ((26, None), (26, 100), (26, 1_000))
"""Characters of an id, and of the metadata."""


Example = tuple[int, int, int, int, int, float | None]


def plan_of(example: Example) -> Plan:
    """A plan in which all projects are alike."""
    projects, pace, records, workers, places, kill_every = example
    alike = tuple(Project(pace, (records,)) for _ in range(projects))
    return Plan(alike, workers, places, kill_every=kill_every)


def lines(examples: Sequence[Example]) -> Iterator[str]:
    """The table of these examples."""
    yield "projects  pace    records  workers  --jobs  one killed      takes  of the paces  sent twice"
    for example in examples:
        found = [simulate(plan_of(example), random.Random(seed)) for seed in range(SEEDS)]
        projects, pace, records, workers, places, kill_every = example
        killed = "never" if kill_every is None else f"{kill_every:g} s"
        takes = duration(statistics.median(one.seconds for one in found))
        reached = statistics.median(one.reached for one in found)
        twice = round(statistics.median(one.sent_twice for one in found))
        yield (
            f"{projects:8}  {pace:4}  {records:9,}  {workers:7}  {places:6}  {killed:>10}"
            f"  {takes:>9}  {reached:>12.1%}  {twice:10,}"
        )


def size_lines() -> Iterator[str]:
    """The table of sizes."""
    yield "message id     metadata  bytes of a record  of its outcome  a million of both"
    for length, metadata in SIZES:
        record, outcome = record_bytes(length, metadata), outcome_bytes()
        kept = "one for all" if metadata is None else f"{metadata:,}"
        million = f"{record + outcome:,.0f} MB"
        yield f"{length:10}  {kept:>11}  {record:17,.0f}  {outcome:14,.0f}  {million:>17}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How long jobs take, and how large they are.")
    parser.add_argument("--projects", type=int, default=1)
    parser.add_argument("--pace", type=int, default=LIMIT, help="requests a second of a project")
    parser.add_argument("--records", type=int, help="of each project; without it: examples")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=JOBS, help="jobs at a time of a worker")
    parser.add_argument("--kill-every", type=float, help="seconds between two kills of a worker")
    given = parser.parse_args(arguments)
    plan = (given.projects, given.pace, given.records, given.workers, given.jobs, given.kill_every)
    for line in lines(EXAMPLES if given.records is None else [plan]):
        print(line)
    print()
    for line in size_lines():
        print(line)


if __name__ == "__main__":
    main()
