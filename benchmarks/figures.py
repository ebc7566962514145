"""What a measurement found: a table, the goals it answers, and what may be drawn of it.

Knows nothing of how it was measured or where it is shown.
"""

import attrs


@attrs.frozen(kw_only=True)
class Goal:
    """A figure beside the bound it is held against. A `count` depends on no machine and may fail a
    run.
    """

    text: str
    figure: float | None
    bound: float
    at_least: bool = False
    unit: str = "times"
    count: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bound is kept; None where nothing could be measured."""
        if self.figure is None:
            return None
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound

    @property
    def verdict(self) -> str:
        return {True: "met", False: "not met", None: "not measured"}[self.met]

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The goal as a table has it."""
        bound = f"{'at least' if self.at_least else 'at most'} {self.bound:g} {self.unit}"
        figure = "" if self.figure is None else f"{self.figure:,.2f}"
        return (self.text, figure, bound, self.verdict)


@attrs.frozen(kw_only=True)
class Plot:
    """Named series of points. One point a series is a bar, more are a line over x."""

    label: str
    series: dict[str, list[tuple[float, float]]]
    x_label: str = ""
    logarithmic: bool = False

    @property
    def is_bars(self) -> bool:
        return all(len(points) == 1 for points in self.series.values())


@attrs.frozen(kw_only=True)
class Measurement:
    """One table, with the sentence that says how it came about."""

    name: str
    title: str
    how: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    goals: list[Goal] = attrs.field(factory=list)
    plot: Plot | None = None
    raw: dict[str, object] = attrs.field(factory=dict)


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A figure as a table shows it; what is missing is said to be."""
    return "missing" if value is None else f"{value:,.{digits}f}{unit}"


def text_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table for a terminal, its first column to the left and the others to the right."""
    widths = [max(len(line[at]) for line in [columns, *rows]) for at in range(len(columns))]
    lines = []
    for line in [columns, tuple("-" * width for width in widths), *rows]:
        first, *others = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)
