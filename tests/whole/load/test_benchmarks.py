"""The benchmark in its short form: every measurement works, and what does not depend on the machine
keeps to its bounds.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.commands import unmeasured

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.mark.needs_program("nginx")
async def test_the_short_form_of_the_benchmark_finds_no_count_over_its_bound():
    """Figures of time are printed and hold nothing: they are those of a shared machine."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.run", "--short"),
        cwd=ROOT,
        env={**unmeasured(os.environ), "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = (said.decode() for said in await process.communicate())
    print(out)
    process._transport.close()  # type: ignore[attr-defined]  # asyncio leaves the pipes to the garbage collector
    assert process.returncode == 0, err
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
