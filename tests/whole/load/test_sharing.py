"""Processes that know nothing of each other share a limit: the law over sockets, in a short form.

The figures that the project promises (three processes, 800 a second, a minute) are for a quiet
machine: ``nox -s load``.
"""

from __future__ import annotations

import asyncio

import pytest

from sinch_conv_async import SessionManager
from sinch_conv_async.sandbox import Sandbox
from tests.servers import client_of

pytestmark = pytest.mark.alone  # who is slowed down gets less of the limit

LIMIT = 60
UPDATES = 300


async def test_three_who_know_nothing_of_each_other_share_one_limit_and_no_call_fails():
    async with Sandbox(auto_create=True, rate_limit=LIMIT) as sandbox:
        left = iter(range(UPDATES))
        counts = [0, 0, 0]

        async def worker(number: int) -> None:
            # A manager each, as though in a process each: neither pace nor token is shared.
            async with client_of(sandbox, rate_limit=LIMIT) as client:
                updates = ((f"m{n}", str(number)) for n in left)
                async with client.update_many(updates, concurrency=30) as outcomes:
                    async for outcome in outcomes:
                        assert outcome.ok, outcome.error
                        counts[number] += 1

        await asyncio.gather(*map(worker, range(3)))
        refused = sum(request.status == 429 for request in sandbox.requests)
        print(
            f"{counts} of {UPDATES} updates, {refused} of {len(sandbox.requests)} requests answered 429"
        )
        assert sum(counts) == UPDATES == sandbox.updates_applied
        assert len(sandbox.token_requests) == 3
        assert min(counts) >= UPDATES / 3 / 4


async def test_429s_that_come_whatever_the_pace_fail_no_call_and_leave_the_pace_where_it_is():
    limit, updates = 200, 1600
    async with (
        Sandbox(auto_create=True) as sandbox,
        SessionManager() as manager,
        client_of(sandbox, rate_limit=limit, session_manager=manager) as client,
    ):
        sandbox.at_random(0.02, lambda: sandbox.fail_next(429), seed=1)
        async with client.update_many((f"m{n}", "x") for n in range(updates)) as outcomes:
            failed = [outcome async for outcome in outcomes if not outcome.ok]
        refused = sum(request.status == 429 for request in sandbox.requests)
        [project] = manager.stats().projects
    assert not failed
    assert refused > 0
    assert sandbox.updates_applied == updates
    assert len(sandbox.requests) == updates + refused
    assert project.pace >= 0.8 * limit
