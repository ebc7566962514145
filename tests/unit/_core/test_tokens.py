"""Tokens: fetched once however many wait, renewed before they expire, and not asked for when there
is no point.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async import ClientStateError, SessionManager, TokenError
from sinch_conv_async._core.lifetime import Lifetime
from sinch_conv_async._core.tokens import BasicAuthorization, EndpointPace, Token, TokenSource
from sinch_conv_async._wire.arguments import Credentials
from sinch_conv_async._wire.failure import Failure
from sinch_conv_async._wire.responses import TokenResponse
from sinch_conv_async.sandbox import Sandbox
from tests.servers import ID, Time, client_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KEY = Credentials("key", "secret")
INVALID_CLIENT = Failure(TokenError("no", error="invalid_client", http_status=401), retryable=False)
UNAVAILABLE = Failure(TokenError("down", http_status=503), retryable=True)


class Endpoint:
    """A token endpoint that gives these answers in turn, the last one for ever."""

    def __init__(self, *answers: TokenResponse | Failure | Exception) -> None:
        self.answers = list(answers)
        self.requests = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, credentials: Credentials) -> TokenResponse | Failure:
        self.requests += 1
        await self.gate.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def source(
    endpoint: Callable[[Credentials], Awaitable[TokenResponse | Failure]],
    time: Time,
    *,
    pace: EndpointPace | None = None,
) -> TokenSource:
    return TokenSource(
        KEY,
        request=endpoint,
        endpoint=EndpointPace() if pace is None else pace,
        clock=time.clock,
        rng=random.Random(1),
        sleep=time.sleep,
    )


async def settle() -> None:
    """Lets a fetch under way come to its end: it needs a few turns of the loop and no time."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def time() -> Time:
    return Time()


# One fetch for all


async def test_a_thousand_waiters_make_one_request(time):
    endpoint = Endpoint(TokenResponse("token", 3600))
    tokens, calls = source(endpoint, time), Lifetime()
    got = await asyncio.gather(*(tokens.get(calls) for _ in range(1000)))
    assert endpoint.requests == 1
    assert {token.authorization for token in got} == {"Bearer token"}
    assert not calls.waiting


async def test_cancelling_the_waiter_that_started_the_fetch_harms_no_other(time):
    endpoint = Endpoint(TokenResponse("token", 3600))
    endpoint.gate.clear()
    tokens, calls = source(endpoint, time), Lifetime()
    first, second = (asyncio.create_task(tokens.get(calls)) for _ in range(2))
    await settle()
    first.cancel()
    await asyncio.wait([first])
    endpoint.gate.set()
    assert (await second).authorization == "Bearer token"
    assert first.cancelled()
    assert endpoint.requests == 1


async def test_a_fetch_outlives_its_callers(time):
    endpoint = Endpoint(TokenResponse("token", 3600))
    endpoint.gate.clear()
    tokens = source(endpoint, time)
    caller = asyncio.create_task(tokens.get(Lifetime()))
    await settle()
    caller.cancel()
    await asyncio.wait([caller])
    endpoint.gate.set()
    await settle()
    assert tokens.current(time.now) is not None


