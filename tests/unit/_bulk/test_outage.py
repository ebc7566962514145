"""What becomes of an update that failed in a job, in the order of docs/explanation/bulk.rst."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinch_conv_async import (
    AuthenticationError,
    ClientStateError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ResponseFormatError,
    RetryPolicy,
    ServerError,
    TokenError,
    TransportError,
)
from sinch_conv_async._bulk.outage import (
    FURTHER_ROUNDS,
    IN_A_ROW,
    AnotherRound,
    ApiState,
    EndJob,
    Evidence,
    Failed,
    Outage,
    RetryYield,
    WaitForApi,
    judge,
    may_pass,
)
from sinch_conv_async._wire.failure import Failure

FIVE = RetryPolicy()  # attempts in a round
ONE = RetryPolicy(max_retries=0)
NO_REPEAT = RetryPolicy(retry_maybe_sent=False)

BUSY = ServerError("busy", http_status=503)
LOST = TransportError("lost", sent="maybe")
NO_TOKEN = TokenError("the token endpoint is out")


def passing(error=BUSY, *, maybe_applied: bool = False) -> Failure:
    return Failure(error, retryable=True, maybe_applied=maybe_applied)


def final(error) -> Failure:
    return Failure(error, retryable=False)


def evidence(error=BUSY, failure=None, **facts) -> Evidence:
    """An update that had a whole round of retries while others got through, but for ``facts``."""
    known = {"policy": FIVE, "attempts": 5, "latest": 5, "others_succeed": True, **facts}
    return Evidence(error=error, failure=passing(error) if failure is None else failure, **known)


SPENT = {"policy": ONE, "attempts": 1, "latest": 1}
LASTED = {"others_succeed": False, "in_outage": True, "out_for": 900.0}
WORN_OUT = {"attempts": FURTHER_ROUNDS * 5 + 1}

TABLE = {
    # What every other update would meet as well ends the job.
    "a refused key": (
        evidence(TokenError("no", error="invalid_client", http_status=401)),
        EndJob(),
    ),
    "a final 401": (evidence(AuthenticationError("no", http_status=401)), EndJob()),
    "a closed client": (evidence(ClientStateError("closed")), EndJob()),
    # A failure is an outcome.
    "404": (
        evidence(e := NotFoundError("no", http_status=404), final(e)),
        Failed(api_answers=True),
    ),
    "403": (
        evidence(e := PermissionDeniedError("no", http_status=403), final(e)),
        Failed(api_answers=True),
    ),
    "a 200 that is no message": (
        evidence(e := ResponseFormatError("what"), final(e)),
        Failed(api_answers=True),
    ),
    "404 in an outage": (
        evidence(e := NotFoundError("no", http_status=404), final(e), **LASTED),
        Failed(api_answers=True),
    ),
    # An update that may be sent only once
    "no retries": (evidence(**SPENT), Failed()),
    "no repeats": (
        evidence(LOST, passing(LOST, maybe_applied=True), policy=NO_REPEAT, attempts=1, latest=1),
        Failed(),
    ),
    "no repeats, but a read is safe": (
        evidence(
            LOST,
            passing(LOST, maybe_applied=True),
            policy=NO_REPEAT,
            attempts=1,
            latest=1,
            safe=True,
            others_succeed=False,
        ),
        WaitForApi(),
    ),
    "a certificate": (evidence(LOST, final(LOST), attempts=1, latest=1), Failed()),
    "nine in a row": (evidence(**SPENT, failed_in_a_row=IN_A_ROW - 1), Failed()),
    "ten in a row": (evidence(**SPENT, failed_in_a_row=IN_A_ROW), Failed(api_is_out=True)),
    "spent as a probe": (evidence(**SPENT, in_outage=True), Failed(api_is_out=True)),
    "spent as the last probe": (
        evidence(**{**SPENT, **LASTED}),
        EndJob(after_outage=True, update_failed=True),
    ),
    "nine in a row for long": (evidence(**SPENT, failed_in_a_row=9, out_for=900.0), Failed()),
    # What was not sent may be sent at any time.
    "no token": (evidence(NO_TOKEN, **SPENT, others_succeed=False), WaitForApi()),
    "no permission": (
        evidence(
            e := RateLimitedError("away", http_status=429),
            final(e),
            policy=ONE,
            attempts=0,
            latest=0,
        ),
        WaitForApi(),
    ),
    # Others tell who is at fault.
    "others get through, retries do not help": (evidence(), Failed()),
    "others get through, retries hardly help": (evidence(retries_help=0.099), Failed()),
    "others get through, retries help": (evidence(retries_help=0.1), AnotherRound()),
    "the last further round is over": (
        evidence(retries_help=0.5, rounds=FURTHER_ROUNDS, attempts=25),
        Failed(),
    ),
    "worn out by probes": (evidence(retries_help=0.5, **WORN_OUT), Failed()),
    "others do not get through": (evidence(others_succeed=False), WaitForApi()),
    "the retry budget kept its retries from it": (evidence(attempts=2, latest=2), WaitForApi()),
    "it never reached the API": (evidence(reached=False), WaitForApi()),
    "in an outage nobody is given up": (evidence(in_outage=True), WaitForApi()),
    "in an outage one that is worn out is": (evidence(in_outage=True, **WORN_OUT), Failed()),
    "in an outage one of those that are left is": (
        evidence(in_outage=True, only_failing_left=True),
        Failed(),
    ),
    "alone": (evidence(others_succeed=False, alone=True), Failed()),
    "alone, and it never reached the API": (
        evidence(others_succeed=False, alone=True, reached=False),
        Failed(),
    ),
    "alone, but retries help": (
        evidence(others_succeed=False, alone=True, retries_help=1.0),
        AnotherRound(),
    ),
    # The end of patience
    "an outage until now": (evidence(**{**LASTED, "out_for": 899.9}), WaitForApi()),
    "an outage for too long": (evidence(**LASTED), EndJob(after_outage=True)),
    "only failing updates are left": (evidence(**LASTED, only_failing_left=True), Failed()),
    "only failing updates are left, and none ever got through": (
        evidence(**LASTED, only_failing_left=True, ever_answered=False),
        EndJob(after_outage=True),
    ),
    "no token for too long": (evidence(NO_TOKEN, **LASTED), EndJob(after_outage=True)),
}


@pytest.mark.parametrize(("case", "verdict"), TABLE.values(), ids=TABLE)
def test_what_becomes_of_an_update_that_failed(case, verdict):
    assert judge(case) == verdict


def test_an_invalid_update_never_comes_this_far():
    """It is refused before it is sent; were it judged, it would count as spent."""
    error = InvalidArgumentError("no")
    assert judge(evidence(error, final(error), attempts=1, latest=1)) == Failed()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (BUSY, True),
        (ServerError("not implemented", http_status=501), False),
        (LOST, True),
        (RateLimitedError("away", http_status=429), True),
        (NO_TOKEN, True),
        (TokenError("no", error="invalid_client", http_status=401), False),
        (AuthenticationError("no", http_status=401), False),
        (PermissionDeniedError("no", http_status=403), False),
        (ResponseFormatError("what"), False),
        (ClientStateError("closed"), False),
    ],
)
def test_whether_a_page_of_a_list_is_worth_asking_for_again(error, passes):
    assert may_pass(error) is passes


# The yield


@pytest.mark.parametrize(
    ("records", "share"),
    [
        ([], 0.0),
        ([(0, True), (0, False), (-1, False)], 0.0),
        ([(1, True)], 1.0),
        ([(4, False)], 0.0),
        ([(4, True)], 0.25),
        ([(4, True), (1, True)], 0.4),
        ([(2, True)] * 50, 0.5),
    ],
)
def test_the_share_of_the_retries_that_succeeded(records, share):
    found = RetryYield()
    for retries, succeeded in records:
        found.record(retries, succeeded=succeeded)
    assert found.share == pytest.approx(share)


def test_after_an_outage_the_next_retries_tell():
    found = RetryYield()
    found.record(1000, succeeded=False)
    found.outage_over()
    assert found.share == 1.0
    found.record(9, succeeded=False)
    assert found.share == pytest.approx(0.1)
    found.record(1, succeeded=False)
    assert found.share < 0.1


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=40), st.integers(10, 100))
def test_what_was_long_ago_is_forgotten(records, hundreds):
    found = RetryYield()
    for retries, succeeded in records:
        found.record(retries, succeeded=succeeded)
        assert 0 <= found.share <= 1
    found.record(100 * hundreds, succeeded=False)
    assert found.share < 0.001


# Outages


def test_probes_come_more_and_more_slowly_and_the_last_one_when_the_job_gives_up():
    outage = Outage(began=100.0, ends=110.0)
    assert [outage.next_probe_in(100.0) for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert outage.next_probe_in(108.0) == 2.0
    assert outage.next_probe_in(111.0) == 0.0


def test_a_probe_waits_as_long_as_the_api_asks_for_but_not_longer_than_the_job():
    state = ApiState(max_outage=900.0)
    error = RateLimitedError("away", http_status=429, retry_after=30.0)
    outage = state.out(error, 100.0, failing_since=99.0, max_retry_after=120.0)
    assert (outage.began, outage.ends) == (99.0, 999.0)
    assert outage.next_probe_in(100.0) == 30.0
    error = RateLimitedError("away", http_status=429, retry_after=86_400.0)
    assert state.out(error, 900.0, failing_since=900.0, max_retry_after=120.0) is outage
    assert outage.next_probe_in(900.0) == 99.0
    assert state.out(error, 200.0, failing_since=200.0, max_retry_after=120.0) is outage
    assert outage.next_probe_in(200.0) == 120.0


def test_an_outage_began_with_the_first_failure_after_the_last_answer():
    state = ApiState(max_outage=900.0)
    assert state.out_for(10.0, failing_since=4.0) == 6.0
    state.answered(7.0)
    assert state.out_for(10.0, failing_since=4.0) == 3.0
    assert state.out_for(10.0, failing_since=8.0) == 2.0
    state.out(BUSY, 10.0, failing_since=8.0, max_retry_after=120.0)
    assert state.out_for(11.0, failing_since=10.5) == 3.0


def test_an_answer_ends_the_outage_and_forgets_what_failed_in_it():
    state = ApiState(max_outage=900.0)
    state.failing.add("m1")
    state.retries.record(4, succeeded=False)
    state.out(BUSY, 10.0, failing_since=8.0, max_retry_after=120.0)
    state.answered(12.0)
    assert state.outage is None
    assert not state.failing
    assert state.retries.share == 1.0
    state.succeeded(sent_at=11.0, retries=0)
    state.succeeded(sent_at=9.0, retries=3)
    assert state.newest_success == 11.0
    assert state.answers == 1
