"""How much a fleet asks of its store: requests a second and store time, for processes and projects
of many numbers.

Run it with ``python -m benchmarks.fleet_sizing`` (half a minute, needs redis-server and
PostgreSQL). The requests come out of a simulation with the pure reference, which also tells how
long a project takes until everybody has a fair share. The cost of one request is measured on real
servers.
"""

import asyncio
import heapq
import time

from benchmarks.fleet import fleet_of
from sinch_conv_async.fleet import INTERVAL, LEASE, ProjectKey, State, Wish, allot, divided
from tests.whole.fleet.stores import Postgres, Redis, Store

LIMIT = 800.0


def settle(members: int) -> tuple[float, float, int]:
    """Requests a second to the store, seconds until the whole limit is divided, and the least share
    then; all want all they can get.
    """
    state, now, asked = State(), 1e9, 0
    shares = dict.fromkeys(range(members), 0)
    due = [(now + INTERVAL * number / members, number) for number in range(members)]
    settled_at = None
    begins = now
    while now < begins + 2 * LEASE * max(1, members / 100):
        now, number = heapq.heappop(due)
        wish = Wish(f"m{number:04d}", LIMIT, 900, holds=shares[number])
        state, share = allot(state, wish, now)
        shares[number] = share.share
        heapq.heappush(due, (now + share.interval, number))
        asked += 1
        if settled_at is None and sum(shares.values()) >= divided(LIMIT) * 0.99:
            settled_at = now
    return asked / (now - begins), (settled_at or now) - begins, min(shares.values())


async def cost(store: Store, members: int) -> float:
    """Microseconds of one request at so many members, over one connection, round trip included."""
    fleet = fleet_of(store.url)
    project = ProjectKey("https://api.example", f"sizing-{members}")
    wish = [Wish(f"m{number:04d}", LIMIT, 900) for number in range(members)]
    for one in wish:
        await fleet.share(project, one)
    rounds = max(200, members)
    began = time.perf_counter()
    for number in range(rounds):
        await fleet.share(project, wish[number % members])
    seconds = time.perf_counter() - began
    await fleet.close()
    return seconds / rounds * 1e6


def main() -> None:
    numbers = (10, 100, 400, 1000)
    print("processes  requests/s for a project  settled after  least share")
    rates = {}
    for members in numbers:
        rate, settled, least = settle(members)
        rates[members] = rate
        print(f"{members:9}  {rate:24.0f}  {settled:11.1f} s  {least:11}")
    for kind in (Redis, Postgres):
        with kind() as store:
            costs = {members: asyncio.run(cost(store, members)) for members in (1, *numbers)}
        print(
            f"{kind.__name__}: microseconds of one request, round trip included: "
            + ", ".join(f"{n}: {c:.0f}" for n, c in costs.items())
        )
        for projects in (1, 10, 100, 1000):
            busy = ", ".join(f"{n}: {rates[n] * projects * costs[n] / 1e4:.1f} %" for n in numbers)
            print(f"  {projects} projects, share of one core at so many processes: {busy}")


if __name__ == "__main__":
    main()
