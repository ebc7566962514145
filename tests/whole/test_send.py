"""Time, departures, the retry budget, logs and counters of calls, as a user or an operator sees
them.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
import warnings

import aiohttp
import pytest
import time_machine
from aiohttp.abc import AbstractResolver
from freezegun import freeze_time

from sinch_conv_async import (
    CallTimeoutError,
    ClientStateError,
    ConversationClient,
    NotFoundError,
    RetryPolicy,
    ServerError,
    SessionManager,
    TokenError,
)
from sinch_conv_async._core.binding import clock_of
from sinch_conv_async.sandbox import Sandbox
from tests.servers import ID, NEVER, client_of, stats_of


@pytest.fixture
async def sandbox():
    async with Sandbox(auto_create=True) as running:
        yield running


def most_in_a_second(times):
    most = first = 0
    for last, at in enumerate(times):
        while times[first] + 1 <= at:
            first += 1
        most = max(most, last - first + 1)
    return most


# Time


async def test_a_frozen_wall_clock_stops_no_call(sandbox):
    with freeze_time("2026-12-31", real_asyncio=True):
        async with client_of(sandbox, rate_limit=50, timeout=10) as client:
            for number in range(3):
                await client.update_message_metadata(f"m{number}", "x")
    with time_machine.travel(0, tick=False):
        async with client_of(sandbox, rate_limit=50, timeout=10) as client:
            for number in range(3):
                await client.update_message_metadata(f"m{number}", "x")
    assert len(sandbox.requests) == 6


def test_a_client_goes_on_from_a_frozen_loop_to_a_real_one():
    """A client of a module, used in a test with a clock of its own and in the next one without."""
    manager = SessionManager()

    async def use():
        async with Sandbox(auto_create=True) as sandbox:
            client = client_of(
                sandbox, session_manager=manager, rate_limit=2, timeout=10, auth="basic"
            )
            await client.update_message_metadata(ID, "x")
            await client.update_message_metadata(ID, "y")
            return len(sandbox.requests)

    class Elsewhere(asyncio.SelectorEventLoop):
        """Its clock began at another time, and this one ticks as any other."""

        ahead = 1e6

        def time(self):
            return super().time() + self.ahead

    for factory in (None, Elsewhere, None):
        with asyncio.Runner(loop_factory=factory) as runner:
            assert runner.run(use()) == 2
    with asyncio.Runner() as runner:
        runner.run(manager.close())


def test_where_a_loops_time_is_that_of_its_round_the_clock_itself_is_read():
    class Loop:
        def time(self):
            return 0.0

    Loop.__module__ = "uvloop.loop"
    assert clock_of(Loop())() == pytest.approx(time.monotonic(), abs=10)
    Loop.__module__ = "elsewhere"
    assert clock_of(Loop())() == 0.0


async def test_a_call_that_is_refused_before_it_begins_is_not_counted(sandbox):
    client = client_of(sandbox)
    await client.close()
    with pytest.raises(ClientStateError):
        await client.update_message_metadata(ID, "x")
    stats = stats_of(client)
    assert (stats.calls, dict(stats.failed)) == (0, {})


# Departures


@pytest.mark.parametrize("traced", [False, True])
async def test_after_a_stall_no_second_holds_more_writes_than_the_limit(
    sandbox, monkeypatch, traced
):
    """The event loop stands still for a while; connections that open in between delay some of the
    writes.
    """
    limit, writes = 50, []
    send = socket.socket.send

    def recorded(self, data, *flags):
        if bytes(data[:5]) == b"PATCH":
            writes.append(time.monotonic())
        return send(self, data, *flags)

    monkeypatch.setattr(socket.socket, "send", recorded)
    traces = [aiohttp.TraceConfig()] if traced else []
    async with (
        SessionManager(trace_configs=traces) as manager,
        client_of(sandbox, session_manager=manager, rate_limit=limit) as client,
    ):
        await client.authenticate()
        calls = asyncio.gather(
            *(client.update_message_metadata(f"m{n}", "x") for n in range(3 * limit))
        )
        for _ in range(3):
            await asyncio.sleep(0.2)
            time.sleep(0.4)
        await calls
    assert len(writes) == 3 * limit
    assert most_in_a_second(writes) <= limit


# The budget


async def test_a_call_that_the_retry_budget_ended_says_so(sandbox):
    async with client_of(
        sandbox, retry=RetryPolicy(max_retries=1000, base_delay=0), rate_limit=None
    ) as client:
        sandbox.fail_next(503, times=10_000)
        with pytest.raises(ServerError) as caught:
            await client.update_message_metadata(ID, "x")
        assert str(caught.value).endswith(
            "(after 101 attempts); not tried again: the project's retry budget is used up"
        )
        assert stats_of(client).budget_refusals == 1


@pytest.mark.alone  # a loop that gets no core for seconds sends less than the budget needs
async def test_calls_of_a_gather_that_meet_a_few_503s_are_not_lost_to_the_budget(
    sandbox, monkeypatch
):
    """All calls begin at once and are sent over more than twice the window of the budget, which is
    cut to 2 s.
    """
    monkeypatch.setattr("sinch_conv_async._core.retry.RetryBudget.WINDOW", 2)
    sandbox.every(20, lambda: sandbox.fail_next(503))
    retry = RetryPolicy(base_delay=0.01)
    async with client_of(sandbox, auth="basic", retry=retry, rate_limit=400) as client:
        await asyncio.gather(*(client.update_message_metadata(f"m{n}", "x") for n in range(2000)))
        assert stats_of(client).retries >= 90


async def test_an_outage_during_a_gather_costs_a_fifth_more_requests_and_no_multiple(sandbox):
    sandbox.fail_next(503, times=1_000_000)
    retry = RetryPolicy(base_delay=0.01, max_delay=0.05)
    async with client_of(sandbox, auth="basic", retry=retry, rate_limit=400) as client:
        results = await asyncio.gather(
            *(client.update_message_metadata(f"m{n}", "x") for n in range(1200)),
            return_exceptions=True,
        )
    assert all(isinstance(result, ServerError) for result in results)
    # A fifth of the calls, and ten a second, for as long as it took and the budget's ten seconds.
    seconds = sandbox.requests[-1].time - sandbox.requests[0].time
    assert 1200 < len(sandbox.requests) <= 1200 + 0.2 * 1200 + 10 * (seconds + 10)


@pytest.mark.parametrize("patient", [False, True])
async def test_a_patient_call_waits_for_room_in_the_budget(sandbox, monkeypatch, patient):
    """A window of one second lets 18 of 40 calls be retried at once."""
    monkeypatch.setattr("sinch_conv_async._core.retry.RetryBudget.WINDOW", 1)
    monkeypatch.setattr("sinch_conv_async._core.retry.BUDGET_LOOKS", (0.01, 0.1))
    sandbox.fail_next(503, times=60)
    retry = RetryPolicy(base_delay=0.01, wait_for_budget=patient)
    async with client_of(sandbox, auth="basic", retry=retry, rate_limit=None, timeout=60) as client:
        results = await asyncio.gather(
            *(client.update_message_metadata(f"m{n}", "x") for n in range(40)),
            return_exceptions=True,
        )
        failed = sum(isinstance(result, ServerError) for result in results)
        assert stats_of(client).budget_refusals == failed
    assert (failed == 0) is patient


async def test_closing_ends_the_wait_for_the_budget(sandbox):
    sandbox.fail_next(503, times=1_000_000)
    retry = RetryPolicy(max_retries=1000, base_delay=0, wait_for_budget=True)
    async with client_of(sandbox, auth="basic", retry=retry, rate_limit=None) as client:
        call = asyncio.create_task(client.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(101)
        await asyncio.sleep(0.05)
        assert not call.done()
    with pytest.raises(ClientStateError):
        await call


# Copies and forks


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_neither_client_nor_manager_can_be_copied(sandbox, again):
    async with SessionManager() as manager, client_of(sandbox, session_manager=manager) as client:
        for thing in (client, manager):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                again(thing)
        await client.update_message_metadata(ID, "x")


FORKED = """
import asyncio, os, sys
from sinch_conv_async import ConversationClient, RetryPolicy
from sinch_conv_async.sandbox import Sandbox

