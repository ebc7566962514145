"""``asyncio.gather`` of 100,000 calls, all of which succeed: how long that takes, and what memory
it needs.

Run it with ``python -m benchmarks.gather`` (about a minute without a pace; ``--rate 800`` takes the
125 seconds that the API's limit makes of it). The server is nginx. What holds for any number of
calls, on any machine, is in ``tests/whole/load/test_gather.py``.
"""

import argparse
import asyncio
import json
import resource
import time

from benchmarks import sample, server
from benchmarks.clients import ours as our_client
from benchmarks.clients import workload


async def measure(origin: str, count: int, rate: float | None) -> dict[str, float]:
    """All at once; the first answer is clocked, and what had been sent by then is counted."""
    our_client.choose_json("speedups")
    from sinch_conv_async import ConversationClient, SessionManager

    async with SessionManager() as manager:
        options = our_client.client_options(origin) | {
            "rate_limit": rate,
            "session_manager": manager,
        }
        async with ConversationClient(**options) as client:  # type: ignore[arg-type]  # keywords of several types
            await client.authenticate()
            began = time.monotonic()
            first: list[tuple[float, int]] = []

            async def call(message_id: str) -> str | None:
                message = await client.update_message_metadata(message_id, sample.METADATA)
                if not first:
                    first.append((time.monotonic() - began, manager.stats().attempts))
                return message.id

            ids = list(workload.message_ids(count))
            with workload.Stopwatch() as stopwatch:
                answered = await asyncio.gather(*map(call, ids))
            stats = manager.stats()
    if answered != ids:
        raise RuntimeError("an answer is about another message than the one asked for")
    return {
        "calls": count,
        "succeeded": len(answered),
        "retries": stats.retries,
        "seconds": stopwatch.wall,
        "cpu_us": stopwatch.cpu / count * 1e6,
        "first_answer_after_s": first[0][0],
        "sent_by_then": first[0][1],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "left_in_flight": stats.in_flight,
        "left_waiting": stats.waiting,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument(
        "--rate", type=float, default=None, help="calls a second; none: as fast as it goes"
    )
    given = parser.parse_args()
    with server.nginx() as origin:
        found = asyncio.run(measure(origin, given.calls, given.rate))
    for name, figure in found.items():
        print(f"  {name:22} {figure:12,.2f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
