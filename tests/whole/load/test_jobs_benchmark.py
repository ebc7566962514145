"""The benchmark of jobs, with few records: it works, and what was handed in is there."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.commands import unmeasured

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.mark.needs_program("initdb")
async def test_handing_in_is_measured():
    """Figures of time are printed and hold nothing: they are those of a shared machine."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.jobs", "submit", "--records", "2000"),
        cwd=ROOT,
        env={**unmeasured(os.environ), "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = (said.decode() for said in await process.communicate())
    process._transport.close()  # type: ignore[attr-defined]  # asyncio leaves the pipes to the garbage collector
    assert process.returncode == 0, err
    figures = {line[:60].strip(): line[60:].split()[0] for line in out.splitlines()[1:]}
    assert float(figures["size of the records in the database, MiB"]) > 0.2
    assert {"records a second", "progress, median, ms"} <= figures.keys()
