"""One manager, many clients: one pool, a token for each key, a pace for each project, and no token
endpoint hammered.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from sinch_conv_async import SessionManager, TokenError
from sinch_conv_async._core import tokens as tokens
from sinch_conv_async.sandbox import Sandbox
from tests.servers import client_of

PROJECTS = 500


def options(sandbox, number):
    return {**sandbox.client_options(f"project-{number}"), "rate_limit": 100.0 + number}


@pytest.fixture
async def sandbox():
    async with Sandbox(auto_create=True, token_rate=1000) as sandbox:
        for number in range(PROJECTS):
            sandbox.add_project(
                f"project-{number}", key_id=f"key-{number}", key_secret=f"secret-{number}"
            )
        yield sandbox


@pytest.mark.parametrize(
    "given_wrongly", [1.0, 3.0], ids=["at the endpoint's rate", "at three times its rate"]
)
async def test_500_projects_with_their_own_keys_and_rates_on_one_manager(
    sandbox, monkeypatch, given_wrongly
):
    """A hundred times as quick as Sinch's endpoint (30 at once and 10 a second), in proportion;
    also where it allows less than it says.
    """
    monkeypatch.setattr(tokens, "ENDPOINT_RATE", tokens.ENDPOINT_RATE * 100 * given_wrongly)
    monkeypatch.setattr(tokens, "_RETRY", tokens.RetryPolicy(base_delay=0.05, max_delay=0.2))
    async with SessionManager(max_connections=50) as manager:
        clients = [
            client_of(sandbox, session_manager=manager, **options(sandbox, number))
            for number in range(PROJECTS)
        ]
        messages = await asyncio.gather(
            *(
                client.update_message_metadata(f"m-{number}", "x")
                for number, client in enumerate(clients)
            )
        )
        assert len(messages) == PROJECTS
        stats = manager.stats()
        issued = Counter(
            request.key_id for request in sandbox.token_requests if request.status == 200
        )
        throttled = sum(request.status == 429 for request in sandbox.token_requests)
        print(
            f"{PROJECTS} projects: {len(sandbox.token_requests)} token requests, {throttled} of them answered 429, "
            f"{sandbox.peak_connections} connections at most"
        )
        assert issued == {f"key-{number}": 1 for number in range(PROJECTS)}
        assert stats.token_requests == PROJECTS + throttled
        assert {project.project_id: project.pace for project in stats.projects} == {
            f"project-{number}": 100.0 + number for number in range(PROJECTS)
        }
        assert stats.calls == stats.attempts == PROJECTS
        # Fifty slots for calls; a token request takes none, and has a connection of its own for its
        # moment.
        assert sandbox.peak_in_flight <= 50
        for client in clients:
            await client.close()


async def test_the_token_endpoint_is_asked_at_its_own_rate_and_no_quicker(monkeypatch):
    """The bucket of 500 keys, in time that is counted: never more than 30 at once and
    10 a second.
    """
    pace = tokens.EndpointPace()
    now = 50.0
    times = [now + pace.delay(now) for _ in range(PROJECTS)]
    assert times == sorted(times)
    for first in range(PROJECTS):
        for last in range(first, PROJECTS):
            assert last - first + 1 <= 30 + 10 * (times[last] - times[first])
    print(f"{PROJECTS} tokens in {times[-1] - now:.1f} s")
    assert times[-1] - now <= PROJECTS / 9


async def test_two_clients_of_one_project_share_its_pace_and_its_token(sandbox):
    async with SessionManager() as manager:
        one = client_of(
            sandbox, session_manager=manager, **{**options(sandbox, 1), "rate_limit": 700}
        )
        other = client_of(
            sandbox, session_manager=manager, **{**options(sandbox, 1), "rate_limit": 300}
        )
        await asyncio.gather(
            *(client.update_message_metadata("m1", "x") for client in (one, other, one))
        )
        (project,) = manager.stats().projects
        assert project.pace == 300
        assert len(sandbox.token_requests) == 1
        await other.close()
        assert manager.stats().projects[0].pace == 700
        await one.close()


async def test_a_project_that_waits_for_its_token_holds_no_slot(sandbox):
    async with SessionManager(max_connections=1) as manager:
        waits, goes_on = (
            client_of(sandbox, session_manager=manager, **options(sandbox, n)) for n in (1, 2)
        )
        await goes_on.authenticate()
        sandbox.hold_tokens()
        waiting = [
            asyncio.create_task(waits.update_message_metadata(f"w{n}", "x")) for n in range(20)
        ]
        await sandbox.wait_for_token_requests(2)
        await asyncio.gather(*(goes_on.update_message_metadata(f"m{n}", "x") for n in range(50)))
        assert not any(call.done() for call in waiting)
        sandbox.release_tokens()
        await asyncio.gather(*waiting)


async def test_a_key_that_is_rotated_gets_a_new_token_and_the_old_secret_none(sandbox):
    async with SessionManager() as manager:
        old = client_of(sandbox, session_manager=manager, **options(sandbox, 1))
        await old.update_message_metadata("m1", "x")
        sandbox.rotate_secret("key-1", "another")
        sandbox.revoke_tokens()
        new = client_of(
            sandbox, session_manager=manager, **{**options(sandbox, 1), "key_secret": "another"}
        )
        await new.update_message_metadata("m1", "x")
        stale = client_of(
            sandbox, session_manager=manager, **{**options(sandbox, 1), "key_secret": "secret-1"}
        )
        with pytest.raises(TokenError):
            await stale.update_message_metadata("m1", "x")
        assert [request.status for request in sandbox.token_requests] == [200, 200, 401]


async def test_ten_thousand_clients_one_after_the_other_leave_nothing_behind(sandbox):
    """A service that makes a client for each tenant's request."""
    async with SessionManager() as manager:
        for number in range(10_000):
            client = client_of(
                sandbox, session_manager=manager, **options(sandbox, number % PROJECTS)
            )
            await client.close()
        assert len(manager.stats().projects) <= PROJECTS
