"""The benchmark in its short form: every measurement works, and what does not depend on the machine
keeps to its bounds.
"""

from __future__ import annotations

import pytest

from tests.commands import benchmark


@pytest.mark.needs_program("nginx")
async def test_the_short_form_of_the_benchmark_finds_no_count_over_its_bound():
    """Figures of time are printed and hold nothing: they are those of a shared machine."""
    out = await benchmark("benchmarks.run", "--short")
    tables = (
        "One call",
        "Holding",
        "Latency",
        "Cost as work grows",
        "From bytes",
        "Memory",
        "Resident",
        "Reading",
        "Import",
        "Counts",
    )
    assert [table for table in tables if table not in out] == []
    for count in ("function calls", "bytecode instructions", "memory blocks kept"):
        (line,) = (
            line for line in out.splitlines() if line.startswith(count) and "at most" in line
        )
        assert line.rstrip().endswith(" met"), line
        assert "not met" not in line
