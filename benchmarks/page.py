"""Shows measurements: as text on a terminal, as JSON, as a reStructuredText page with plots beside
it.

Knows nothing of how they were made. matplotlib is imported only where a page is asked for.
"""

import datetime
import json
import os
import platform
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks import server
from benchmarks.figures import Measurement, Plot, text_table

GOAL_COLUMNS = ("goal", "figure", "bound", "")


def text(measurement: Measurement) -> str:
    """One measurement for a terminal."""
    parts = [
        f"{measurement.title}\n{measurement.how}",
        text_table(measurement.columns, measurement.rows),
    ]
    if measurement.goals:
        parts.append(text_table(GOAL_COLUMNS, [goal.row for goal in measurement.goals]))
    return "\n\n".join(parts)


def write_json(path: Path, measurements: Sequence[Measurement]) -> None:
    """All figures, those of every round among them."""
    found: dict[str, Any] = {"machine": machine()}
    for measurement in measurements:
        found[measurement.name] = attrs.asdict(measurement) | {
            "goals": [attrs.asdict(goal) | {"met": goal.met} for goal in measurement.goals]
        }
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def write_page(path: Path, measurements: Sequence[Measurement]) -> None:
    """The page at `path`, and a plot beside it for each measurement that has one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    how = (
        f"A run of ``python -m benchmarks.run`` on {today} on one machine ({machine()}), against one nginx worker on "
        "loopback that returns a recorded answer, each client in a process of its own. Lower is better, and ratios "
        "are against aiohttp as people write it by hand unless a table says otherwise. Absolute figures belong to "
        "that machine."
    )
    lines = [
        "Benchmarks",
        "==========",
        "",
        textwrap.fill(how, 100),
        "",
        "Goals",
        "-----",
        "",
        *_list_table(GOAL_COLUMNS, [goal.row for found in measurements for goal in found.goals]),
    ]
    for measurement in measurements:
        lines += ["", measurement.title, "-" * len(measurement.title), ""]
        lines += [textwrap.fill(measurement.how, 100), ""]
        lines += _list_table(measurement.columns, measurement.rows)
        if measurement.plot is not None and measurement.plot.series:
            stem = f"{path.stem}-{measurement.name}"
            _draw(measurement.plot, path.with_name(stem))
            lines += [
                "",
                f".. image:: {stem}.svg",
                f"   :alt: {measurement.title}: {measurement.plot.label}",
            ]
    path.write_text("\n".join(lines) + "\n")


def machine() -> str:
    """What the figures belong to: interpreter, system, cores, server."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, {server.version()}"


def _list_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ".. list-table::"
    yield "   :header-rows: 1"
    yield ""
    for row in [columns, *rows]:
        for at, cell in enumerate(row):
            yield f"   {'*' if at == 0 else ' '} - {cell}".rstrip()


def _draw(plot: Plot, stem: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    # Without these two, every run would write other SVG for the same figures.
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
    import matplotlib.pyplot as plt

    if plot.is_bars:
        figure, axes = plt.subplots(figsize=(7.5, 0.6 + 0.42 * len(plot.series)))
        names = list(plot.series)
        bars = axes.barh(names, [points[0][1] for points in plot.series.values()], color="#4878a8")
        for bar, name in zip(bars, names, strict=True):
            bar.set_color(
                "#c8553d" if name.startswith("sinch-conv") or "sinch_conv" in name else "#4878a8"
            )
        axes.bar_label(
            bars, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.1f}", padding=3
        )
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.set_xlabel(plot.label)
        if plot.logarithmic:
            axes.set_xscale("log")
    else:
        figure, axes = plt.subplots(figsize=(7.5, 4))
        for name, points in plot.series.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(plot.label)
        axes.set_xlabel(plot.x_label)
        axes.legend()
        if plot.logarithmic:
            axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
