"""A client that runs for a long time: tokens renewed, loops that come and go, and an end that
leaves nothing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import warnings

import attrs
import pytest

from sinch_conv_async import ClientStateError, SessionManager, TransportError
from sinch_conv_async._core.lifetime import Lifetime
from sinch_conv_async._core.tokens import EndpointPace, TokenSource
from sinch_conv_async._wire.arguments import Credentials
from sinch_conv_async._wire.responses import TokenResponse
from sinch_conv_async.sandbox import Sandbox
from tests.servers import Time, client_of, stats_of

RENEWALS = 10_000
LIFETIME = 3600


async def test_10_000_renewals_cost_one_token_request_each_and_no_call_waits():
    """Steady load: some calls for every minute of a year of tokens."""
    time = Time()
    requests = 0

    async def request(credentials: Credentials) -> TokenResponse:
        nonlocal requests
        requests += 1
        await asyncio.sleep(0)
        return TokenResponse(f"token {requests}", LIFETIME)

    source = TokenSource(
        Credentials("key", "secret"),
        request=request,
        endpoint=EndpointPace(),
        clock=time.clock,
        rng=random.Random(3),
        sleep=time.sleep,
    )
    calls = Lifetime()
    await source.get(calls)
    asked = waited = 0
    while requests <= RENEWALS:
        time.now += LIFETIME / 20
        for _ in range(3):
            asked += 1
            waited += source.current(time.now) is None
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    print(f"{requests - 1:,} renewals, {asked:,} calls, {waited} of them waited")
    assert waited == 0
    assert requests == RENEWALS + 1
    # Between 72 and 88 % of the life, on average 80, and up to the next look at it.
    assert 0.80 <= (time.now - 1000.0) / LIFETIME / RENEWALS <= 0.86
    assert time.slept == []


async def test_renewals_over_the_wire_cost_one_token_request_each_and_no_call_fails(monkeypatch):
    """The same with sockets, and a clock that the sandbox shares: a token's life passes with every
    few calls.
    """
    time = Time()
    async with Sandbox(
        auto_create=True, token_lifetime=LIFETIME, token_rate=None, clock=time.clock
    ) as sandbox:
        manager = SessionManager()
        monkeypatch.setattr("sinch_conv_async._core.binding.clock_of", lambda loop: time.clock)
        async with manager, client_of(sandbox, session_manager=manager, rate_limit=None) as client:
            await client.authenticate()
            renewals = 0
            while renewals < 100:
                time.now += LIFETIME / 10
                before = manager.stats().token_requests
                await asyncio.gather(
                    *(client.update_message_metadata(f"m{n}", "x") for n in range(3))
                )
                if manager.stats().token_requests > before:
                    renewals += 1
                    await sandbox.wait_for_token_requests(1 + renewals)
                    await settled()
            stats = manager.stats()
            print(f"{renewals} renewals, {stats.calls} calls, {stats.attempts} attempts")
            assert stats.token_requests == 1 + renewals
            assert stats.attempts == stats.calls, "no call met a token that had expired"


async def settled() -> None:
    """Until the renewal's answer has been read."""
    while any("token request" in task.get_name() for task in asyncio.all_tasks()):
        await asyncio.sleep(0)


# Owners


async def test_another_thread_is_refused_at_once_and_the_owner_goes_on(sandbox):
    async with client_of(sandbox) as client:
        sandbox.hold()
        call = asyncio.create_task(client.update_message_metadata("m1", "x"))
        await sandbox.wait_for_requests(1)
        refused = []

        def elsewhere() -> None:
            for action in (
                lambda: client.update_message_metadata("m2", "x"),
                client.authenticate,
                client.close,
            ):
                try:
                    asyncio.run(action())
                except ClientStateError as error:
                    refused.append(str(error))

        await asyncio.to_thread(elsewhere)
        await asyncio.get_running_loop().shutdown_default_executor()
        assert len(refused) == 3
        assert all("docs/how-to/synchronous-hosts" in text for text in refused)
        sandbox.release()
        assert (await call).metadata == "x"
        assert len(sandbox.requests) == 1


