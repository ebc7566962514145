"""Processes that share one limit through a store: what they reach together, and what no second may hold.

Run it with ``python -m benchmarks.fleet redis`` or ``postgres`` (two minutes). It starts a private
server, a sandbox that allows 800 requests a second, and eight processes. Every scenario has goals,
printed beside what was measured. The sandbox's garbage collection is off: a pause of the server's
own would let requests pile up and count as one moment.
"""

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
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
    """One process: when it begins, how long it works, and how many updates a second it makes (0: as many as it can)."""

    name: int
    begins: float = 0.0
    seconds: float = 20.0
    rate: float = 0.0


@attrs.frozen
class Scenario:
    name: str
    workers: tuple[Worker, ...]
    seconds: float
    allowed: int = LIMIT
    settled: float = 5.0


SCENARIOS = (
    Scenario("saturated", tuple(Worker(number) for number in range(PROCESSES)), 20.0),
    Scenario(
        "one busy, seven quiet",
        (Worker(0), *(Worker(number, rate=5.0) for number in range(1, PROCESSES))),
        20.0,
    ),
    Scenario(
        "rolling deployment",
        # Each of eight is replaced by another within a minute, one after the other.
        tuple(
            Worker(
                number + generation * PROCESSES,
                begins=generation * (7.5 * number + 4),
                seconds=life,
            )
            for generation in (0, 1)
            for number in range(PROCESSES)
            for life in [7.5 * number + 4 if not generation else 64 - 7.5 * number - 4]
        ),
        64.0,
    ),
    Scenario(
        "the real limit is lower",
        tuple(Worker(number) for number in range(PROCESSES)),
        20.0,
        allowed=600,
    ),
)


def endless(name: int) -> Iterator[tuple[str, str]]:
    number = 0
    while True:
        yield f"p{name:02d}-{number % 1000:08d}", sample.METADATA
        number += 1


async def work(origin: str, store: str, worker: Worker) -> dict[str, Any]:
    """One process of the fleet; what it did, and how long its calls took if it made them at a rate."""
    from sinch_conv_async import ConversationClient, SessionManager

    fleet = fleet_of(store)
    failed, took = 0, []
    async with (
        SessionManager(fleet=fleet) as manager,
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
        until = time.monotonic() + worker.seconds
        if not worker.rate:
            async with client.update_many(endless(worker.name)) as outcomes:
                async for outcome in outcomes:
                    failed += not outcome.ok
                    if time.monotonic() >= until:
                        break
        else:
            for message_id, metadata in endless(worker.name):
                began = time.monotonic()
                if began >= until:
                    break
                await client.update_message_metadata(message_id, metadata)
                took.append(time.monotonic() - began)
                await asyncio.sleep(max(0.0, 1 / worker.rate - took[-1]))
        stats = manager.stats()
    took.sort()
    return {
        "failed": failed,
        "token_requests": stats.token_requests,
        "p99": took[int(len(took) * 0.99)] if took else None,
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
    """Operations that the store has served; 0 where it does not count them."""
    if isinstance(store, Redis):
        stats = store.tell("INFO", "commandstats")
        return sum(
            int(line.split("calls=")[1].split(",")[0])
            for line in stats.splitlines()
            if line.startswith("cmdstat_evalsha")
        )
    return 0


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
        results = await asyncio.gather(
            *(started(sandbox, store, worker) for worker in scenario.workers)
        )
        trips = round_trips(store) - before
        requests = list(sandbox.requests)
    # Python takes a moment to start: the clock begins with the first request, and ends with the
    # last process that was busy all the time.
    begins = requests[0].time
    settled = begins + scenario.settled
    ends = begins + scenario.seconds - 1.5
    counted = [request for request in requests if settled <= request.time < ends]
    applied = [request for request in counted if request.applied]
    by_process = Counter((request.message_id or "")[:3] for request in applied)
    quiet = [result["p99"] for result in results if result["p99"] is not None]
    fair = [by_process[f"p{worker.name:02d}"] for worker in scenario.workers if not worker.rate]
    return {
        "reached": len(applied) / (ends - settled) / scenario.allowed,
        "most in a second": most_in(
            [request.time for request in requests if request.status != 429], 1.0
        ),
        "most arrivals in a second": most_in([request.time for request in requests], 1.0),
        "refused": sum(request.status == 429 for request in requests),
        "requests": len(requests),
        "failed": sum(result["failed"] for result in results),
        "token requests": sum(result["token_requests"] for result in results),
        "least to most": min(fair) / max(fair) if len(fair) == PROCESSES else None,
        "p99 of the quiet, ms": max(quiet) * 1000 if quiet else None,
        "round trips a second and process": trips / scenario.seconds / PROCESSES if trips else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", choices=["redis", "postgres"])
    parser.add_argument("--only", help="the scenarios whose names contain this")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--origin", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(
            json.dumps(asyncio.run(work(given.origin, given.url, Worker(**json.loads(given.work)))))
        )
        return
    gc.disable()
    store: Store = Redis() if given.store == "redis" else Postgres()
    with store:
        for scenario in SCENARIOS:
            if given.only and given.only not in scenario.name:
                continue
            found = asyncio.run(measure(scenario, store))
            print(f"{scenario.name} ({given.store})")
            for name, value in found.items():
                print(f"  {name:34} {value if not isinstance(value, float) else round(value, 3)}")


if __name__ == "__main__":
    main()
