"""Processes that share one limit through a store: what they reach together, and what no second may
hold.

Run it with ``python -m benchmarks.fleet redis`` or ``postgres`` (three minutes; ``--only`` chooses
scenarios). It starts a private server, a sandbox that allows 800 requests a second, and eight
processes. Every scenario has goals, printed beside what was measured. The sandbox's garbage
collection is off, and the processes are nicer than it: a pause of the server's own would let
requests pile up and count as one moment.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from benchmarks import process, sample
from benchmarks.sharing import most_in
from sinch_conv_async.sandbox import Sandbox
from tests.whole.fleet.stores import Postgres, Redis, Store

PROCESSES = 8
LIMIT = 800
LATENCY = 0.02


@attrs.frozen
class Worker:
    """One process: when it begins and how long it works.

    ``rate``: updates a second, 0 for as many as it can. ``random``: they come at random, like the
    requests of a web service, and not evenly. ``callers``: so many calls at once, first of all.
    """

    name: int
    begins: float = 0.0
    seconds: float = 20.0
    rate: float = 0.0
    random: bool = False
    callers: int = 0


Goal = tuple[float, float]
"""The least and the most that a figure may be."""


@attrs.frozen
class Scenario:
    """Workers beside a sandbox that allows ``allowed``. Figures count from ``settled`` on.

    ``expire_at``: when the API begins to answer 401 to the token of the fleet.
    """

    name: str
    workers: tuple[Worker, ...]
    goals: Mapping[str, Goal]
    seconds: float = 20.0
    allowed: int = LIMIT
    settled: float = 5.0
    expire_at: float | None = None


def all_busy(**options: Any) -> tuple[Worker, ...]:
    return tuple(Worker(number, **options) for number in range(PROCESSES))


def one_busy(**options: Any) -> tuple[Worker, ...]:
    quiet = (Worker(number, rate=5.0, **options) for number in range(1, PROCESSES))
    return (Worker(0), *quiet)


def rolling() -> tuple[Worker, ...]:
    """Each of eight is replaced by another within a minute, one after the other."""
    workers = []
    for place in range(PROCESSES):
        replaced_at = 7.5 * place + 4
        workers.append(Worker(place, seconds=replaced_at))
        workers.append(Worker(place + PROCESSES, begins=replaced_at, seconds=ROLLING - replaced_at))
    return tuple(workers)


ROLLING = 64.0
NONE = (0, 0)
SHARED: Mapping[str, Goal] = {
    "reached": (0.97, 1),
    "most arrivals in a second": (0, LIMIT),
    "refused": NONE,
    "failed": NONE,
    "token requests": (1, 1),
    "round trips a second and process": (0, 5),
}
QUIET: Mapping[str, Goal] = {
    **SHARED,
    "reached": (0.9, 1),
    "p99 of the quiet above the latency, ms": (0, 50),
}

SCENARIOS = (
    Scenario("saturated", all_busy(), {**SHARED, "least to most": (0.9, 1)}),
    Scenario("one busy, seven quiet and even", one_busy(), QUIET),
    Scenario("one busy, seven quiet and random", one_busy(random=True), QUIET),
    Scenario(
        "rolling deployment",
        rolling(),
        {
            "reached": (0.9, 1),
            "most arrivals in a second": (0, LIMIT * 1.02),
            "failed": NONE,
            "token requests": (1, 1),
            "round trips a second and process": (0, 5),
        },
        seconds=ROLLING,
    ),
    Scenario(
        "the real limit is 600",
        all_busy(),
        {"reached": (0.97, 1), "failed": NONE, "token requests": (1, 1)},
        allowed=600,
    ),
    Scenario(
        "cold with 1,000 callers, and a 401 after 6 s",
        all_busy(callers=125, seconds=10.0),
        {"refused": NONE, "failed": NONE, "token requests": (2, 2)},
        seconds=10.0,
        expire_at=6.0,
    ),
)


def endless(name: int) -> Iterator[tuple[str, str]]:
    number = 0
    while True:
        yield f"p{name:02d}-{number % 1000:08d}", sample.METADATA
        number += 1


async def at_a_rate(client: Any, worker: Worker, until: float) -> list[tuple[float, float]]:
    """Makes updates at a rate, whatever the earlier ones take; when each began, what it took."""
    took: list[tuple[float, float]] = []
    rng = random.Random(worker.name)
    updates = endless(worker.name)

    async def update(began: float) -> None:
        await client.update_message_metadata(*next(updates))
        took.append((began, time.monotonic() - began))

    due = time.monotonic() + rng.random() / worker.rate
    async with asyncio.TaskGroup() as group:
        while due < until:
            await asyncio.sleep(due - time.monotonic())
            group.create_task(update(due))
            due += rng.expovariate(worker.rate) if worker.random else 1 / worker.rate
    return took


async def work(origin: str, store: str, worker: Worker) -> dict[str, Any]:
    """One process of the fleet; what it did, and how long its calls took if it made them at a rate.

    The first seconds of its life do not count for that.
    """
    from sinch_conv_async import ConversationClient, SessionManager

    failed, took = 0, []
    async with (
        SessionManager(fleet=fleet_of(store)) as manager,
        ConversationClient(
            project_id=sample.PROJECT_ID,
            key_id=sample.KEY_ID,
            key_secret=sample.KEY_SECRET,
            conversation_origin=origin,
            auth_origin=origin,
            rate_limit=LIMIT,
            session_manager=manager,
        ) as client,
    ):
        begins = time.monotonic()
        until = begins + worker.seconds
        if worker.callers:
            updates = endless(worker.name)
            calls = [client.update_message_metadata(*next(updates)) for _ in range(worker.callers)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            failed += sum(isinstance(outcome, Exception) for outcome in outcomes)
        if worker.rate:
            took = await at_a_rate(client, worker, until)
        else:
            async with client.update_many(endless(worker.name)) as outcomes_of_many:
                async for outcome in outcomes_of_many:
                    failed += not outcome.ok
                    if time.monotonic() >= until:
                        break
        stats = manager.stats()
    return {
        "failed": failed,
        "token_requests": stats.token_requests,
        "took": [seconds for began, seconds in took if began >= begins + 5],
        "slowest": max((seconds for _, seconds in took), default=None),
    }


def fleet_of(store: str) -> Any:
    if store.startswith("redis"):
        from sinch_conv_async.fleet.redis import RedisFleet

        return RedisFleet(store)
    from sinch_conv_async.fleet.postgres import PostgresFleet

    return PostgresFleet(store)


async def started(sandbox: Sandbox, store: Store, worker: Worker) -> dict[str, Any]:
    await asyncio.sleep(worker.begins)
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.fleet", "--work", json.dumps(attrs.asdict(worker))),
        *("--origin", sandbox.origin, "--url", store.url),
        cwd=process.ROOT,
        stdout=subprocess.PIPE,
    )
    said, _ = await running.communicate()
    found: dict[str, Any] = json.loads(said)
    return found


def round_trips(store: Store) -> int:
    """Operations that the store has served."""
    if isinstance(store, Redis):
        stats = store.tell("INFO", "commandstats")
        return sum(
            int(line.split("calls=")[1].split(",")[0])
            for line in stats.splitlines()
            if line.startswith("cmdstat_evalsha")
        )
    # Each statement of the fleet is a transaction. A backend reports its own once a second.
    count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'"
    return int(store.tell("SELECT pg_sleep(1.1)", count).split()[-1])


async def expire(sandbox: Sandbox, seconds: float) -> None:
    """Answers 401 to all tokens, so long after the first request."""
    while not sandbox.requests:
        await asyncio.sleep(0.01)
    await asyncio.sleep(seconds)
    sandbox.expire_tokens()


async def measure(scenario: Scenario, store: Store) -> dict[str, Any]:
    async with Sandbox(
        project_id=sample.PROJECT_ID,
        key_id=sample.KEY_ID,
        key_secret=sample.KEY_SECRET,
        rate_limit=scenario.allowed,
        latency=LATENCY,
        auto_create=True,
    ) as sandbox:
        before = round_trips(store)
        async with asyncio.TaskGroup() as group:
            if scenario.expire_at is not None:
                group.create_task(expire(sandbox, scenario.expire_at))
            running = [
                group.create_task(started(sandbox, store, worker)) for worker in scenario.workers
            ]
        results = [task.result() for task in running]
        trips = round_trips(store) - before
        requests = list(sandbox.requests)
    # Python takes a moment to start: the clock begins with the first request, and ends with the
    # last process that was busy all the time.
    begins = requests[0].time
    settled = begins + scenario.settled
    ends = begins + scenario.seconds - 1.5
    applied = [
        request for request in requests if request.applied and settled <= request.time < ends
    ]
    by_process = Counter((request.message_id or "")[:3] for request in applied)
    fair = [by_process[f"p{worker.name:02d}"] for worker in scenario.workers if not worker.rate]
    found: dict[str, Any] = {
        "reached": len(applied) / (ends - settled) / scenario.allowed,
        "most served in a second": most_in(
            [request.time for request in requests if request.status != 429], 1.0
        ),
        "most arrivals in a second": most_in([request.time for request in requests], 1.0),
        "refused": sum(request.status == 429 for request in requests),
        "requests": len(requests),
        "failed": sum(result["failed"] for result in results),
        "token requests": sum(result["token_requests"] for result in results),
        "round trips a second and process": trips / scenario.seconds / PROCESSES,
    }
    if len(fair) == PROCESSES:
        found["least to most"] = min(fair) / max(fair)
    if took := sorted(seconds for result in results for seconds in result["took"]):
        above = took[int(len(took) * 0.99)] - LATENCY
        found["p99 of the quiet above the latency, ms"] = above * 1000
        slowest = max(result["slowest"] or 0.0 for result in results)
        found["slowest of the quiet, from the first second on, ms"] = slowest * 1000
    return found


def show(scenario: Scenario, store: str, found: Mapping[str, Any]) -> None:
    print(f"{scenario.name} ({store}; load average {os.getloadavg()[0]:.1f})")
    for name, value in found.items():
        goal = ""
        if name in scenario.goals:
            least, most = scenario.goals[name]
            goal = f"{least:g} to {most:g}{'' if least <= value <= most else ': MISSED'}"
        shown = round(value, 3) if isinstance(value, float) else value
        print(f"  {name:50} {shown:>10}   {goal}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", choices=["redis", "postgres"])
    parser.add_argument("--only", help="the scenarios whose names match this regular expression")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--origin", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        os.nice(5)
        print(
            json.dumps(asyncio.run(work(given.origin, given.url, Worker(**json.loads(given.work)))))
        )
        return
    gc.disable()
    store: Store = Redis() if given.store == "redis" else Postgres()
    with store:
        for scenario in SCENARIOS:
            if given.only and not re.search(given.only, scenario.name):
                continue
            show(scenario, given.store, asyncio.run(measure(scenario, store)))


if __name__ == "__main__":
    main()
