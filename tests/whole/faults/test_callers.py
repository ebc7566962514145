"""What the program around the client does to it: cancels, sets short deadlines, forks, and comes
from another loop or thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import random
import threading
import time
import warnings

import aiohttp
import pytest

from sinch_conv_async import CallTimeoutError, ClientStateError, ConversationClient, SessionManager
from tests.whole.faults import naive
from tests.whole.faults.matrix import Ended, Side, count, judge, spread, updates
from tests.whole.faults.programs import api, backend, nginx

pytestmark = pytest.mark.needs_program("nginx")


@pytest.mark.parametrize("number", [10_000, pytest.param(100_000, marks=pytest.mark.full)])
async def test_cancellation_and_short_deadlines_leave_nothing_behind(table, number):
    """A third of the calls is cancelled after 0 to 20 ms, a third has so much time, a third is left
    alone; all of them at random, 200 at a time.
    """
    calls = updates(number, family="CANCEL")
    if naive.RUN:
        await naive_deadlines(calls[:2000])

    rng = random.Random(number)
    with nginx(api()) as server:
        async with SessionManager(max_connections=64) as manager:
            async with ConversationClient(
                **server.options, rate_limit=None, session_manager=manager
            ) as client:
                side = Side(len(calls), time.monotonic())
                cancelled = 0
                places = asyncio.Semaphore(200)

                async def one(message_id: str, metadata: str) -> None:
                    nonlocal cancelled
                    async with places:
                        fate, after = (
                            rng.choice(["cancelled", "hurried", "left alone"]),
                            rng.uniform(0.0001, 0.02),
                        )
                        timeout = after if fate == "hurried" else None
                        call = asyncio.ensure_future(
                            client.update_message_metadata(message_id, metadata, timeout=timeout)
                        )
                        if fate == "cancelled":
                            asyncio.get_running_loop().call_later(after, call.cancel)
                        try:
                            message = await call
                        except asyncio.CancelledError:
                            assert fate == "cancelled"
                            cancelled += 1
                            side.calls -= 1
                        except (
                            Exception
                        ) as error:  # whatever it is, it is what the caller would have got
                            assert fate == "hurried", error  # one of three fates, told apart
                            side.ended.append(
                                Ended(message_id, metadata, time.monotonic(), error=error)
                            )
                        else:
                            side.ended.append(
                                Ended(
                                    message_id,
                                    metadata,
                                    time.monotonic(),
                                    answer=(message.id, message.metadata),
                                )
                            )

                await asyncio.gather(*(one(*call) for call in calls))
                side.seconds = time.monotonic() - side.began
                assert set(side.errors) == {"CallTimeoutError"}
                assert cancelled > number / 20

                # Every slot is still there: as many calls as there are slots are under way at once.
                assert manager.stats().in_flight == manager.stats().waiting == 0
                with backend(latency=0.3) as sandbox:
                    async with ConversationClient(
                        **sandbox.options, session_manager=manager
                    ) as other:
                        held = [
                            asyncio.ensure_future(
                                other.update_message_metadata(message_id, metadata)
                            )
                            for message_id, metadata in updates(64, family="SLOT")
                        ]
                        while manager.stats().in_flight < 64 and not all(
                            call.done() for call in held
                        ):
                            await asyncio.sleep(0)
                        assert manager.stats().in_flight == 64
                        await asyncio.gather(*held)
            count(manager, side)
        # An attempt that was cancelled is no retry.
        judge(side, server.applied(), exempt=cancelled + 64 + side.errors["CallTimeoutError"])
        told = sum(
            end.error.sent == "maybe"
            for end in side.ended
            if isinstance(end.error, CallTimeoutError)
        )
        table.add(
            "cancelled or hurried at random",
            "single",
            side,
            calls=number,
            naive="cannot tell what was sent",
            ours=f"{cancelled:,} cancelled, {side.errors['CallTimeoutError']:,} CallTimeoutError ({told:,} of them sent: maybe)",
        )


async def naive_deadlines(calls) -> None:
    """A bare TimeoutError, whether the update was applied or had not been sent."""
    with nginx(api()) as server:
        rng = random.Random(3)
        async with aiohttp.ClientSession() as http:
            token = await naive.fetch_token(http, server.options)
            gone: set[str] = set()

            async def one(message_id: str, metadata: str) -> None:
                try:
                    async with asyncio.timeout(rng.uniform(0.0001, 0.02)):
                        await naive.update(http, server.options, token, message_id, metadata)
                except TimeoutError:
                    gone.add(message_id)

            for start in range(0, len(calls), 200):
                await asyncio.gather(*(one(*call) for call in calls[start : start + 200]))
        applied = set(server.applied())
        assert gone & applied, "no call timed out after it had been applied"
        assert gone - applied, "no call timed out before it had been applied"


def in_a_child(work) -> object:
    """What ``work`` says in a forked process, which ends without tidying up what it shares with
    this one.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # forking beside threads is what a fault is
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, pickle.dumps(work()))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"
    return pickle.loads(said)


