"""The calls of one client: how they wait, and how both kinds end when the client closes."""

from __future__ import annotations

import asyncio
import gc

import pytest

from sinch_conv_async import ClientStateError
from sinch_conv_async._core.lifetime import Lifetime, closed_error


async def test_closing_ends_every_wait():
    calls = Lifetime()
    loop = asyncio.get_running_loop()
    waits = [asyncio.create_task(calls.wait(loop.create_future())) for _ in range(3)]
    waits.append(asyncio.create_task(calls.sleep(3600)))
    await asyncio.sleep(0)
    calls.fail_waiting()
    for wait in waits:
        with pytest.raises(ClientStateError):
            await wait
    assert not calls.waiting


async def test_a_wait_that_is_over_is_not_failed():
    calls = Lifetime()
    future = asyncio.get_running_loop().create_future()
    wait = asyncio.create_task(calls.wait(future))
    await asyncio.sleep(0)
    future.set_result(None)
    calls.fail_waiting()
    await wait


async def test_no_wait_begins_once_closed():
    calls = Lifetime()
    calls.fail_waiting()
    with pytest.raises(ClientStateError):
        await calls.wait(asyncio.get_running_loop().create_future())
    with pytest.raises(ClientStateError):
        await calls.sleep(3600)
    with pytest.raises(ClientStateError):
        calls.begin()


async def test_a_sleep_ends_by_itself():
    calls = Lifetime()
    await calls.sleep(0)
    assert not calls.waiting


async def test_cancelling_a_wait_cancels_its_future():
    calls = Lifetime()
    future = asyncio.get_running_loop().create_future()
    wait = asyncio.create_task(calls.wait(future))
    await asyncio.sleep(0)
    wait.cancel()
    await asyncio.wait([wait])
    assert future.cancelled()
    assert not calls.waiting


async def test_cancelled_in_the_tick_of_closing_nothing_is_reported(caplog):
    calls = Lifetime()
    wait = asyncio.create_task(calls.wait(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    calls.fail_waiting()
    wait.cancel()
    await asyncio.wait([wait])
    assert wait.cancelled()
    del wait
    gc.collect()
    assert caplog.records == []


async def test_a_timer_that_fires_after_the_wait_was_failed_changes_nothing():
    calls = Lifetime()
    sleep = asyncio.create_task(calls.sleep(0))
    await asyncio.sleep(0)
    calls.fail_waiting()
    with pytest.raises(ClientStateError):
        await sleep


async def test_drained_returns_when_the_last_call_has_left():
    calls = Lifetime()
    await calls.drained()
    calls.begin()
    calls.begin()
    waits = [asyncio.create_task(calls.drained()) for _ in range(2)]
    await asyncio.sleep(0)
    calls.end()
    await asyncio.sleep(0)
    assert not any(wait.done() for wait in waits)
    calls.end()
    await asyncio.gather(*waits)


async def test_cancelling_one_who_waits_for_the_end_leaves_the_others_waiting():
    calls = Lifetime()
    calls.begin()
    first, second = (asyncio.create_task(calls.drained()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    calls.end()
    await second


def test_on_another_loop_nothing_is_under_way_and_what_is_closed_stays_closed():
    calls = Lifetime()
    calls.begin()
    assert calls.on_another_loop().running == 0
    assert not calls.on_another_loop().closed
    calls.fail_waiting()
    assert calls.on_another_loop().closed


def test_each_call_gets_an_error_of_its_own():
    assert closed_error() is not closed_error()
