"""The sandbox for synchronous code: in a thread of its own, told and asked from other threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from sinch_conv_async import ConversationClient
from sinch_conv_async.sandbox import Sandbox
from tests.servers import client_of


def update(sandbox: Sandbox, message_id: str = "m", metadata: str = "new") -> None:
    async def call() -> None:
        async with client_of(sandbox) as client:
            await client.update_message_metadata(message_id, metadata)

    asyncio.run(call())


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_a_plain_with_serves_until_its_end():
    with Sandbox() as sandbox:
        message = sandbox.add_message("m", metadata="old")
        assert "Sandbox" in names()
        update(sandbox)
        assert message.metadata == "new"
        assert [request.status for request in sandbox.requests] == [200]
    assert "Sandbox" not in names()
    assert "closed" in repr(sandbox)


def test_what_a_test_says_holds_for_the_next_request():
    with Sandbox(auto_create=True, token_rate=None) as sandbox:
        for _ in range(20):
            sandbox.fail_next(503)
            assert sandbox.pending_faults == 1
            update(sandbox)
            assert sandbox.pending_faults == 0
            sandbox.expire_tokens()
        assert len(sandbox.requests) == 40


def test_it_may_be_told_and_asked_by_many_threads_at_once():
    with Sandbox(auto_create=True, token_rate=None) as sandbox, ThreadPoolExecutor(8) as pool:

        def work(number: int) -> None:
            sandbox.fail_next(503, message_id=f"m{number}")
            update(sandbox, f"m{number}")
            sandbox.add_project(f"p{number}", key_id="key", key_secret="secret")

        list(pool.map(work, range(40)))
        assert sandbox.pending_faults == 0
        assert sandbox.updates_applied == 40
        assert sandbox.client_options("p39")["key_id"] == "key"


def test_answers_are_held_and_released_from_another_thread():
    with Sandbox(auto_create=True) as sandbox, ThreadPoolExecutor(1) as pool:
        sandbox.hold()
        call = pool.submit(update, sandbox)
        sandbox.run(sandbox.wait_for_requests(1), timeout=30)
        assert sandbox.in_flight == 1
        sandbox.release()
        call.result(30)
        assert sandbox.messages["m"].metadata == "new"


async def test_another_event_loop_waits_for_what_arrives():
    with Sandbox(auto_create=True) as sandbox:
        async with ConversationClient(**sandbox.client_options()) as client:
            waiting = asyncio.create_task(sandbox.wait_for_requests(1))
            tokens = asyncio.create_task(sandbox.wait_for_token_requests(1))
            await client.update_message_metadata("m", "new")
            await asyncio.gather(waiting, tokens)


def test_a_wait_that_takes_too_long_ends_and_leaves_nothing():
    with Sandbox() as sandbox, pytest.raises(TimeoutError):
        sandbox.run(sandbox.wait_for_requests(1), timeout=0.01)


def test_a_thread_that_still_waits_at_the_end_is_cancelled():
    with ThreadPoolExecutor(1) as pool:
        begun = threading.Event()
        with Sandbox() as sandbox:

            async def wait() -> None:
                begun.set()
                await sandbox.wait_for_requests(1)

            call = pool.submit(sandbox.run, wait())
            begun.wait()
        with pytest.raises(CancelledError):
            call.result(30)


def test_an_error_of_what_is_said_is_raised_where_it_is_said():
    with Sandbox() as sandbox:
        with pytest.raises(ValueError, match="times must be at least 1"):
            sandbox.fail_next(503, times=0)
        with pytest.raises(KeyError):
            sandbox.rotate_secret("nobody", "x")


def test_a_port_that_is_taken_is_an_error_and_leaves_no_thread():
    with Sandbox() as sandbox:
        with pytest.raises(OSError, match="in use"), Sandbox(port=sandbox.port):
            pass
        assert names().count("Sandbox") == 1


def test_it_runs_once_and_again_after_its_end():
    sandbox = Sandbox(auto_create=True)
    with sandbox:
        port = sandbox.port
        with pytest.raises(RuntimeError, match="already"):
            sandbox.__enter__()
    with sandbox:
        assert sandbox.port == port
        update(sandbox)


async def test_one_that_listens_already_gets_no_thread():
    async with Sandbox() as sandbox:
        with pytest.raises(RuntimeError, match="already"):
            sandbox.__enter__()
    assert "Sandbox" not in names()


async def test_run_is_for_other_threads():
    async with Sandbox() as sandbox:
        with pytest.raises(RuntimeError, match="plain `with`"):
            sandbox.run(sandbox.wait_for_requests(0))


def test_an_outage_is_a_close_and_a_start():
    with Sandbox(auto_create=True) as sandbox:
        sandbox.run(sandbox.close())
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(update, sandbox)
            sandbox.run(sandbox.start())
            call.result(60)