def on_a_new_loop(work) -> str:
    """The name of what a coroutine raised on another event loop than the one that was running here,
    or ``fine``.
    """
    asyncio.events._set_running_loop(
        None
    )  # in a forked child, the parent's loop is marked as running

    async def within() -> None:
        async with asyncio.timeout(3):
            await work()

    try:
        asyncio.run(within())
    except Exception as error:  # whatever it is, it is what the caller would have got
        return type(error).__name__
    return "fine"


async def test_a_fork_in_the_middle_of_traffic_is_refused_and_harms_nobody(table):
    """The child tries twenty calls while the parent makes a thousand. The naive pair shares its
    sockets, and they read each other's answers.
    """
    with backend(latency=0.02) as sandbox:
        calls = updates(1000, family="PARENT")
        stolen = updates(20, family="CHILD")

        bitten = None
        if naive.RUN:
            plain = await naive_fork(sandbox.options, calls, stolen)
            bitten = plain.failures(sandbox.applied())
            assert bitten
            sandbox.forget()
        async with SessionManager() as manager:
            async with ConversationClient(**sandbox.options, session_manager=manager) as client:
                side = Side(len(calls), time.monotonic())

                async def ours(message_id: str, metadata: str) -> None:
                    try:
                        message = await client.update_message_metadata(message_id, metadata)
                    except (
                        Exception
                    ) as error:  # whatever it is, it is what the caller would have got
                        side.ended.append(
                            Ended(message_id, metadata, time.monotonic(), error=error)
                        )
                    else:
                        side.ended.append(
                            Ended(
                                message_id,
                                metadata,
                                time.monotonic(),
                                answer=(message.id, message.metadata),
                            )
                        )

                async def all_refused() -> None:
                    for call in stolen:
                        with contextlib.suppress(ClientStateError):
                            await client.update_message_metadata(*call)
                            raise AssertionError("a call of the child's was made")

                traffic = asyncio.ensure_future(asyncio.gather(*(ours(*call) for call in calls)))
                while manager.stats().in_flight < 5:
                    await asyncio.sleep(0.001)
                assert in_a_child(lambda: on_a_new_loop(all_refused)) == "fine"
                await traffic
                side.seconds = time.monotonic() - side.began
            count(manager, side)
        applied = sandbox.applied()
        judge(side, applied, exempt=0)
        assert not side.errors
        assert not [message_id for message_id in applied if "CHILD" in message_id]
        table.add(
            "a fork in the middle of traffic, the child calls too", "single", side, naive=bitten
        )


async def naive_fork(options, calls, stolen) -> Side:
    async with aiohttp.ClientSession() as http:
        token = await naive.fetch_token(http, options)

        async def one(message_id: str, metadata: str) -> tuple[str | None, str | None]:
            return await naive.update(http, options, token, message_id, metadata)

        async def child_calls() -> None:
            for call in stolen:
                await one(*call)

        # The pool is full of idle connections when the fork comes.
        await asyncio.gather(*(one(*call) for call in updates(50, family="WARM")))
        in_a_child(lambda: on_a_new_loop(child_calls))
        side = Side(len(calls), time.monotonic())
        return await spread(calls, one, side, rate=None, concurrency=50, patience=2)


async def test_a_second_loop_or_thread_in_the_middle_of_traffic_is_refused_and_harms_nobody(table):
    with backend(latency=0.02) as sandbox:
        calls, strangers = updates(1000, family="OWNER"), updates(50, family="STRANGER")

        def from_a_thread(work) -> list[str]:
            said: list[str] = []

            def run() -> None:
                said.extend(on_a_new_loop(lambda call=call: work(*call)) for call in strangers)

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            return said

        told = None
        if naive.RUN:
            async with aiohttp.ClientSession() as http:
                token = await naive.fetch_token(http, sandbox.options)

                async def one(*call: str) -> object:
                    return await naive.update(http, sandbox.options, token, *call)

                await asyncio.gather(*(one(*call) for call in calls[:100]))
                naively = await asyncio.to_thread(from_a_thread, one)
                bitten = sum(word != "fine" for word in naively)
                assert bitten
                told = f"{bitten} of {len(strangers)}"
            gc.collect()
            sandbox.forget()
        async with SessionManager() as manager:
            async with ConversationClient(**sandbox.options, session_manager=manager) as client:
                side = Side(len(calls), time.monotonic())

                async def ours(message_id: str, metadata: str) -> None:
                    message = await client.update_message_metadata(message_id, metadata)
                    side.ended.append(
                        Ended(
                            message_id,
                            metadata,
                            time.monotonic(),
                            answer=(message.id, message.metadata),
                        )
                    )

                traffic = asyncio.ensure_future(asyncio.gather(*(ours(*call) for call in calls)))
                while manager.stats().in_flight < 5:
                    await asyncio.sleep(0.001)
                said = await asyncio.to_thread(from_a_thread, client.update_message_metadata)
                assert said == ["ClientStateError"] * len(strangers)
                await traffic
                side.seconds = time.monotonic() - side.began
            count(manager, side)
        applied = sandbox.applied()
        judge(side, applied)
        assert not [message_id for message_id in applied if "STRANGER" in message_id]
        table.add(
            "calls from another thread's loop in the middle of traffic",
            "single",
            side,
            naive=told,
            ours=f"0 ({len(strangers)} strangers refused, ClientStateError)",
        )
