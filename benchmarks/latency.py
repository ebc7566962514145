"""How long a single call takes when nothing else is under way."""

import functools

from benchmarks import process
from benchmarks.calls import FLOOR, HANDWRITTEN, OURS, OURS_SPEEDUPS
from benchmarks.figures import Goal, Measurement, Plot, number
from benchmarks.plan import Plan


def measure(plan: Plan) -> Measurement:
    """Median and 99th percentile of the wall clock of each call, one at a time."""
    calls = max(100, plan.calls // 4)

    def client(module: str, variant: str = "") -> process.Result:
        return process.run(
            f"benchmarks.clients.{module}",
            plan.origin,
            calls,
            1,
            "--latencies",
            f"--variant={variant}",
        )

    jobs = {
        FLOOR: functools.partial(client, "floor"),
        HANDWRITTEN: functools.partial(client, "handwritten"),
        OURS: functools.partial(client, "ours", "plain"),
        OURS_SPEEDUPS: functools.partial(client, "ours", "speedups"),
    }
    results = process.interleaved(plan.rounds, jobs)
    base = results[HANDWRITTEN]
    return Measurement(
        name="latency",
        title="Latency of one call at a time",
        how=f"{calls:,} calls, one after the other; medians of {plan.rounds} interleaved rounds.",
        columns=("client", "median µs", "p99 µs", "median ratio", "p99 ratio"),
        rows=[
            (
                name,
                number(process.median(found, "median_us")),
                number(process.median(found, "p99_us")),
                number(process.ratio(found, base, "median_us"), 2),
                number(process.ratio(found, base, "p99_us"), 2),
            )
            for name, found in results.items()
        ],
        goals=[
            Goal(
                text="median latency at concurrency 1 against aiohttp by hand",
                figure=process.ratio(results[OURS], base, "median_us"),
                bound=0.60,
            )
        ],
        plot=Plot(
            label="median latency, µs",
            series={
                name: [(0.0, value)]
                for name, found in results.items()
                if (value := process.median(found, "median_us")) is not None
            },
        ),
        raw={"rounds": results},
    )