async def test_a_forked_child_is_refused_at_once_and_the_parent_goes_on(sandbox):
    async with client_of(sandbox) as client:
        await client.update_message_metadata("m1", "x")
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # a fork beside threads that other tests left to the pool
            child = os.fork()
        if not child:
            text = "no error"
            try:
                asyncio.run(client.update_message_metadata("m2", "x"))
            except ClientStateError as error:
                text = str(error)
            except Exception as error:  # the parent is told, whatever it is
                text = repr(error)
            os.write(writing, text.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert "make a new one in the child process" in pipe.read()
        os.waitpid(child, 0)
        await client.update_message_metadata("m3", "x")
        assert len(sandbox.requests) == 2


def test_after_its_event_loop_the_client_serves_the_next_and_keeps_its_token():
    with Sandbox(auto_create=True) as sandbox:
        client = client_of(sandbox)
        for number in range(5):
            asyncio.run(client.update_message_metadata(f"m{number}", "x"))
        assert len(sandbox.token_requests) == 1
        asyncio.run(client.close())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_over_calls_under_way_and_waiting_harms_no_later_one(caplog):
    """They are torn down by the garbage collector, when it comes to it, and counted by nobody any
    more.
    """
    with Sandbox(auto_create=True) as sandbox:
        client = client_of(sandbox, rate_limit=20)
        sandbox.hold()
        loop = asyncio.new_event_loop()

        async def begin() -> list[asyncio.Task[object]]:
            calls = [
                asyncio.create_task(client.update_message_metadata(f"m{n}", "x")) for n in range(30)
            ]
            while stats_of(client).in_flight < 3:
                await asyncio.sleep(0.01)
            return calls

        calls = loop.run_until_complete(begin())
        assert stats_of(client).waiting
        loop.close()

        async def go_on() -> None:
            nonlocal calls
            updates = [
                asyncio.create_task(client.update_message_metadata(f"n{n}", "x")) for n in range(5)
            ]
            await asyncio.sleep(0)
            calls = []
            gc.collect()
            await asyncio.gather(*updates)
            stats = stats_of(client)
            assert (stats.in_flight, stats.waiting) == (0, 0)
            await client.close()

        sandbox.release()
        asyncio.run(go_on())
    caplog.clear()  # asyncio's word on tasks that were destroyed


# The end


async def test_closing_fails_those_who_wait_and_lets_those_under_way_finish(sandbox):
    async with client_of(sandbox, rate_limit=None) as client:
        sandbox.hold()
        calls = [
            asyncio.create_task(client.update_message_metadata(f"m{n}", "x")) for n in range(1_000)
        ]
        await sandbox.wait_for_requests(256)
        sandbox.fail_next(503, times=10)
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = [call for call in calls if call.done()]
        assert len(waiting) == 1_000 - 256
        assert all(isinstance(call.exception(), ClientStateError) for call in waiting)
        sandbox.release()
        await closing
        assert sum(call.done() for call in calls) == 1_000
        assert sum(call.exception() is None for call in calls) == 256
        assert len(sandbox.requests) == 256
        stats = stats_of(client)
        assert (stats.in_flight, stats.waiting) == (0, 0)


async def test_closing_retries_nothing(sandbox):
    async with client_of(sandbox) as client:
        sandbox.drop_next(times=5)
        sandbox.hold()
        call = asyncio.create_task(client.update_message_metadata("m1", "x"))
        await sandbox.wait_for_requests(1)
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        sandbox.release()
        await closing
        with pytest.raises(TransportError):
            await call
        assert len(sandbox.requests) == 1


# What it says of itself


async def test_the_counters_are_a_frozen_snapshot_that_any_thread_may_take(sandbox):
    async with client_of(sandbox, rate_limit=500) as client:
        manager = client._manager
        sandbox.fail_next(503)
        await asyncio.gather(*(client.update_message_metadata(f"m{n}", "x") for n in range(20)))
        taken = await asyncio.to_thread(manager.stats)
        await asyncio.get_running_loop().shutdown_default_executor()
        assert (taken.calls, taken.attempts, taken.retries, taken.token_requests) == (20, 21, 1, 1)
        assert (taken.throttled, taken.in_flight, taken.waiting) == (0, 0, 0)
        assert [(project.project_id, project.pace) for project in taken.projects] == [
            ("sandbox-project", 500)
        ]
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            taken.calls = 0
        line = repr(manager)
        assert "\n" not in line
        for word in (
            "calls 20",
            "attempts 21",
            "retries 1",
            "throttled 0",
            "token requests 1",
            "sandbox-project 500/s",
        ):
            assert word in line
