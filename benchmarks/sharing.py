"""Processes that know nothing of each other, each set to the whole limit, against one sandbox that
allows it once.

Run it with ``python -m benchmarks.sharing`` (a minute; ``--seconds``, ``--processes`` and
``--limit`` make it shorter; ``--processes=1 --noise=0.01 --seconds=25 --settled=0`` shows a process
alone that meets 1 % of random 429s). It prints, from second 10 on, what they reach together, how
many requests were answered 429, what the slowest of them got, and how many calls failed. Real
sockets on loopback: the figures depend on a machine that can bear the load. What does not is in
``benchmarks/pace_simulation.py``.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks import process, sample
from benchmarks.clients import ours as our_client
from benchmarks.clients import workload
from sinch_conv_async.sandbox import Sandbox


def endless() -> Iterator[tuple[str, str]]:
    number = 0
    while True:
        yield f"{sample.MESSAGE_ID[:18]}{number % 1000:08d}", sample.METADATA
        number += 1


async def work(origin: str, limit: float, seconds: float) -> dict[str, int]:
    """One process: a bulk job that never ends, for so many seconds; how many updates were applied,
    how many failed.
    """
    our_client.choose_json("speedups")
    from sinch_conv_async import ConversationClient, SessionManager

    applied = failed = 0
    options = our_client.client_options(origin, rate_limit=limit)
    async with (
        SessionManager() as manager,
        ConversationClient(**options, session_manager=manager) as client,  # type: ignore[arg-type]  # of several types
    ):
        until = time.monotonic() + seconds
        async with client.update_many(endless()) as outcomes:
            async for outcome in outcomes:
                applied += outcome.ok
                failed += not outcome.ok
                if time.monotonic() >= until:
                    break
        [project] = manager.stats().projects
    return {"applied": applied, "failed": failed, "pace": round(project.pace)}


def most_in(times: list[float], window: float) -> int:
    """The most arrivals that a window of that length holds."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] + window <= at:
            first += 1
        most = max(most, last - first + 1)
    return most


async def measure(
    processes: int,
    limit: int,
    seconds: float,
    settled: float,
    *,
    allowed: int | None,
    latency: float = 0.0,
    noise: float = 0.0,
) -> dict[str, float]:
    """Starts processes that are each set to ``limit``, and reads the record of a sandbox that
    allows ``allowed`` in all.
    """
    async with Sandbox(
        project_id=sample.PROJECT_ID,
        key_id=sample.KEY_ID,
        key_secret=sample.KEY_SECRET,
        rate_limit=allowed,
        latency=latency,
        auto_create=True,
        keep_headers=True,
    ) as sandbox:
        if noise:
            sandbox.at_random(noise, lambda: sandbox.fail_next(429))
        began = time.monotonic()
        command = (sys.executable, "-m", "benchmarks.sharing", "--work", sandbox.origin)
        started = [
            await asyncio.create_subprocess_exec(
                *command,
                *(f"--limit={limit}", f"--seconds={seconds}"),
                cwd=process.ROOT,
                stdout=subprocess.PIPE,
            )
            for _ in range(processes)
        ]
        said = await asyncio.gather(*(one.communicate() for one in started))
        results = [json.loads(stdout) for stdout, _ in said]

    # Which process a request came from: each has a token of its own.
    until = began + seconds
    requests = [request for request in sandbox.requests if began + settled <= request.time < until]
    shares: dict[str, int] = {}
    refused = 0
    for request in requests:
        assert request.headers is not None
        token = request.headers["authorization"]
        shares.setdefault(token, 0)
        if request.status == 429:
            refused += 1
        elif request.applied:
            shares[token] += 1
    applied = sum(shares.values())
    time_counted = seconds - settled
    times = [request.time for request in requests]
    return {
        "reached_share": applied / time_counted / limit,
        "refused_share": refused / max(1, len(requests)),
        "least_of_fair_share": min(shares.values()) / (limit * time_counted / processes)
        if shares
        else 0.0,
        "processes_heard": len(shares),
        "calls_failed": sum(result["failed"] for result in results),
        "calls_applied": sum(result["applied"] for result in results),
        "lowest_pace_at_the_end": min(result["pace"] for result in results),
        "requests": len(requests),
        "most_in_a_second": most_in(times, 1.0),
        "most_in_50_ms": most_in(times, 0.05),
    }


GOALS = {
    "reached_share": "of the limit, together; goal: at least 0.90",
    "refused_share": "of the requests answered 429; goal: at most 0.03",
    "least_of_fair_share": "what the slowest process got; goal: at least 0.50",
    "calls_failed": "goal: 0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--limit", type=int, default=800)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--settled", type=float, default=10.0, help="from which second on it is counted"
    )
    parser.add_argument(
        "--noise", type=float, default=0.0, help="the share that is answered 429 at random"
    )
    parser.add_argument("--work", metavar="ORIGIN", help="be one of the processes")
    given = parser.parse_args()
    with workload.missing_is_reported():
        if given.work:
            print(json.dumps(asyncio.run(work(given.work, given.limit, given.seconds))))
            return
        found = asyncio.run(
            measure(
                given.processes,
                given.limit,
                given.seconds,
                given.settled,
                allowed=given.limit,
                noise=given.noise,
            )
        )
        print(
            f"{given.processes} processes, each set to {given.limit}/s, one limit of {given.limit}/s, "
            f"seconds {given.settled:g} to {given.seconds:g}:"
        )
        for name, goal in GOALS.items():
            print(f"  {name:22} {found[name]:10.4f}   {goal}")
        print(json.dumps(found))


if __name__ == "__main__":
    main()
