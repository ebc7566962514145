"""A service's queue of updates: everything that was put gets an outcome, or is named in the end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async import (
    ClientStateError,
    RetryPolicy,
    TokenError,
    UpdateQueue,
)
from sinch_conv_async import update_queue as update_queue_module
from tests.servers import client_of

if TYPE_CHECKING:
    from sinch_conv_async import UpdateOutcome

QUICK = RetryPolicy(base_delay=0.001)


@pytest.fixture
async def client(sandbox):
    async with client_of(sandbox, retry=QUICK, rate_limit=None) as client:
        yield client


async def until(condition) -> None:
    """Lets the loop turn until it is so; the run's own time limit ends one that never is."""
    while not condition():
        await asyncio.sleep(0.001)


def ids(updates) -> list[str]:
    return [update.message_id for update in updates]


async def test_what_is_put_is_sent_in_the_background(client, sandbox):
    done: list[UpdateOutcome] = []
    async with UpdateQueue(client, on_outcome=done.append) as queue:
        queue.put_nowait("m1", "x")
        await until(lambda: not len(queue))
        await queue.put("m2", "y", messages_source="DISPATCH_SOURCE")
        await until(lambda: not len(queue))
    assert [(outcome.ok, outcome.update.message_id) for outcome in done] == [
        (True, "m1"),
        (True, "m2"),
    ]
    assert [request.messages_source for request in sandbox.requests] == [None, "DISPATCH_SOURCE"]


async def test_leaving_finishes_what_is_pending(client, sandbox):
    sandbox.latency = 0.02
    async with UpdateQueue(client, concurrency=10) as queue:
        for number in range(100):
            queue.put_nowait(f"m{number}", "x")
    assert queue.pending == ()
    assert sandbox.updates_applied == 100


async def test_what_was_put_before_the_start_is_sent(client, sandbox):
    queue = UpdateQueue(client)
    queue.put_nowait("m1", "x")
    assert repr(queue) == "<UpdateQueue not started: 1 of 10000 pending>"
    async with queue:
        assert "running" in repr(queue)
    assert sandbox.updates_applied == 1
    assert repr(queue) == "<UpdateQueue stopped: 0 of 10000 pending>"


async def test_a_queue_that_never_started_can_be_stopped(client):
    queue = UpdateQueue(client)
    queue.put_nowait("m1", "x")
    assert ids(await queue.stop()) == ["m1"]


async def test_in_an_outage_stopping_takes_no_longer_than_it_may_and_names_what_was_not_done(
    client, sandbox, caplog
):
    async with UpdateQueue(client) as queue:
        queue.put_nowait("m0", "x")
        await until(lambda: not len(queue))
        await sandbox.close()
        for number in range(1, 11):
            queue.put_nowait(f"m{number}", "x")
        assert ids(await queue.stop(0.2)) == [f"m{number}" for number in range(1, 11)]
        assert ids(await queue.stop()) == [f"m{number}" for number in range(1, 11)]
    assert ids(queue.pending) == [f"m{number}" for number in range(1, 11)]
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert warnings.count("the update queue has stopped with 10 updates not done") == 1


async def test_an_outage_is_waited_out(client, sandbox):
    async with UpdateQueue(client, stop_within=60) as queue:
        await sandbox.close()
        queue.put_nowait("m1", "x")
        queue.put_nowait("m2", "x")
        await asyncio.sleep(0.05)
        await sandbox.start()
    assert queue.pending == ()
    assert sandbox.updates_applied == 2


