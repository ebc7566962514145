"""A hundred thousand calls at once: what one costs while it waits, and that nothing is left of
those that are cancelled.
"""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc

import pytest

from sinch_conv_async import CallTimeoutError, SessionManager
from sinch_conv_async.sandbox import Sandbox
from tests.servers import client_of, stats_of

ALL = 100_000
MEASURED = 20_000  # tracemalloc makes each slow; benchmarks/waiting.py has it look at all
MOST_BYTES = 4 * 1024


@pytest.fixture
def no_collection():
    """It would look at a hundred thousand calls again and again: time, and nothing else."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
async def sandbox():
    async with Sandbox(auto_create=True, keep_requests=0) as sandbox:
        yield sandbox


def counters(client):
    stats = stats_of(client)
    return stats.in_flight, stats.waiting


async def gathered(client, number):
    messages = await asyncio.gather(
        *(client.update_message_metadata(f"m{n}", "x") for n in range(number))
    )
    assert [message.id for message in messages] == [f"m{n}" for n in range(number)]


async def test_of_100_000_calls_each_waits_in_4_kib_and_half_of_them_are_cancelled(
    sandbox, monkeypatch, no_collection
):
    """At random, while waiting and in flight: every counter is at zero afterwards, and the next
    1,000 succeed.
    """
    slots = 100
    async with (
        SessionManager(max_connections=slots) as manager,
        client_of(sandbox, session_manager=manager, rate_limit=None) as client,
    ):
        await client.authenticate()
        ids = [f"m{number}" for number in range(ALL)]
        loop = asyncio.get_running_loop()
        timers = 0
        call_at = loop.call_at

        def counted(*args, **kwargs):
            nonlocal timers
            timers += 1
            return call_at(*args, **kwargs)

        sandbox.hold()
        monkeypatch.setattr(loop, "call_at", counted)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        calls = [
            asyncio.create_task(client.update_message_metadata(name, "x"))
            for name in ids[:MEASURED]
        ]
        await asyncio.sleep(0)
        bytes_a_call = (tracemalloc.get_traced_memory()[0] - before) / MEASURED
        tracemalloc.stop()
        calls += [
            asyncio.create_task(client.update_message_metadata(name, "x"))
            for name in ids[MEASURED:]
        ]
        await asyncio.sleep(0)
        assert counters(client) == (slots, ALL - slots)
        monkeypatch.undo()
        print(f"{ALL:,} calls wait: {bytes_a_call:,.0f} bytes each, {timers} timers in all")
        assert bytes_a_call <= MOST_BYTES
        # Some for each exchange under way (connecting, attempt_timeout), none for a call that
        # waits.
        assert timers <= 10 * slots

        await sandbox.wait_for_requests(slots)
        rng = random.Random(11)
        rng.shuffle(calls)
        half, others = calls[: ALL // 2], calls[ALL // 2 :]
        for call in half:
            call.cancel()
        await asyncio.wait(half)
        assert all(call.cancelled() for call in half)
        assert not any(call.done() for call in others)
        in_flight, waiting = counters(client)
        assert in_flight == slots
        assert waiting == ALL // 2 - slots

        # All of them would take a minute: most are cancelled as well, and the rest succeed.
        for call in others[1_000:]:
            call.cancel()
        sandbox.release()
        await asyncio.wait(others)
        assert all(
            not call.cancelled() and call.result().metadata == "x" for call in others[:1_000]
        )
        assert counters(client) == (0, 0)

        await gathered(client, 1_000)
        assert counters(client) == (0, 0)


async def test_the_first_is_answered_before_the_last_has_been_sent(sandbox):
    async with client_of(sandbox, rate_limit=None) as client:
        calls = [
            asyncio.ensure_future(client.update_message_metadata(f"m{n}", "x"))
            for n in range(2_000)
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        sent = stats_of(client).attempts
        print(f"{sent} of {len(calls):,} had been sent when the first was answered")
        assert sent < len(calls)
        await asyncio.gather(*calls)


async def test_the_same_in_a_task_group(sandbox):
    async with client_of(sandbox, rate_limit=None) as client:
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(client.update_message_metadata(f"m{n}", "x"))
                for n in range(1_000)
            ]
        assert all(call.result().metadata == "x" for call in calls)
        assert counters(client) == (0, 0)


async def test_a_task_group_that_fails_cancels_the_others_and_leaves_nothing(sandbox):
    async with client_of(sandbox, rate_limit=None) as client:
        sandbox.hold()

        async def fails() -> None:
            await sandbox.wait_for_requests(256)
            raise LookupError

        async def in_a_group() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(5_000):
                    group.create_task(client.update_message_metadata(f"m{number}", "x"))
                group.create_task(fails())

        with pytest.raises(ExceptionGroup) as caught:
            await in_a_group()
        assert [type(error) for error in caught.value.exceptions] == [LookupError]
        assert counters(client) == (0, 0)
        sandbox.release()
        await gathered(client, 100)


async def test_under_a_timeout_all_end_with_it_and_nothing_is_left(sandbox):
    async with client_of(sandbox, rate_limit=None) as client:
        sandbox.hold()

        async def patiently() -> None:
            async with asyncio.timeout(None) as patience:
                gathering = asyncio.gather(
                    *(client.update_message_metadata(f"m{number}", "x") for number in range(5_000))
                )
                await sandbox.wait_for_requests(256)
                patience.reschedule(asyncio.get_running_loop().time())
                await gathering

        with pytest.raises(TimeoutError):
            await patiently()
        assert counters(client) == (0, 0)
        sandbox.release()
        await gathered(client, 100)


async def test_without_a_timeout_no_clock_runs_while_calls_wait(sandbox):
    """They wait for longer than an attempt may take, and for as long as it takes."""
    async with client_of(sandbox, rate_limit=20, attempt_timeout=0.5) as client:
        await gathered(client, 25)
        assert stats_of(client).attempts == 25


async def test_with_a_timeout_those_whose_turn_cannot_come_fail_at_once(sandbox):
    """The others, whose turn can, succeed; nobody waits for a turn that comes too late."""
    async with client_of(sandbox, rate_limit=10, timeout=1.0) as client:
        await client.authenticate()
        calls = [
            asyncio.create_task(client.update_message_metadata(f"m{n}", "x")) for n in range(1_000)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        refused = [call for call in calls if call.done()]
        print(
            f"{len(refused)} of {len(calls):,} calls failed at once, at 10 a second and a timeout of 1 s"
        )
        # 10 in the second, one at its start, and a quarter of a second's worth that might be made
        # up for.
        assert 1_000 - 15 <= len(refused) <= 1_000 - 10
        for call in refused:
            error = call.exception()
            assert isinstance(error, CallTimeoutError)
            assert (error.sent, error.attempts) == ("no", 0)
        await asyncio.gather(*calls, return_exceptions=True)
        assert counters(client) == (0, 0)
