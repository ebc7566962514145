"""What the client's own machine does to it: a wall clock that jumps, and no file
descriptors left.
"""

from __future__ import annotations

import asyncio
import subprocess
import sysconfig
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.whole.faults import naive
from tests.whole.faults.caller import caller
from tests.whole.faults.matrix import Side, judge, judge_bulk, meanwhile
from tests.whole.faults.programs import Backend, Nginx, api, backend, nginx

LIBRARY = "libfaketimeMT.so.1"


def libfaketime() -> Path:
    """Where Debian has put it: below the directory of the machine's architecture."""
    found = sorted(Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"))
    assert found, (
        f"{LIBRARY} is not where the package faketime puts it ({sysconfig.get_platform()})"
    )
    return found[0]


JUMPS = {
    "wall clock jumps an hour back": ["-3600"],
    "wall clock jumps an hour ahead, then back": ["+3600", "+0"],
}


@pytest.mark.needs_program("faketime")
@pytest.mark.parametrize("fault", JUMPS)
async def test_a_wall_clock_that_jumps_an_hour_costs_no_call(table, tmp_path, fault):
    """The monotonic clock is left alone. Tokens live for a second here; the naive side keeps them
    by the wall clock.
    """
    environment = {
        "LD_PRELOAD": str(libfaketime()),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }

    async def leap(sandbox: Backend) -> float:
        while not await asyncio.to_thread(sandbox.requests):
            await asyncio.sleep(0.02)
        for jump in JUMPS[fault]:
            await asyncio.sleep(0.6)
            (tmp_path / str(sandbox.port)).write_text(f"{jump}\n")
        return time.monotonic()

    async def row(how: str) -> tuple[Side, float, Counter[str], int]:
        with backend(token_lifetime=1.0, token_rate=None) as sandbox:
            offset = tmp_path / str(sandbox.port)
            offset.write_text("+0\n")
            clock = {**environment, "FAKETIME_TIMESTAMP_FILE": str(offset)}
            async with caller(
                how, sandbox.options, calls=800, family="CLOCK", environment=clock, rate=250
            ) as process:
                side, leapt = await meanwhile(process.side(), leap(sandbox))
            assert side.began < leapt < side.began + side.seconds, (
                "the clock did not jump while calls were made"
            )
            refused = sum(request.status == 401 for request in sandbox.requests())
            return side, leapt, sandbox.applied(), refused

    rows = ("bulk", "single", "cached") if naive.RUN else ("bulk", "single")
    ours = dict(zip(rows, await asyncio.gather(*map(row, rows)), strict=True))
    bitten = None
    if naive.RUN:
        plain, _, done, _ = ours.pop("cached")
        bitten = plain.failures(done)
        assert bitten
    for how, (side, leapt, applied, refused) in ours.items():
        judge_bulk(side, applied, exempt=refused)
        table.add(fault, how, side, naive=bitten, recovery=side.recovered(leapt))


@pytest.mark.needs_program("nginx", "prlimit")
async def test_a_process_that_is_out_of_descriptors_loses_nothing(table):
    """prlimit takes all but a few from the process for a while, then gives them back."""

    def limit(pid: int, number: int) -> None:
        subprocess.run(["prlimit", f"--pid={pid}", f"--nofile={number}:4096"], check=True)

    async def starve(server: Nginx, family: str, pid: int) -> float:
        while not [message_id for message_id in server.applied() if family in message_id]:
            await asyncio.sleep(0.02)
        limit(pid, 4)  # fewer than it has: they stay, and there is not one more
        await asyncio.sleep(1)
        limit(pid, 1024)
        return time.monotonic()

    async def row(server: Nginx, how: str, family: str) -> tuple[Side, float]:
        async with caller(
            how,
            server.options,
            calls=600,
            family=family,
            rate=300,
            before=["prlimit", "--nofile=1024:4096"],
        ) as process:
            return await meanwhile(process.side(), starve(server, family, process.pid))

    # A connection serves for one call, so that each needs a descriptor of its own.
    with nginx(api("keepalive_timeout 0;")) as server:
        rows = ("bulk", "single", "naive") if naive.RUN else ("bulk", "single")
        ended = await asyncio.gather(*(row(server, how, f"FD{how.upper()}") for how in rows))
        sides = dict(zip(rows, ended, strict=True))
        applied = server.applied()
    bitten = None
    if naive.RUN:
        plain, _ = sides.pop("naive")
        bitten = plain.failures(applied)
        assert bitten
    for how, (side, restored) in sides.items():
        (judge_bulk if how == "bulk" else judge)(side, applied)
        recovery = side.recovered(restored)
        table.add("out of file descriptors for 1 s", how, side, naive=bitten, recovery=recovery)