async def test_every_waiter_gets_an_error_of_its_own(time):
    tokens, calls = source(Endpoint(INVALID_CLIENT), time), Lifetime()
    errors = await asyncio.gather(*(tokens.get(calls) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in errors] == [TokenError] * 3
    assert len({id(error) for error in errors}) == 3


# Its life


async def test_a_token_serves_until_it_expires_and_not_longer(time):
    endpoint = Endpoint(TokenResponse("one", 100), UNAVAILABLE)
    tokens = source(endpoint, time)
    token = await tokens.get(Lifetime())
    assert tokens.current(1000 + 71.9) is token
    assert endpoint.requests == 1
    assert tokens.current(1000 + 99.9) is token
    await settle()
    assert tokens.current(1000 + 100) is None


async def test_the_life_is_counted_from_the_request_not_from_the_answer(time):
    async def slowly(credentials: Credentials) -> TokenResponse:
        time.now += 30
        return TokenResponse("token", 100)

    token = await source(slowly, time).get(Lifetime())
    assert token.expires_at == 1100


@pytest.mark.parametrize("seed", range(20))
async def test_renewal_is_due_between_72_and_88_percent_of_the_life(time, seed):
    tokens = TokenSource(
        KEY,
        request=Endpoint(TokenResponse("token", 100)),
        endpoint=EndpointPace(),
        clock=time.clock,
        rng=random.Random(seed),
    )
    token = await tokens.get(Lifetime())
    assert 1072 <= token.renew_at <= 1088


async def test_a_token_is_renewed_on_use_in_the_background_while_the_old_one_serves(time):
    endpoint = Endpoint(TokenResponse("old", 100), TokenResponse("new", 100))
    tokens, calls = source(endpoint, time), Lifetime()
    old = await tokens.get(calls)
    time.now = 1089
    await settle()
    assert endpoint.requests == 1  # nobody used it
    endpoint.gate.clear()
    assert await tokens.get(calls) is old
    assert tokens.current(time.now) is old
    await settle()
    assert endpoint.requests == 2
    assert tokens.current(time.now) is old
    endpoint.gate.set()
    await settle()
    assert (await tokens.get(calls)).authorization == "Bearer new"


async def test_a_failed_early_renewal_waits_before_the_next_and_tells_nobody(time):
    endpoint = Endpoint(TokenResponse("old", 100), UNAVAILABLE)
    tokens, calls = source(endpoint, time), Lifetime()
    old = await tokens.get(calls)
    time.now = 1089
    for _ in range(50):
        assert await tokens.get(calls) is old
        await settle()
    assert endpoint.requests == 2
    assert time.slept == []
    time.now = 1097
    assert await tokens.get(calls) is old
    await settle()
    assert endpoint.requests == 3


async def test_an_early_renewal_that_becomes_urgent_is_tried_again(time):
    endpoint = Endpoint(TokenResponse("old", 100), UNAVAILABLE, TokenResponse("new", 100))
    tokens, calls = source(endpoint, time), Lifetime()
    old = await tokens.get(calls)
    time.now = 1099
    endpoint.gate.clear()
    assert tokens.current(time.now) is old
    await settle()
    time.now = 1101
    waiting = asyncio.create_task(tokens.get(calls))
    await settle()
    endpoint.gate.set()
    assert (await waiting).authorization == "Bearer new"
    assert endpoint.requests == 3


async def test_a_renewal_that_is_refused_is_remembered_once_the_old_token_is_gone(time):
    endpoint = Endpoint(TokenResponse("old", 100), INVALID_CLIENT)
    tokens, calls = source(endpoint, time), Lifetime()
    old = await tokens.get(calls)
    time.now = 1089
    assert await tokens.get(calls) is old
    await settle()
    time.now = 1101
    with pytest.raises(TokenError):
        await tokens.get(calls)
    assert endpoint.requests == 2


# 401


async def test_a_refused_token_is_dropped_once(time):
    endpoint = Endpoint(TokenResponse("one", 3600), TokenResponse("two", 3600))
    tokens, calls = source(endpoint, time), Lifetime()
    one = await tokens.get(calls)
    assert tokens.refused(one, "project", time.now)
    two = await tokens.get(calls)
    assert two.authorization == "Bearer two"
    assert tokens.refused(one, "project", time.now)  # a straggler's 401, about the token before
    assert await tokens.get(calls) is two
    assert endpoint.requests == 2


async def test_a_renewed_token_that_was_never_accepted_is_not_renewed_again_within_60_s(time):
    endpoint = Endpoint(
        TokenResponse("one", 3600), TokenResponse("two", 3600), TokenResponse("three", 3600)
    )
    tokens, calls = source(endpoint, time), Lifetime()
    assert tokens.refused(await tokens.get(calls), "project", time.now)
    two = await tokens.get(calls)
    assert not tokens.refused(two, "project", time.now + 59.9)
    assert tokens.refused(two, "project", time.now + 60)


async def test_a_token_that_was_accepted_is_renewed_whenever_it_is_refused(time):
    tokens, calls = source(Endpoint(TokenResponse("one", 3600)), time), Lifetime()
    assert tokens.refused(await tokens.get(calls), "project", time.now)
    two = await tokens.get(calls)
    two.accepted_for.add("project")
    assert tokens.refused(two, "project", time.now)


async def test_a_token_that_is_accepted_for_one_project_is_not_renewed_again_and_again_for_another(
    time,
):
    tokens, calls = source(Endpoint(TokenResponse("one", 3600)), time), Lifetime()
    assert tokens.refused(await tokens.get(calls), "refusing", time.now)
    two = await tokens.get(calls)
    two.accepted_for.add("accepting")
    assert not tokens.refused(two, "refusing", time.now)
    assert await tokens.get(calls) is two


async def test_a_token_that_lives_shorter_than_its_answer_took_is_used_all_the_same(time):
    class Slow(Endpoint):
        async def __call__(self, credentials):
            time.now += 1.2
            return await super().__call__(credentials)

    endpoint = Slow(TokenResponse("token", 1))
    tokens = source(endpoint, time)
    token = await tokens.get(Lifetime())
    assert endpoint.requests == 1
    assert token.expires_at == time.now + 1


# Failures


async def test_invalid_client_is_remembered_for_60_s(time):
    endpoint = Endpoint(INVALID_CLIENT, INVALID_CLIENT, TokenResponse("token", 3600))
    tokens, calls = source(endpoint, time), Lifetime()
    for _ in range(100):
        with pytest.raises(TokenError) as caught:
            await tokens.get(calls)
        assert caught.value.error == "invalid_client"
    assert endpoint.requests == 1
    time.now += 60
    with pytest.raises(TokenError):
        await tokens.get(calls)
    assert endpoint.requests == 2
    time.now += 60
    await tokens.get(calls)


async def test_any_other_refusal_is_not_remembered(time):
    endpoint = Endpoint(
        Failure(TokenError("odd", http_status=400), retryable=False), TokenResponse("token", 3600)
    )
    tokens, calls = source(endpoint, time), Lifetime()
    with pytest.raises(TokenError):
        await tokens.get(calls)
    assert (await tokens.get(calls)).authorization == "Bearer token"


async def test_a_failing_endpoint_is_asked_again_with_backoff(time):
    endpoint = Endpoint(UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, TokenResponse("token", 3600))
    assert await source(endpoint, time).get(Lifetime())
    assert len(time.slept) == 3
    assert all(pause <= limit for pause, limit in zip(time.slept, (0.5, 1.0, 2.0), strict=True))


async def test_after_60_s_of_failing_those_who_wait_are_told(time):
    endpoint = Endpoint(UNAVAILABLE)
    with pytest.raises(TokenError) as caught:
        await source(endpoint, time).get(Lifetime())
    assert str(caught.value) == (
        f"down; not tried again: the token endpoint was asked {endpoint.requests} times in 60 s"
    )
    assert 1 < endpoint.requests < 60
    assert (
        time.now == 1060
    )  # the last pause is cut short, so that one more try is made when they are told


async def test_a_retry_after_within_60_s_is_kept_to(time):
    failure = Failure(TokenError("down", http_status=429), retryable=True, retry_after=7)
    await source(Endpoint(failure, TokenResponse("token", 3600)), time).get(Lifetime())
    assert 1007 <= time.now <= 1007.5


async def test_a_retry_after_beyond_60_s_ends_the_wait_at_once(time):
    endpoint = Endpoint(
        Failure(TokenError("down", http_status=429), retryable=True, retry_after=3600)
    )
    with pytest.raises(TokenError, match=r"the token endpoint asks for a wait of 3600 s$"):
        await source(endpoint, time).get(Lifetime())
    assert endpoint.requests == 1
    assert time.slept == []


@pytest.mark.parametrize("asked", [3600, 61])
async def test_a_retry_after_beyond_60_s_is_remembered_for_60_s(time, asked):
    failure = Failure(TokenError("down", http_status=429), retryable=True, retry_after=asked)
    endpoint = Endpoint(failure, TokenResponse("token", 3600))
    tokens, calls = source(endpoint, time), Lifetime()
    for _ in range(100):
        with pytest.raises(TokenError, match="down"):
            await tokens.get(calls)
    assert endpoint.requests == 1
    time.now += 60
    assert (await tokens.get(calls)).authorization == "Bearer token"


async def test_a_trace_hook_that_raises_ends_the_fetch_with_a_token_error(time):
    tokens = source(Endpoint(ValueError("Bearer canary")), time)
    with pytest.raises(TokenError, match=r"^the token request failed: ValueError$"):
        await tokens.get(Lifetime())


# Closing


async def test_closing_ends_a_fetch_and_tells_those_who_wait(time):
    endpoint = Endpoint(TokenResponse("token", 3600))
    endpoint.gate.clear()
    tokens = source(endpoint, time)
    waiting = asyncio.create_task(tokens.get(Lifetime()))
    await settle()
    await tokens.close()
    with pytest.raises(ClientStateError):
        await waiting


async def test_a_fetch_that_somebody_else_cancels_is_no_closed_client(time):
    endpoint = Endpoint(TokenResponse("token", 3600))
    endpoint.gate.clear()
    tokens, calls = source(endpoint, time), Lifetime()
    waiting = asyncio.create_task(tokens.get(calls))
    await settle()
    tokens._fetching.cancel()
    with pytest.raises(TokenError, match="was cancelled"):
        await waiting
    endpoint.gate.set()
    assert await tokens.get(calls)


@pytest.mark.skipif(os.environ.get("EVENT_LOOP") == "eager", reason="an eager task begins at once")
async def test_a_fetch_that_is_cancelled_before_it_has_begun_is_no_end_of_all_others(time):
    endpoint = Endpoint(TokenResponse("token", 3600))
    tokens, calls = source(endpoint, time), Lifetime()
    waiting = asyncio.create_task(tokens.get(calls))
    await asyncio.sleep(0)
    tokens._fetching.cancel()
    with pytest.raises(TokenError, match="was cancelled"):
        await waiting
    assert endpoint.requests == 0
    assert await tokens.get(calls)


@pytest.mark.skipif(os.environ.get("EVENT_LOOP") == "eager", reason="an eager task begins at once")
async def test_closing_ends_a_fetch_that_has_not_begun(time):
    endpoint = Endpoint(TokenResponse("token", 3600))
    tokens, calls = source(endpoint, time), Lifetime()
    waiting = asyncio.create_task(tokens.get(calls))
    await asyncio.sleep(0)
    calls.fail_waiting()
    await tokens.close()
    with pytest.raises(ClientStateError):
        await waiting
    assert endpoint.requests == 0


async def test_closing_without_a_fetch_does_nothing(time):
    await source(Endpoint(UNAVAILABLE), time).close()


async def test_a_waiter_cancelled_while_the_fetch_goes_on_is_passed_over(time):
    endpoint = Endpoint(INVALID_CLIENT)
    endpoint.gate.clear()
    tokens = source(endpoint, time)
    waiting = asyncio.create_task(tokens.get(Lifetime()))
    await settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    endpoint.gate.set()
    await settle()
    assert endpoint.requests == 1


async def test_no_fetch_is_started_for_a_closed_client(time):
    endpoint, calls = Endpoint(TokenResponse("token", 3600)), Lifetime()
    calls.fail_waiting()
    with pytest.raises(ClientStateError):
        await source(endpoint, time).get(calls)
    await settle()
    assert endpoint.requests == 0


async def test_a_source_with_neither_token_nor_fetch_may_be_forgotten(time):
    endpoint = Endpoint(TokenResponse("token", 100))
    endpoint.gate.clear()
    tokens = source(endpoint, time)
    assert tokens.forgettable(time.now)
    waiting = asyncio.create_task(tokens.get(Lifetime()))
    await settle()
    assert not tokens.forgettable(time.now)
    endpoint.gate.set()
    await waiting
    await settle()
    assert not tokens.forgettable(time.now)
    assert tokens.forgettable(1100)


# The endpoint's own pace


def test_the_endpoint_pace_never_exceeds_a_bucket_of_30_refilled_with_10_a_second():
    pace, now = EndpointPace(), 50.0
    departures = [now + pace.delay(now) for _ in range(500)]
    credit, at = 30.0, now
    for departure in departures:
        credit = min(30.0, credit + (departure - at) * 10)
        at = departure
        assert credit >= 1
        credit -= 1
    assert departures[27] == pytest.approx(now)
    assert departures[28] > now + 0.1


def test_the_endpoint_pace_recovers_its_burst_when_idle():
    pace = EndpointPace()
    for _ in range(100):
        pace.delay(0.0)
    assert all(pace.delay(100.0) < 1e-9 for _ in range(28))
    assert pace.delay(100.0) > 0.1


async def test_500_keys_on_one_endpoint_stay_within_its_bucket(time):
    pace, began = EndpointPace(), []

    async def ask(credentials: Credentials) -> TokenResponse:
        began.append(asked_at())
        return TokenResponse("token", 3600)

    # Each source waits on a clock of its own, or the waits would add up.
    def asked_at() -> float:
        return max(clock.now for clock in clocks)

    clocks = [Time() for _ in range(500)]
    tokens = [source(ask, clock, pace=pace) for clock in clocks]
    for each in tokens:
        await each.get(Lifetime())
    assert sum(1 for moment in began if moment == pytest.approx(1000, abs=1e-6)) == 28
    assert began[-1] == pytest.approx(1000 + 472 / 9.5)


# Whose token it is


async def test_a_rotated_secret_gets_its_own_token():
    async with Sandbox(auto_create=True) as sandbox, SessionManager() as manager:
        async with client_of(sandbox, session_manager=manager) as client:
            await client.update_message_metadata(ID, "one")
        sandbox.rotate_secret("sandbox-key-id", "another")
        async with client_of(sandbox, session_manager=manager) as client:
            await client.update_message_metadata(ID, "two")
            assert [request.status for request in sandbox.token_requests] == [200, 200]


async def test_clients_with_one_key_share_its_token():
    async with Sandbox(auto_create=True) as sandbox, SessionManager() as manager:
        clients = [client_of(sandbox, session_manager=manager) for _ in range(5)]
        await asyncio.gather(*(client.authenticate() for client in clients))
        assert len(sandbox.token_requests) == 1


def test_basic_credentials_are_always_there_and_never_renewed():
    basic = BasicAuthorization(KEY)
    token = basic.current(1e12)
    assert token.authorization == "Basic a2V5OnNlY3JldA=="
    assert not basic.refused(token, "project", 0.0)


def test_a_token_shows_no_secret():
    token = Token("Bearer canary-token", 1.0, 2.0)
    assert "canary" not in repr(token)
    assert token.scrub("it was canary-token, you see") == "it was [redacted], you see"


@pytest.mark.parametrize(
    "fields", [{}, {"expires_in": None}, {"expires_in": "3599"}, {"expires_in": 3600.5}]
)
async def test_a_life_is_read_or_assumed(fields):
    async with Sandbox(auto_create=True) as sandbox, client_of(sandbox) as client:
        sandbox.answer_next_token({"access_token": "token", **fields})
        await client.update_message_metadata(ID, "x")
        assert len(sandbox.token_requests) == 1


@pytest.mark.parametrize("expires_in", [0, -1, float("nan"), float("inf"), "soon", True, [], "0"])
async def test_a_life_that_is_no_positive_number_is_refused(expires_in):
    async with Sandbox(auto_create=True) as sandbox, client_of(sandbox) as client:
        sandbox.answer_next_token({"access_token": "token", "expires_in": expires_in})
        with pytest.raises(TokenError, match="expires_in"):
            await client.update_message_metadata(ID, "x")
        assert sandbox.requests == []
        assert len(sandbox.token_requests) == 1


@pytest.mark.parametrize("token", [None, "", 7, "a\r\nb", "\x00", "tökén"])
async def test_a_token_that_no_header_can_carry_is_refused(token):
    async with Sandbox(auto_create=True) as sandbox, client_of(sandbox) as client:
        sandbox.answer_next_token({"access_token": token, "expires_in": 3600})
        with pytest.raises(TokenError, match="access_token"):
            await client.authenticate()


async def test_a_manager_renews_by_its_clock(monkeypatch):
    time = Time()
    manager = SessionManager()
    monkeypatch.setattr("sinch_conv_async._core.binding.clock_of", lambda loop: time.clock)
    async with Sandbox(auto_create=True) as sandbox, manager:
        client = client_of(sandbox, session_manager=manager, rate_limit=None)
        await client.update_message_metadata(ID, "one")
        time.now += 3599
        await client.update_message_metadata(ID, "two")
        await sandbox.wait_for_token_requests(2)
        assert manager.stats().token_requests == 2
