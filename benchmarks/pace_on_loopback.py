"""A bulk job at 800 updates a second against answers that take 200 ms: what arrives, by a sandbox's
clock in another process.

Run it with ``python -m benchmarks.pace_on_loopback`` (20 seconds). The promise is about departures,
and is kept by arithmetic (``tests/unit/_core/test_pace.py``); on the way to the server's clock lie
two event loops and a kernel, so that what arrives within a second may be a little more. Reported,
not asserted.
"""

import argparse
import asyncio
import json

from benchmarks import sharing
from benchmarks.clients import workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=800)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--settled", type=float, default=3.0, help="from which second on it is counted"
    )
    given = parser.parse_args()
    with workload.missing_is_reported():
        found = asyncio.run(
            sharing.measure(
                1, given.limit, given.seconds, given.settled, allowed=None, latency=given.latency
            )
        )
        print(f"update_many at {given.limit}/s, {given.latency * 1000:g} ms of latency:")
        print(f"  {found['reached_share']:8.4f}   of the limit reached; goal: at least 0.98")
        print(f"  {found['most_in_a_second']:8.0f}   arrivals at most in a second")
        print(
            f"  {found['most_in_50_ms']:8.0f}   arrivals at most in 50 ms; evenly spaced: {given.limit / 20:g}"
        )
        print(json.dumps(found))


if __name__ == "__main__":
    main()
