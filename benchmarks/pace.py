"""What it costs to hold 800 calls a second, the most that the API allows a project."""

import functools

from benchmarks import process
from benchmarks.calls import HANDWRITTEN, OURS, OURS_SPEEDUPS
from benchmarks.figures import Goal, Measurement, Plot, number
from benchmarks.plan import Plan

# The API's limit for a project, which is also the client's default.
RATE = 800


def measure(plan: Plan) -> Measurement:
    """All calls are made at once; ours waits in its pacer, aiohttp by hand sleeps until each call's
    slot.
    """
    seconds = 1 if plan.short else 8

    def client(module: str, variant: str = "") -> process.Result:
        return process.run(
            f"benchmarks.clients.{module}",
            plan.origin,
            seconds * RATE,
            plan.concurrency,
            f"--rate={RATE}",
            f"--variant={variant}",
        )

    jobs = {
        HANDWRITTEN + ", sleeping": functools.partial(client, "handwritten"),
        OURS: functools.partial(client, "ours", "plain"),
        OURS_SPEEDUPS: functools.partial(client, "ours", "speedups"),
    }
    results = process.interleaved(plan.rounds, jobs)
    base = results[HANDWRITTEN + ", sleeping"]

    def row(name: str) -> tuple[str, ...]:
        wall, share = (
            process.median(results[name], "wall_us"),
            process.median(results[name], "share_of_a_core"),
        )
        return (
            name,
            number(process.median(results[name], "cpu_us")),
            number(None if wall is None else 1e6 / wall, 0),
            number(None if share is None else share * 100, 1, " %"),
            number(process.ratio(results[name], base, "cpu_us"), 2),
        )

    return Measurement(
        name="pace",
        title=f"Holding {RATE} calls a second",
        how=(
            f"{seconds * RATE:,} calls made at once, held to {RATE} a second for {seconds} s; "
            f"medians of {plan.rounds} interleaved rounds."
        ),
        columns=("client", "CPU µs a call", "calls/s", "share of a core", "CPU ratio"),
        rows=[row(name) for name in jobs],
        goals=[
            Goal(
                text=f"CPU at {RATE} calls/s against aiohttp by hand, sleeping",
                figure=process.ratio(results[OURS], base, "cpu_us"),
                bound=0.60,
            )
        ],
        plot=Plot(
            label="share of a core, %",
            series={
                name: [(0.0, 100 * share)]
                for name, found in results.items()
                if (share := process.median(found, "share_of_a_core")) is not None
            },
        ),
        raw={"rounds": results},
    )
