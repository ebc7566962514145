"""The benchmark: ``python -m benchmarks.run`` from the project's directory.

Measures, shows, and fails only on counts that no machine changes: never on time. ``--short`` is the
form for CI.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    calls,
    conversion,
    counts,
    growth,
    imports,
    latency,
    pace,
    page,
    reading,
    residence,
    server,
    waiting,
)
from benchmarks.figures import Measurement
from benchmarks.plan import Plan

MEASUREMENTS: dict[str, Callable[[Plan], Measurement]] = {
    "calls": calls.measure,
    "pace": pace.measure,
    "latency": latency.measure,
    "growth": growth.measure,
    "conversion": conversion.measure,
    "waiting": waiting.measure,
    "residence": residence.measure,
    "reading": reading.measure,
    "imports": imports.measure,
    "counts": counts.measure,
}


def main() -> int:
    """Exit code 0; 1 when a count is over its bound or could not be taken; 2 without a server."""
    options = _options()
    measurements = []
    try:
        with server.nginx() as origin:
            plan = Plan(
                origin=origin,
                rounds=options.rounds or (1 if options.short else 5),
                calls=options.calls or (1_000 if options.short else 10_000),
                concurrency=options.concurrency,
                short=options.short,
                sinch_python=options.sinch_python,
            )
            for name in options.only:
                print(f"{name} ...", file=sys.stderr, flush=True)
                measurements.append(MEASUREMENTS[name](plan))
                print(page.text(measurements[-1]), end="\n\n", flush=True)
    except server.ServerMissingError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json is not None:
        page.write_json(options.json, measurements)
    if options.page is not None:
        page.write_page(options.page, measurements)
    over = [goal for found in measurements for goal in found.goals if goal.count and not goal.met]
    for goal in over:
        print("count over its bound:", *goal.row, file=sys.stderr)
    return 1 if over else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="one small round of everything, for CI"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="interleaved rounds (5; short: 1)")
    parser.add_argument(
        "--calls", type=int, metavar="N", help="calls a round (10,000; short: 1,000)"
    )
    parser.add_argument(
        "--concurrency", type=int, default=64, metavar="N", help="tasks that call (64)"
    )
    parser.add_argument(
        "--only",
        type=_names,
        default=list(MEASUREMENTS),
        metavar="NAME,...",
        help=", ".join(MEASUREMENTS),
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write a page there and plots beside it"
    )
    parser.add_argument(
        "--sinch-python",
        default=os.environ.get("BENCHMARK_SINCH_PYTHON", sys.executable),
        metavar="PYTHON",
        help="an interpreter that has Sinch's SDK (BENCHMARK_SINCH_PYTHON, else this one)",
    )
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(MEASUREMENTS)):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
