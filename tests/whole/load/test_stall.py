"""What is counted is what is written, when it is written: a stalled event loop catches up within
the limit.
"""

from __future__ import annotations

import asyncio
import time

from sinch_conv_async.sandbox import Sandbox
from tests.servers import client_of

LIMIT = 400
WINDOW = 0.85  # a second, less what the way to the server and its own event loop may take off it


def most_in(times: list[float], window: float) -> int:
    most = first = 0
    for last, at in enumerate(times):
        while times[first] + window <= at:
            first += 1
        most = max(most, last - first + 1)
    return most


async def test_after_a_stall_of_the_event_loop_no_second_holds_more_requests_than_the_limit():
    # In a thread of its own, the sandbox goes on while the client's event loop stands still.
    with Sandbox(auto_create=True, latency=0.05) as sandbox:
        async with client_of(sandbox, rate_limit=LIMIT) as client:
            updates = ((f"m{number}", "x") for number in range(4 * LIMIT))
            async with client.update_many(updates) as outcomes:
                done = 0
                async for outcome in outcomes:
                    assert outcome.ok
                    done += 1
                    if done == LIMIT:
                        time.sleep(0.6)  # the stall
        times = sorted(request.time for request in sandbox.requests)
    assert len(times) == 4 * LIMIT
    assert most_in(times, WINDOW) <= LIMIT


async def test_a_burst_of_new_connections_is_counted_when_it_is_written():
    with Sandbox(auto_create=True, latency=0.2) as sandbox:
        async with client_of(sandbox, rate_limit=LIMIT) as client:
            await asyncio.gather(
                *(client.update_message_metadata(f"m{number}", "x") for number in range(3 * LIMIT))
            )
        times = sorted(request.time for request in sandbox.requests)
    assert most_in(times, WINDOW) <= LIMIT
