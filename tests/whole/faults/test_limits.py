"""nginx enforces 800 requests a second with ``limit_req``, and says when to come back, or does not,
or talks nonsense.
"""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import pytest

from tests.whole.faults import naive
from tests.whole.faults.matrix import bulk, judge, judge_bulk, meanwhile, single, updates
from tests.whole.faults.programs import TOKEN_ANSWER, UPDATED, api, nginx

pytestmark = pytest.mark.needs_program("nginx")

# What Retry-After says, and how the table names it. A date is one that will have passed when the
# run is half way.
SAYINGS = {
    "none": "429 above 800/s, no Retry-After",
    "seconds": "429 above 800/s, Retry-After: 1",
    "date": "429 above 800/s, Retry-After a date",
    "garbage": "429 above 800/s, Retry-After: soon",
}


def limited(saying: str) -> str:
    value = {
        "none": None,
        "seconds": "1",
        "date": formatdate(time.time() + 2, usegmt=True),
        "garbage": "soon",
        "huge": "86400",
    }[saying]
    header = "" if value is None else f'add_header Retry-After "{value}" always;'
    return """
    limit_req_zone $server_port zone=project:1m rate=800r/s;
    limit_req_status 429;
    """ + api(
        f"""location @limited {{ {header} return 429 '{{"error":{{"code":429,"status":"RESOURCE_EXHAUSTED"}}}}'; }}""",
        # `return` would come before the limit is looked at; try_files comes after it.
        "limit_req zone=project burst=40 nodelay; error_page 429 = @limited; try_files /none /updated/$1;",
    ).replace(
        "location = /oauth2",
        f"location ~ ^/updated/(.+)$ {{ internal; return 200 '{UPDATED}'; }} location = /oauth2",
    )


async def plainly(configuration: str, calls: list[tuple[str, str]]) -> int | None:
    """How many calls fail that are made naively."""
    if not naive.RUN:
        return None
    with nginx(configuration) as server:
        plain = await naive.loop(server.options, calls)
        bitten = plain.failures(server.applied())
    assert bitten
    return bitten


@pytest.mark.parametrize("saying", SAYINGS)
async def test_a_limit_that_the_client_does_not_know_costs_no_call(table, saying):
    """The client thinks that it may send 2,000 a second, and comes down to the server's 800."""
    calls = updates(1200, family="LIMIT")
    bitten = await plainly(limited(saying), calls)

    with nginx(limited(saying)) as server:
        job = await bulk({**server.options, "rate_limit": 2000}, calls)
        judge_bulk(job, server.applied())
        assert server.attempts() == job.attempts
        table.add(SAYINGS[saying], "bulk", job, naive=bitten)

    if saying in ("none", "seconds"):
        with nginx(limited(saying)) as server:
            ours = await single({**server.options, "rate_limit": 2000}, calls, concurrency=200)
            judge(ours, server.applied())
            table.add(SAYINGS[saying], "single", ours, naive=bitten)


async def test_the_default_pace_is_the_limit_and_meets_it_hardly_ever(table):
    calls = updates(1600, family="PACE")
    bitten = await plainly(limited("none"), calls)
    with nginx(limited("none")) as server:
        job = await bulk(server.options, calls)
        judge_bulk(job, server.applied())
        table.add("800/s enforced, the client at its default pace", "bulk", job, naive=bitten)


async def test_a_server_that_sends_everybody_away_for_a_day_fails_single_calls_and_holds_a_job(
    table,
):
    calls = updates(400, family="HUGE")
    bitten = await plainly(limited("huge"), calls)

    with nginx(limited("huge")) as server:
        ours = await single({**server.options, "rate_limit": None}, calls, concurrency=200)
        judge(ours, server.applied())
        assert set(ours.errors) == {"RateLimitedError"}
        table.add("429, Retry-After: 86400", "single", ours, naive=bitten)

    gone = """location ~ ^/v1/ { add_header Retry-After 86400 always; return 429; }"""
    with nginx(
        f"server {{ listen 127.0.0.1:@port; {gone} location = /oauth2/token {{ return 200 '{TOKEN_ANSWER}'; }} }}"
    ) as server:

        async def relent() -> float:
            await asyncio.sleep(2)
            server.configure(api())
            server.reload()
            return time.monotonic()

        job, restored = await meanwhile(bulk(server.options, calls, max_outage=4), relent())
        judge_bulk(job, server.applied())
        # It comes back when it was asked to, or with its last hope: at the end of max_outage.
        table.add(
            "429, Retry-After: 86400, taken back after 2 s; max_outage 4 s",
            "bulk",
            job,
            naive=len(calls) if naive.RUN else None,
            recovery=job.recovered(restored),
        )
