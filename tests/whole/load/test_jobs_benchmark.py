"""The benchmark of jobs, with few records: it works, and what was handed in is there."""

from __future__ import annotations

import pytest

from tests.commands import benchmark


@pytest.mark.needs_program("initdb")
async def test_handing_in_is_measured():
    """Figures of time are printed and hold nothing: they are those of a shared machine."""
    out = await benchmark("benchmarks.jobs", "submit", "--records", "2000")
    figures = {line[:60].strip(): line[60:].split()[0] for line in out.splitlines()[1:]}
    assert float(figures["size of the records in the database, MiB"]) > 0.2
    assert {"records a second", "progress, median, ms"} <= figures.keys()
