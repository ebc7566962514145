"""haproxy before the service: no backend, half of the backends broken, a slow one, one that never
answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.whole.faults import naive
from tests.whole.faults.matrix import bulk, judge, judge_bulk, meanwhile, single, updates
from tests.whole.faults.programs import Haproxy, backend, haproxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.needs_program("haproxy")


@contextlib.asynccontextmanager
async def mute() -> AsyncIterator[int]:
    """A server that takes whatever comes and never says a word."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


@pytest.mark.parametrize("seconds", [3, pytest.param(30, marks=pytest.mark.full)])
async def test_an_outage_of_all_and_then_of_half_of_the_backends_loses_nothing(table, seconds):
    rate = 200
    calls = updates(rate * (seconds + 4), family="OUTAGE")

    async def outage(entry: Haproxy) -> float:
        await asyncio.sleep(0.5)
        entry.use()
        await asyncio.sleep(seconds)
        entry.use("one", "refusing")
        await asyncio.sleep(2)
        entry.use("one", "two")
        return time.monotonic() - 2  # from when half of them served

    with backend(latency=0.005) as sandbox, haproxy(one=sandbox.port, two=sandbox.port) as entry:
        options = {**sandbox.options, "conversation_origin": entry.origin}
        fault = f"503 for {seconds} s from all, then 2 s from half"
        entry.use("one", "two")

        bitten = None
        if naive.RUN:
            plain, _ = await meanwhile(
                naive.loop(options, calls, rate=rate, patience=90), outage(entry)
            )
            bitten = plain.failures(sandbox.applied())
            assert bitten
            sandbox.forget()

        requests = entry.requests()
        job, restored = await meanwhile(bulk(options, calls, rate=rate), outage(entry))
        judge_bulk(job, sandbox.applied())
        assert entry.requests() - requests == job.attempts
        table.add(fault, "bulk", job, naive=bitten, recovery=job.recovered(restored))

        sandbox.forget()
        requests = entry.requests()
        ours, restored = await meanwhile(
            single(options, calls, rate=rate, concurrency=5000, patience=90), outage(entry)
        )
        judge(ours, sandbox.applied())
        assert set(ours.errors) <= {"ServerError"}
        assert entry.requests() - requests == ours.attempts
        table.add(fault, "single", ours, naive=bitten, recovery=ours.recovered(restored))


@pytest.mark.parametrize("what", [pytest.param("slow", marks=pytest.mark.full), "mute"])
async def test_a_backend_that_is_slow_or_never_answers_costs_a_job_nothing(table, what):
    calls = updates(400, family="SLOW")

    async def sick(entry: Haproxy) -> float:
        await asyncio.sleep(0.5)
        entry.use("one", what)
        await asyncio.sleep(1.5)
        entry.use("one")
        return time.monotonic()

    async with mute() as muted:
        with backend(latency=0.005) as sandbox, backend(latency=2.0) as slow:  # noqa: SIM117  # haproxy wants to know their ports
            with haproxy(one=sandbox.port, slow=slow.port, mute=muted) as entry:
                # One key opens both sandboxes, but each knows only its own tokens.
                options = {**sandbox.options, "conversation_origin": entry.origin, "auth": "basic"}
                ours_options = {**options, "attempt_timeout": 0.5}
                fault = {
                    "slow": "every other backend takes 2 s",
                    "mute": "every other backend never answers",
                }[what]
                entry.use("one")

                def applied():
                    return sandbox.applied() + slow.applied()

                bitten = None
                if naive.RUN:
                    session = (
                        {"timeout": aiohttp.ClientTimeout(total=0.5)} if what == "slow" else None
                    )
                    run = naive.loop(
                        options, calls, rate=150, patience=4, concurrency=500, session=session
                    )
                    plain, _ = await meanwhile(run, sick(entry))
                    bitten = plain.failures(applied())
                    assert bitten

                for how in ("bulk", "single"):
                    sandbox.forget()
                    slow.forget()
                    if how == "bulk":
                        run = bulk(ours_options, calls, rate=150)
                    else:
                        run = single(ours_options, calls, rate=150, concurrency=500)
                    side, restored = await meanwhile(run, sick(entry))
                    if how == "bulk":
                        judge_bulk(side, applied())
                    else:
                        judge(side, applied())
                        assert set(side.errors) <= {"CallTimeoutError"}
                    table.add(fault, how, side, naive=bitten, recovery=side.recovered(restored))
