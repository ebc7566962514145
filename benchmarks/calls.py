"""CPU and wall time of one call, at the same concurrency, for every client that a user
would pick.
"""

import functools
import sys

from benchmarks import process
from benchmarks.figures import Goal, Measurement, Plot, number
from benchmarks.plan import Plan

FLOOR = "asyncio protocol"
OURS = "sinch-conv-async"
OURS_SPEEDUPS = "sinch-conv-async [speedups]"
HANDWRITTEN = "aiohttp by hand"


def measure(plan: Plan) -> Measurement:
    """One row a client, with ratios against aiohttp written by hand."""

    def client(
        module: str, *options: str, share: float = 1.0, concurrency: int = plan.concurrency
    ) -> process.Result:
        # A client that takes fifty times longer settles on its figure with fewer calls.
        return process.run(
            f"benchmarks.clients.{module}",
            plan.origin,
            max(20, round(plan.calls * share)),
            concurrency,
            *options,
            python=plan.sinch_python if module == "sinch_sdk" else sys.executable,
        )

    wide = plan.concurrency
    uvloop = ("--loop", "uvloop")
    jobs = {
        FLOOR: functools.partial(client, "floor"),
        f"{FLOOR} + json.loads": functools.partial(client, "floor", "--variant", "json"),
        HANDWRITTEN: functools.partial(client, "handwritten"),
        OURS: functools.partial(client, "ours", "--variant", "plain"),
        OURS_SPEEDUPS: functools.partial(client, "ours", "--variant", "speedups"),
        f"httpx, {wide} at a time": functools.partial(client, "httpx_async", share=0.1),
        f"{OURS}, by aiohttp's session": functools.partial(client, "ours", "--variant", "session"),
        f"{HANDWRITTEN}, uvloop": functools.partial(client, "handwritten", *uvloop),
        f"{OURS}, uvloop": functools.partial(client, "ours", "--variant", "plain", *uvloop),
        f"{OURS_SPEEDUPS}, uvloop": functools.partial(
            client, "ours", "--variant", "speedups", *uvloop
        ),
        "httpx, 8 at a time": functools.partial(client, "httpx_async", share=0.1, concurrency=8),
        # Which number of threads serves it best is for the table to say.
        "sinch, 1 thread": functools.partial(client, "sinch_sdk", share=0.02, concurrency=1),
        "sinch, 8 threads": functools.partial(client, "sinch_sdk", share=0.02, concurrency=8),
        "sinch, 64 threads": functools.partial(client, "sinch_sdk", share=0.02, concurrency=64),
    }
    results = process.interleaved(plan.rounds, jobs)
    base = results[HANDWRITTEN]
    cpu = {name: process.median(found, "cpu_us") for name, found in results.items()}

    def row(name: str) -> tuple[str, ...]:
        wall = process.median(results[name], "wall_us")
        fields: tuple[str, ...] = ("", "")
        if (on_uvloop := results.get(f"{name}, uvloop")) is not None:
            there = results[f"{HANDWRITTEN}, uvloop"]
            fields = (
                number(process.median(on_uvloop, "cpu_us")),
                number(process.ratio(on_uvloop, there, "cpu_us"), 2),
            )
        return (
            name,
            number(cpu[name]),
            number(wall),
            number(None if wall is None else 1e6 / wall, 0),
            number(process.ratio(results[name], base, "cpu_us"), 2),
            number(process.ratio(results[name], base, "wall_us"), 2),
            *fields,
        )

    def against_best(prefix: str) -> float | None:
        """How many times more the best row of another client costs: its worst would flatter us."""
        rows = [found for name, found in results.items() if name.startswith(prefix + ",") and found]
        ratios = [process.ratio(found, results[OURS], "cpu_us") for found in rows]
        return min((found for found in ratios if found is not None), default=None)

    versions: dict[str, str] = {}
    for found in results.values():
        versions |= found[0]["versions"] if found else {}
    said = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return Measurement(
        name="calls",
        title="One call",
        how=(
            f"{plan.calls:,} updates by {wide} tasks (httpx a tenth of them, sinch a fiftieth), after a warm-up, in "
            f"{plan.rounds} interleaved rounds; medians. CPU is user and system time of the client's process, its "
            f"kernel work included, the server's not. Ratios are medians of each round's ratio. {said}."
        ),
        columns=(
            "client",
            "CPU µs",
            "wall µs",
            "calls/s",
            "CPU ratio",
            "wall ratio",
            "uvloop: CPU µs",
            "CPU ratio",
        ),
        rows=[row(name) for name in jobs if not name.endswith(", uvloop")],
        goals=[
            Goal(
                text="CPU a call against aiohttp by hand",
                figure=process.ratio(results[OURS], base, "cpu_us"),
                bound=0.50,
            ),
            Goal(
                text="the same with [speedups]",
                figure=process.ratio(results[OURS_SPEEDUPS], base, "cpu_us"),
                bound=0.47,
            ),
            Goal(
                text="CPU of Sinch's SDK at its best against ours",
                figure=against_best("sinch"),
                bound=60,
                at_least=True,
            ),
            Goal(
                text="CPU of httpx at its best against ours",
                figure=against_best("httpx"),
                bound=6,
                at_least=True,
            ),
        ],
        plot=Plot(
            label="CPU a call, µs",
            series={name: [(0.0, value)] for name, value in cpu.items() if value is not None},
            logarithmic=True,
        ),
        raw={"rounds": results},
    )