client = ConversationClient(project_id="p", key_id="k", key_secret="s", conversation_region="us", auth="basic")

async def jitter():
    client._sender.bound()
    os.write(1, f"{client._sender.long_delay()}\\n".encode())

for _ in range(4):
    if os.fork() == 0:
        asyncio.run(jitter())
        os._exit(0)
for _ in range(4):
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forked_workers_do_not_share_their_jitter():
    run = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=True
    )
    delays = run.stdout.split()
    assert len(delays) == len(set(delays)) == 4


# Logs


@pytest.fixture
def common_names():
    """A record factory that sets attributes which others may think of too."""
    before = logging.getLogRecordFactory()

    def factory(*args, **kwargs):
        record = before(*args, **kwargs)
        for name in (
            "project_id",
            "status",
            "error",
            "attempt",
            "seconds",
            "message_id",
            "key_id",
            "outcome",
        ):
            setattr(record, name, "the user's")
        return record

    logging.setLogRecordFactory(factory)
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("common_names")
async def test_a_record_factory_that_sets_common_names_breaks_no_call(sandbox, caplog):
    caplog.set_level(logging.DEBUG, "sinch_conv_async")
    async with client_of(sandbox) as client:
        sandbox.fail_next(503)
        await client.update_message_metadata(ID, "x")
    assert {
        record.project_id for record in caplog.records if record.name == "sinch_conv_async"
    } == {"the user's"}
    caplog.set_level(logging.WARNING, "sinch_conv_async")
    async with client_of(sandbox, key_secret="wrong") as client:
        for _ in range(3):
            with pytest.raises(TokenError):
                await client.update_message_metadata(ID, "x")
        assert stats_of(client).token_requests == 1  # invalid_client is remembered


