"""The picture of ``docs/explanation/fleet.rst``: the shares of eight processes while a deployment
replaces each of them.

Run it with ``python -m benchmarks.fleet_picture docs/explanation/fleet.svg``. It simulates the
processes with the pure reference.
"""

import sys
from pathlib import Path

from sinch_conv_async.fleet import INTERVAL, State, Wish, allot

LIMIT = 800.0
PROCESSES = 8
SECONDS = 24.0
REPLACED_FROM = 4.0
REPLACED_EVERY = 2.0
LEFT, TOP, WIDTH, HEIGHT = 44, 12, 420, 200


def history() -> tuple[list[float], list[list[int]]]:
    """Times, and the share of each of the sixteen processes at each time. A process that is
    replaced gives its share back.
    """
    state, rows, times = State(), [], []
    shares = [0] * (2 * PROCESSES)
    now = 1e9
    for step in range(round(SECONDS / INTERVAL) + 1):
        at = step * INTERVAL
        for number in range(2 * PROCESSES):
            generation, place = divmod(number, PROCESSES)
            replaced_at = REPLACED_FROM + REPLACED_EVERY * place
            alive = at < replaced_at if generation == 0 else at >= replaced_at
            if alive:
                state, share = allot(
                    state, Wish(f"m{number:02d}", LIMIT, 900, holds=shares[number]), now + at
                )
                shares[number] = share.share
            elif shares[number]:
                state, share = allot(state, Wish(f"m{number:02d}", LIMIT, 0, leaves=True), now + at)
                shares[number] = 0
        times.append(at)
        rows.append(list(shares))
    return times, rows


def drawn() -> str:
    times, rows = history()

    def x(at: float) -> float:
        return LEFT + WIDTH * at / SECONDS

    def y(rate: float) -> float:
        return TOP + HEIGHT * (1 - rate / LIMIT)

    areas = []
    below = [0.0] * len(times)
    for number in range(2 * PROCESSES):
        above = [low + row[number] for low, row in zip(below, rows, strict=True)]
        if any(row[number] for row in rows):
            outline = [f"{x(at):.1f},{y(top):.1f}" for at, top in zip(times, above, strict=True)]
            outline += [
                f"{x(at):.1f},{y(low):.1f}"
                for at, low in zip(reversed(times), reversed(below), strict=True)
            ]
            shade = 0.15 + 0.06 * (number % PROCESSES) + (0.2 if number >= PROCESSES else 0)
            areas.append(
                f'  <polygon points="{" ".join(outline)}" fill="currentColor" fill-opacity="{shade:.2f}"/>'
            )
        below = above
    ticks = "\n".join(
        f'  <text class="label" x="{LEFT - 6}" y="{y(rate) + 4:.0f}" text-anchor="end">{rate}</text>\n'
        f'  <path class="arrow" d="M {LEFT} {y(rate):.1f} H {LEFT + WIDTH}" stroke-dasharray="2 4"/>'
        for rate in (0, 200, 400, 600, 800)
    )
    seconds = "\n".join(
        f'  <text class="label" x="{x(at):.0f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{at:g} s</text>'
        for at in (0, 4, 8, 12, 16, 20, 24)
    )
    return f"""<svg class="drawing" role="img" aria-labelledby="fleet-title fleet-desc" viewBox="0 0 480 250" xmlns="http://www.w3.org/2000/svg">
  <title id="fleet-title">Eight processes through a rolling deployment</title>
  <desc id="fleet-desc">The shares of eight processes, stacked. For two seconds the store learns. Then each process has an eighth of 792 requests a second. From second 4 on, a process is replaced every two seconds; the new one has its share within half a second. The sum never exceeds the limit of 800.</desc>
{chr(10).join(areas)}
{ticks}
{seconds}
  <text class="label" x="{LEFT}" y="{TOP + HEIGHT + 36}">requests a second that each process may send, stacked</text>
</svg>
"""


def main() -> None:
    Path(sys.argv[1]).write_text(drawn(), "utf-8")


if __name__ == "__main__":
    main()
