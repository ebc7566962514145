"""Processes that know nothing of each other share a limit: the law over sockets, in a short form.

The figures that the project promises (three processes, 800 a second, a minute) are for a quiet machine: ``nox -s load``.
"""

from __future__ import annotations

import asyncio

import pytest

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
        print(f"{counts} of {UPDATES} updates, {refused} of {len(sandbox.requests)} requests answered 429")
        assert sum(counts) == UPDATES == sandbox.updates_applied
        assert len(sandbox.token_requests) == 3
        assert min(counts) >= UPDATES / 3 / 4