@pytest.mark.parametrize("told", [False, True])
async def test_a_filter_that_raises_decides_no_outcome(sandbox, capsys, monkeypatch, told):
    monkeypatch.setattr(logging, "raiseExceptions", told)

    class Broken(logging.Filter):
        def filter(self, record):
            raise RuntimeError("the user's mistake")

    broken, logger = Broken(), logging.getLogger("sinch_conv_async")
    logger.addFilter(broken)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        async with client_of(sandbox) as client:
            assert (await client.update_message_metadata(ID, "x")).metadata == "x"
    finally:
        logger.removeFilter(broken)
        logger.setLevel(level)
    assert ("the user's mistake" in capsys.readouterr().err) is told


async def test_a_pace_that_falls_below_half_of_its_limit_is_logged_and_so_is_its_return(
    sandbox, caplog, monkeypatch
):
    ahead = 0.0
    monkeypatch.setattr(
        "sinch_conv_async._core.binding.clock_of", lambda loop: lambda: time.monotonic() + ahead
    )
    caplog.set_level(logging.INFO, "sinch_conv_async")
    async with client_of(sandbox, auth="basic", rate_limit=40) as client:
        sandbox.fail_next(429, times=6, retry_after=0.01)
        await client.update_message_metadata(ID, "x")
        assert stats_of(client).projects[0].pace < 20
        ahead += 1000  # it has climbed back since
        for _ in range(3):
            await client.update_message_metadata(ID, "x")
    fallen, back = [record for record in caplog.records if record.getMessage().startswith("pace ")]
    assert fallen.getMessage().startswith("pace has fallen to ")
    assert fallen.getMessage().endswith(" of 40 requests a second")
    assert back.getMessage() == "pace is back at 40 requests a second"
    assert {record.sinch_conv_async["project_id"] for record in (fallen, back)} == {
        "sandbox-project"
    }


# Counters


async def test_the_counters_tell_how_calls_ended(sandbox):
    sandbox.add_message("known", metadata="")
    async with Sandbox() as strict, SessionManager() as manager:
        strict.add_message(ID, metadata="")
        async with client_of(strict, session_manager=manager, retry=NEVER) as client:
            for _ in range(4):
                await client.update_message_metadata(ID, "x")
            with pytest.raises(NotFoundError):
                await client.update_message_metadata("unknown", "x")
            async with strict.holding():
                blocked = asyncio.create_task(client.update_message_metadata(ID, "y"))
                await strict.wait_for_requests(6)
                blocked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await blocked
        stats = manager.stats()
    assert (stats.calls, stats.succeeded, dict(stats.failed)) == (6, 4, {"NotFoundError": 1})
    assert (stats.token_requests, stats.token_failures) == (1, 0)
    assert (stats.timed_out_waiting, stats.budget_refusals) == (0, 0)
    assert stats.exchange_seconds > 0
    assert stats.wait_seconds > 0
    with pytest.raises(TypeError):
        stats.failed["NotFoundError"] = 2
    hash(stats)
    (project,) = stats.projects
    assert (project.limit, project.paused_for, project.in_outage) == (800, 0.0, False)


async def test_a_call_that_times_out_before_anything_is_sent_is_counted_as_such(sandbox):
    async with client_of(sandbox, auth="basic", rate_limit=0.001) as client:
        await client.update_message_metadata(ID, "x")
        with pytest.raises(CallTimeoutError):
            await client.update_message_metadata(ID, "y", timeout=0.1)
        stats = stats_of(client)
        assert stats.timed_out_waiting == 1
        assert dict(stats.failed) == {"CallTimeoutError": 1}


