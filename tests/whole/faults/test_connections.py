"""nginx closes connections under the client's feet: idle ones all the time, all of them on a
reload, and by dying.
"""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.whole.faults import naive
from tests.whole.faults.matrix import bulk, judge, judge_bulk, meanwhile, single, updates
from tests.whole.faults.programs import Nginx, api, backend, nginx

pytestmark = pytest.mark.needs_program("nginx")


async def test_keep_alive_connections_that_the_server_closes_cost_no_call(table):
    """A keep-alive timeout of 50 ms and callers that come back after just that time."""
    calls = updates(5000 if naive.RUN else 1500, family="KEEPALIVE")
    rng = random.Random(1)
    short = api("keepalive_timeout 50ms;")

    def pause():
        return rng.uniform(0.048, 0.053)

    bitten = None
    if naive.RUN:
        # Whether a call meets the closing of its connection is chance: some 20 of 5,000 do, on one
        # machine.
        for _ in range(5):
            with nginx(short) as server:
                plain = await naive.loop(server.options, calls, concurrency=100, pause=pause)
                bitten = plain.failures(server.applied())
            if bitten:
                break
        assert bitten

    with nginx(short) as server:
        ours = await single(
            {**server.options, "rate_limit": None}, calls, concurrency=100, pause=pause
        )
        applied = server.applied()
        judge(ours, applied, exempt=len(calls))
        assert not ours.errors
        # What was sent on a connection that was already closed never became a request.
        assert server.attempts() == len(applied) == len(calls)
        table.add("idle connections closed after 50 ms", "single", ours, naive=bitten)


def proxied(port: int, first: str = "") -> str:
    """nginx in front of a sandbox: the one that is killed is not the one that keeps count.

    ``first``: directives of nginx that may answer instead of the sandbox.
    """
    upstream = f"upstream sandbox {{ server 127.0.0.1:{port}; keepalive 64; }}"
    pass_on = 'proxy_pass http://sandbox; proxy_http_version 1.1; proxy_set_header Connection "";'
    return f"{upstream} server {{ listen 127.0.0.1:@port backlog=1024; location / {{ {first} {pass_on} }} }}"


RELOADS = 12
LATENCY = 0.02  # longer than an old worker is given, so that every reload cuts off some calls


async def disturb(server: Nginx, what: str) -> float:
    await asyncio.sleep(0.5)
    if what == "reload":
        for _ in range(RELOADS):
            server.reload()
            await asyncio.sleep(0.1)
    else:
        server.kill()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.start)
    return time.monotonic()


@pytest.mark.parametrize("what", ["reload", "kill"])
async def test_a_server_that_is_reloaded_or_killed_and_restarted_costs_a_job_nothing(table, what):
    calls = updates(1200, family="RESTART")
    fault = {
        "reload": "nginx reloaded twelve times, 10 ms for each old worker",
        "kill": "nginx killed, back after 0.5 s",
    }[what]
    hurried = "worker_shutdown_timeout 10ms;"
    with backend(latency=LATENCY) as sandbox, nginx(proxied(sandbox.port), main=hurried) as server:
        options = {**sandbox.options, "conversation_origin": server.origin}

        bitten = None
        if naive.RUN:
            plain, _ = await meanwhile(naive.loop(options, calls, rate=600), disturb(server, what))
            bitten = plain.failures(sandbox.applied())
            assert bitten
            sandbox.forget()
        job, restored = await meanwhile(bulk(options, calls, rate=600), disturb(server, what))
        applied = sandbox.applied()
        judge_bulk(job, applied, exempt=RELOADS * 50)
        assert set(applied) == {message_id for message_id, _ in calls}
        assert sandbox.metadata() == dict(calls)
        assert sum(applied.values()) <= job.attempts
        table.add(
            fault,
            "bulk",
            job,
            naive=bitten,
            recovery=job.recovered(restored) if what == "kill" else None,
        )

        sandbox.forget()
        ours, restored = await meanwhile(single(options, calls, rate=600), disturb(server, what))
        judge(ours, sandbox.applied(), exempt=RELOADS * 50)
        table.add(
            fault,
            "single",
            ours,
            naive=bitten,
            recovery=ours.recovered(restored) if what == "kill" else None,
        )
