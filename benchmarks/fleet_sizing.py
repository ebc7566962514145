"""How much a fleet asks of its store: round trips and store time, for many processes and projects.

Run it with ``python -m benchmarks.fleet_sizing`` (a minute and a half; needs redis-server and
PostgreSQL). The round trips come out of a simulation with the pure reference, ``allot``, which also
tells how long a fleet that starts cold takes until the whole limit is divided. The processor time
of one round trip is measured on real servers, as the system counts it for their processes.
"""

import asyncio
import heapq
import os
from pathlib import Path
from typing import Any

import attrs

from sinch_conv_async.fleet import INTERVAL, ProjectKey, State, Wish, allot, divided
from sinch_conv_async.fleet.postgres import PostgresFleet
from sinch_conv_async.fleet.redis import RedisFleet
from tests.whole.fleet.stores import Postgres, Redis, Store

LIMIT = 800.0
PROCESSES = (10, 30, 100, 300, 1000)
PROJECTS = (1, 10, 100, 1000)
AFTER = 5.0  # seconds that are counted once the limit is divided


@attrs.frozen
class Settled:
    """``rate``: round trips a second of all processes. ``after``: seconds until all is divided."""

    rate: float
    after: float
    least: int
    most: int


def settle(members: int) -> Settled:
    """A fleet that starts cold with so many processes, all of which want all that they can get."""
    state, begins = State(), 1e9
    shares = dict.fromkeys(range(members), 0)
    due = [(begins + INTERVAL * number / members, number) for number in range(members)]
    settled_at, asked = None, 0
    while True:
        now, number = heapq.heappop(due)
        if settled_at is not None and now >= settled_at + AFTER:
            break
        wish = Wish(f"m{number:04d}", LIMIT, 900, holds=shares[number])
        state, share = allot(state, wish, now)
        shares[number] = share.share
        heapq.heappush(due, (now + share.interval, number))
        if settled_at is not None:
            asked += 1
        elif sum(shares.values()) >= divided(LIMIT) * 0.99:
            settled_at = now
    return Settled(asked / AFTER, settled_at - begins, min(shares.values()), max(shares.values()))


def fleet_of(store: Store) -> Any:
    # Nobody else uses the machine in the meantime, or so it is hoped.
    if isinstance(store, Redis):
        return RedisFleet(store.url, timeout=5.0)
    return PostgresFleet(store.url, timeout=5.0)


def processor_seconds(store: Store) -> float:
    """What the server and its children have used so far."""
    assert store.process is not None
    pid = store.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
    ticks = 0
    for one in (str(pid), *children):
        fields = Path(f"/proc/{one}/stat").read_text("utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


async def cost(store: Store, members: int) -> float:
    """Microseconds of the server's processor time for one round trip, at so many members."""
    fleet = fleet_of(store)
    project = ProjectKey("https://api.example", f"sizing-{members}")
    wishes = [Wish(f"m{number:04d}", LIMIT, 900) for number in range(members)]
    for wish in wishes:
        await fleet.share(project, wish)
    rounds = 2000
    before = processor_seconds(store)
    for number in range(rounds):
        await fleet.share(project, wishes[number % members])
    used = processor_seconds(store) - before
    await fleet.close()
    return used / rounds * 1e6


def main() -> None:
    print("Simulated: one project with a limit of 800, started cold")
    print(f"{'processes':>9}{'round trips/s':>15}{'of each':>9}{'divided after':>15}{'shares':>9}")
    settled = {}
    for members in PROCESSES:
        settled[members] = found = settle(members)
        print(
            f"{members:9}{found.rate:15.0f}{found.rate / members:9.2f}{found.after:13.1f} s"
            f"{f'{found.least}-{found.most}':>9}",
            flush=True,
        )
    for kind in (Redis, Postgres):
        with kind() as store:
            costs = {members: asyncio.run(cost(store, members)) for members in PROCESSES}
        print(f"\n{kind.__name__}: processor time of one round trip, and of one core in all")
        print(f"{'processes':>9}{'us':>8}" + "".join(f"{f'{n} projects':>15}" for n in PROJECTS))
        for members in PROCESSES:
            cells = (
                f"{settled[members].rate * projects * costs[members] / 1e4:13.1f} %"
                for projects in PROJECTS
            )
            print(f"{members:9}{costs[members]:8.0f}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