async def test_a_failed_token_request_is_counted(sandbox):
    async with client_of(sandbox, key_secret="wrong") as client:
        with pytest.raises(TokenError):
            await client.update_message_metadata(ID, "x")
        stats = stats_of(client)
        assert (stats.token_requests, stats.token_failures, dict(stats.failed)) == (
            1,
            1,
            {"TokenError": 1},
        )


async def test_a_pause_and_an_outage_show(sandbox, caplog, monkeypatch):
    monkeypatch.setattr("sinch_conv_async._bulk.outage.PROBE_DELAYS", (0.01,))
    caplog.set_level(logging.INFO, "sinch_conv_async")
    async with client_of(
        sandbox, auth="basic", retry=RetryPolicy(max_retries=1, base_delay=0.001)
    ) as client:
        sandbox.fail_next(503, times=60)
        outages = set()
        async for outcome in client.update_many(
            ((f"m{n}", "x") for n in range(30)), concurrency=10
        ):
            assert outcome.ok
            outages.add(stats_of(client).projects[0].in_outage)
        assert outages == {False}
    records = [record for record in caplog.records if "API" in record.getMessage()]
    assert [record.levelname for record in records] == ["WARNING", "INFO"]
    assert records[0].getMessage().startswith("a job waits for the API: 503")
    assert records[1].getMessage().startswith("a job no longer waits for the API, after ")
    assert records[1].sinch_conv_async["project_id"] == "sandbox-project"


async def test_a_job_that_ends_in_an_outage_leaves_none_behind(sandbox, monkeypatch, caplog):
    monkeypatch.setattr("sinch_conv_async._bulk.outage.PROBE_DELAYS", (0.01,))
    caplog.set_level(logging.INFO, "sinch_conv_async")
    async with client_of(
        sandbox, auth="basic", retry=RetryPolicy(max_retries=1, base_delay=0.001)
    ) as client:
        sandbox.fail_next(503, times=1_000_000)
        job = client.update_many(((f"m{n}", "x") for n in range(30)), concurrency=10)
        reading = asyncio.create_task(anext(job))
        while not stats_of(client).projects[0].in_outage:
            await asyncio.sleep(0.005)
        await job.aclose()
        with pytest.raises(StopAsyncIteration):
            await reading
        assert not stats_of(client).projects[0].in_outage
    assert "a job no longer waits for the API" in caplog.text


# Errors


class NoNames(AbstractResolver):
    async def resolve(self, host, port=0, family=socket.AF_INET):
        raise OSError(None, "no such name")

    async def close(self):
        pass


async def test_a_timeout_says_what_kept_its_call_waiting():
    async with (
        SessionManager(resolver=NoNames()) as manager,
        ConversationClient(
            project_id="p",
            key_id="k",
            key_secret="s",
            conversation_region="us",
            session_manager=manager,
            timeout=0.3,
        ) as client,
    ):
        with pytest.raises(CallTimeoutError) as caught:
            await client.update_message_metadata(ID, "x")
        assert str(caught.value).endswith(
            "; last failure: the host name auth.sinch.com could not be resolved"
        )
        with pytest.raises(
            TokenError, match=r"timeout of 0\.3 s: the host name auth\.sinch\.com could not be"
        ):
            await client.authenticate()


async def test_a_connection_error_names_its_host(sandbox):
    port = sandbox.origin.rpartition(":")[2]
    async with client_of(
        sandbox, auth="basic", retry=RetryPolicy(max_retries=1, base_delay=0)
    ) as client:
        await sandbox.close()
        with pytest.raises(Exception, match=f"127.0.0.1.*{port}.*after 2 attempts"):
            await client.update_message_metadata(ID, "x")


# A closed event loop


def test_a_loop_that_is_closed_under_calls_prints_nothing(monkeypatch):
    """Calls that wait for their turn, and calls in flight whose slot the others would get."""
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    with Sandbox(auto_create=True) as sandbox, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        sandbox.hold()

        async def begin():
            manager = SessionManager(max_connections=2)
            client = ConversationClient(
                **{
                    **sandbox.client_options(),
                    "session_manager": manager,
                    "auth": "basic",
                    "rate_limit": None,
                }
            )
            calls = [
                asyncio.create_task(client.update_message_metadata(f"m{n}", "x")) for n in range(6)
            ]
            while len(sandbox.requests) < 2:
                await asyncio.sleep(0.005)
            return client, calls

        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)  # asyncio tells of each pending task
        left = loop.run_until_complete(begin())
        loop.close()
        del left
        gc.collect()
        sandbox.release()
    assert [one.exc_value for one in ignored] == []
