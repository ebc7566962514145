"""Whether a call costs the same however many wait beside it."""

import functools

from benchmarks import process
from benchmarks.calls import FLOOR, HANDWRITTEN, OURS
from benchmarks.figures import Goal, Measurement, Plot, number
from benchmarks.plan import Plan

# The floor opens a connection for each caller, and nginx has no ten thousand.
WIDEST_FLOOR = 100


def measure(plan: Plan) -> Measurement:
    """CPU a call over the number of callers, the more of whom wait, the more there are."""
    widths = (1, 64) if plan.short else (1, 10, 100, 1_000, 10_000)

    def client(module: str, variant: str, width: int) -> process.Result:
        # Twice the callers, so that the time in which they start does not stand for all of it.
        calls = max(plan.calls // 2, 2 * width)
        return process.run(
            f"benchmarks.clients.{module}", plan.origin, calls, width, f"--variant={variant}"
        )

    clients = {FLOOR: ("floor", ""), HANDWRITTEN: ("handwritten", ""), OURS: ("ours", "plain")}

    def measured(name: str, width: int) -> bool:
        return name != FLOOR or width <= WIDEST_FLOOR

    results = process.interleaved(
        plan.rounds,
        {
            f"{name}, {width:,}": functools.partial(client, module, variant, width)
            for width in widths
            for name, (module, variant) in clients.items()
            if measured(name, width)
        },
    )

    def cpu(name: str, width: int) -> float | None:
        return process.median(results.get(f"{name}, {width:,}", []), "cpu_us")

    def spread(name: str, among: tuple[int, ...]) -> float | None:
        """By how many percent the dearest width costs more than the cheapest."""
        found = [value for width in among if (value := cpu(name, width)) is not None]
        return 100 * (max(found) / min(found) - 1) if found else None

    return Measurement(
        name="growth",
        title="Cost as work grows",
        how=(
            f"CPU µs a call by the number of tasks that call at the same time; medians of {plan.rounds} interleaved "
            "rounds. One task alone pays for turns of the event loop with every call, whichever the client, and the bare "
            "protocol shows how much that is; from ten on, calls share them."
        ),
        columns=("client", *(f"{width:,}" for width in widths), "spread", "spread from 10 on"),
        rows=[
            (
                name,
                *(number(cpu(name, width)) if measured(name, width) else "" for width in widths),
                number(spread(name, widths), 0, " %"),
                number(spread(name, widths[1:]), 0, " %"),
            )
            for name in clients
        ],
        goals=[
            Goal(
                text="spread of CPU a call over 1 to 10,000 callers",
                figure=spread(OURS, widths),
                bound=20,
                unit="%",
            )
        ],
        plot=Plot(
            label="CPU a call, µs",
            x_label="callers",
            series={
                name: [
                    (float(width), value)
                    for width in widths
                    if (value := cpu(name, width)) is not None
                ]
                for name in clients
            },
            logarithmic=True,
        ),
        raw={"rounds": results},
    )