async def test_stopping_may_be_cancelled_and_leaves_nothing_running(client, sandbox):
    sandbox.hold()
    async with UpdateQueue(client) as queue:
        queue.put_nowait("m1", "x")
        await sandbox.wait_for_requests(1)
        stopping = asyncio.create_task(queue.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait([stopping])
        assert stopping.cancelled()
    assert ids(queue.pending) == ["m1"]
    assert not [task for task in asyncio.all_tasks() if "sinch_conv_async" in task.get_name()]
    sandbox.release()


async def test_a_full_queue_refuses_and_put_waits_for_room(client, sandbox):
    sandbox.hold()
    async with UpdateQueue(client, max_size=2) as queue:
        queue.put_nowait("m1", "x")
        queue.put_nowait("m2", "x")
        with pytest.raises(asyncio.QueueFull):
            queue.put_nowait("m3", "x")
        waiting = [asyncio.create_task(queue.put(f"m{number}", "x")) for number in (3, 4)]
        await asyncio.sleep(0)
        sandbox.release()
        await asyncio.gather(*waiting)
    assert sorted(request.message_id for request in sandbox.requests) == ["m1", "m2", "m3", "m4"]


@pytest.mark.parametrize("ended_by", ["stop", "client"])
async def test_who_waits_for_room_is_told_that_there_will_be_none(client, sandbox, ended_by):
    sandbox.hold()
    async with UpdateQueue(client, max_size=1) as queue:
        queue.put_nowait("m1", "x")
        waiting = asyncio.create_task(queue.put("m2", "x"))
        await sandbox.wait_for_requests(1)
        closing = asyncio.create_task(queue.stop(0) if ended_by == "stop" else client.close())
        await asyncio.sleep(0)
        sandbox.release()
        await closing
        with pytest.raises(ClientStateError, match="has been stopped"):
            await waiting
        with pytest.raises(ClientStateError, match="has been stopped"):
            queue.put_nowait("m3", "x")


async def test_a_refused_key_is_told_and_mended(client, sandbox, caplog, monkeypatch):
    monkeypatch.setattr(update_queue_module, "RESTART_AFTER", 0.01)
    monkeypatch.setattr("sinch_conv_async._core.tokens.REFUSAL_KEPT", 0.0)
    sandbox.rotate_secret("sandbox-key-id", "another")
    async with UpdateQueue(client, stop_within=60) as queue:
        queue.put_nowait("m1", "x")
        await until(lambda: queue.error is not None)
        assert isinstance(queue.error, TokenError)
        assert "TokenError" in repr(queue)
        assert ids(queue.pending) == ["m1"]
        sandbox.rotate_secret("sandbox-key-id", "sandbox-key-secret")
        await until(lambda: not len(queue))
        assert queue.error is None
    assert "the update queue cannot send" in caplog.text


async def test_with_a_refused_key_stopping_waits_for_nothing(client, sandbox):
    sandbox.rotate_secret("sandbox-key-id", "another")
    async with UpdateQueue(client, stop_within=3600) as queue:
        queue.put_nowait("m1", "x")
        await until(lambda: queue.error is not None)
    assert ids(queue.pending) == ["m1"]


async def test_failed_updates_are_logged_unless_somebody_looks_at_the_outcomes(
    client, sandbox, caplog
):
    sandbox.fail_next(404, message_id="m1", times=2)
    async with UpdateQueue(client) as queue:
        queue.put_nowait("m1", "secret text")
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage().startswith("message m1 was not updated: 404")
    caplog.clear()
    done = []
    async with UpdateQueue(client, on_outcome=done.append) as queue:
        queue.put_nowait("m1", "secret text")
    assert [outcome.ok for outcome in done] == [False]
    assert not caplog.records
    assert "secret text" not in caplog.text


async def test_an_error_of_on_outcome_is_logged_and_the_next_outcome_is_handed_over(client, caplog):
    seen = []

    async def look(outcome) -> None:
        await asyncio.sleep(0)
        seen.append(outcome.update.message_id)
        raise LookupError

    async with UpdateQueue(client, on_outcome=look) as queue:
        queue.put_nowait("m1", "x")
        queue.put_nowait("m2", "x")
    assert sorted(seen) == ["m1", "m2"]
    assert caplog.text.count("on_outcome raised") == 2
    assert queue.pending == ()


async def test_a_queue_is_started_once(client):
    async with UpdateQueue(client) as queue:
        pass
    with pytest.raises(ClientStateError, match="started once"):
        async with queue:
            pass
