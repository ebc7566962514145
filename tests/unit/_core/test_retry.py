"""The policy and the budget are arithmetic: time and chance are handed to them."""

from __future__ import annotations

import copy
import pickle
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sinch_conv_async import (
    ApiError,
    CallTimeoutError,
    InvalidArgumentError,
    RetryPolicy,
    TransportError,
)
from sinch_conv_async._core.retry import (
    Again,
    GiveUp,
    Renew,
    RetryBudget,
    Tries,
    WaitForBudget,
    next_step,
)
from sinch_conv_async._wire.failure import Failure

SECONDS = st.floats(0, 1000)


class Edge(Random):
    """Chance at one of its ends: uniform(a, b) is a for 0.0 and b for 1.0."""

    def __init__(self, share):
        self.share = share

    def uniform(self, a, b):
        return a + (b - a) * self.share


LOW, HIGH = Edge(0.0), Edge(1.0)


def test_the_policy_has_the_defaults_that_are_promised():
    policy = RetryPolicy()
    assert (policy.max_retries, policy.base_delay, policy.max_delay, policy.max_retry_after) == (
        4,
        0.5,
        20.0,
        120.0,
    )
    assert policy.retry_maybe_sent is True


@pytest.mark.parametrize("name", ["base_delay", "max_delay", "max_retry_after"])
@pytest.mark.parametrize(
    "value",
    [
        -1,
        -0.001,
        float("nan"),
        float("inf"),
        float("-inf"),
        10**400,
        None,
        "1",
        True,
        False,
        1j,
        b"1",
        [1],
    ],
)
def test_seconds_that_are_none_are_refused_by_name(name, value):
    with pytest.raises(
        InvalidArgumentError, match=rf"^{name} must be a finite number of seconds, 0 or more$"
    ):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("value", [-1, 1.0, True, False, None, "4", float("inf")])
def test_a_number_of_retries_that_is_none_is_refused(value):
    with pytest.raises(
        InvalidArgumentError, match=r"^max_retries must be a whole number, 0 or more$"
    ):
        RetryPolicy(max_retries=value)


@pytest.mark.parametrize("value", [None, 0, 1, "no"])
def test_retry_maybe_sent_is_yes_or_no(value):
    with pytest.raises(InvalidArgumentError, match=r"^retry_maybe_sent must be True or False$"):
        RetryPolicy(retry_maybe_sent=value)
    with pytest.raises(InvalidArgumentError, match=r"^wait_for_budget must be True or False$"):
        RetryPolicy(wait_for_budget=value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": 0},
        {"max_retries": 10**30},
        {"base_delay": 0, "max_delay": 0, "max_retry_after": 0},
        {"base_delay": 1.7976931348623157e308, "max_delay": 1.7976931348623157e308},
    ],
)
def test_a_policy_at_its_limits_is_a_policy(options):
    policy = RetryPolicy(**options)
    for retries in (0, 1, 100, 10**6):
        assert policy.delay(retries=retries, retry_after=None, rng=LOW) == 0
        assert 0 <= policy.delay(retries=retries, retry_after=None, rng=HIGH) <= policy.max_delay


def test_a_policy_takes_keywords_only():
    with pytest.raises(TypeError):
        RetryPolicy(4)


def test_a_policy_is_a_value():
    policy = RetryPolicy(max_retries=2)
    assert (
        policy
        == RetryPolicy(max_retries=2)
        == copy.copy(policy)
        == pickle.loads(pickle.dumps(policy))
    )
    assert hash(policy) == hash(RetryPolicy(max_retries=2))


@pytest.mark.parametrize(
    ("helps", "applied", "retry_maybe_sent", "allowed"),
    [
        (True, False, True, True),
        (True, True, True, True),
        (True, False, False, True),
        (True, True, False, False),
        (False, False, True, False),
        (False, True, True, False),
        (False, False, False, False),
    ],
)
def test_a_failure_is_retried_when_it_helps_and_a_repeat_can_do_no_harm_that_is_minded(
    helps, applied, retry_maybe_sent, allowed
):
    failure = Failure(TransportError(), retryable=helps, maybe_applied=applied)
    assert RetryPolicy(retry_maybe_sent=retry_maybe_sent).allows(failure) is allowed


@pytest.mark.parametrize(
    ("retry_after", "too_long"),
    [(None, False), (0.0, False), (120.0, False), (120.001, True), (2.0**31, True)],
)
def test_patience_ends_above_max_retry_after(retry_after, too_long):
    assert RetryPolicy().too_long(retry_after) is too_long


def test_the_delay_doubles_up_to_its_maximum():
    policy = RetryPolicy(base_delay=0.5, max_delay=20)
    longest = [policy.delay(retries=retries, retry_after=None, rng=HIGH) for retries in range(9)]
    assert longest == [0.5, 1, 2, 4, 8, 16, 20, 20, 20]


def test_the_delay_is_spread_from_nothing_to_its_maximum():
    policy, rng = RetryPolicy(base_delay=1, max_delay=8), Random(20)
    delays = [policy.delay(retries=3, retry_after=None, rng=rng) for _ in range(1000)]
    assert all(0 <= delay <= 8 for delay in delays)
    assert min(delays) < 0.1
    assert max(delays) > 7.9
    assert 3.7 < sum(delays) / 1000 < 4.3


@given(SECONDS, SECONDS, st.integers(0, 5000), st.integers())
@example(base_delay=1000.0, max_delay=1000.0, retries=5000, seed=0)
def test_no_delay_leaves_its_bounds(base_delay, max_delay, retries, seed):
    policy = RetryPolicy(base_delay=base_delay, max_delay=max_delay)
    delay = policy.delay(retries=retries, retry_after=None, rng=Random(seed))
    assert 0 <= delay <= min(max_delay, base_delay * 2.0 ** min(retries, 64))


@given(SECONDS, st.floats(0, 2.0**31), st.integers(0, 5000), st.integers())
def test_what_the_server_asks_for_is_kept_to_and_spread_a_little(
    base_delay, retry_after, retries, seed
):
    policy = RetryPolicy(base_delay=base_delay)
    delay = policy.delay(retries=retries, retry_after=retry_after, rng=Random(seed))
    assert retry_after <= delay <= retry_after + base_delay


def test_a_call_that_was_throttled_again_steps_back_half_its_delay_at_least():
    policy = RetryPolicy(base_delay=0.5, max_delay=20)
    delays = [
        (policy.throttled_delay(times, rng=LOW), policy.throttled_delay(times, rng=HIGH))
        for times in range(2, 10)
    ]
    assert [longest for _, longest in delays] == [0.5, 1, 2, 4, 8, 16, 20, 20]
    assert all(shortest == longest / 2 for shortest, longest in delays)
    assert policy.throttled_delay(10**6, rng=HIGH) == 20


# The budget


def retried(budget, now):
    """Whether a retry was allowed; it is sent at once."""
    if not budget.allows(now):
        return False
    budget.reserve()
    budget.retry_sent(now)
    budget.release()
    return True


def taken(budget, now, wanted=10_000):
    """How many retries the budget gives out at this moment, when asked for as many as this."""
    return sum(retried(budget, now) for _ in range(wanted))


@pytest.mark.parametrize(
    ("calls", "retries"), [(0, 100), (1, 100), (4, 100), (5, 101), (100, 120), (8000, 1700)]
)
def test_a_fifth_of_the_calls_and_ten_a_second_may_be_retried(calls, retries):
    budget = RetryBudget()
    for _ in range(calls):
        budget.call_sent(1000.5)
    assert taken(budget, 1000.9) == retries
    assert not budget.allows(1000.99)


def test_asking_takes_nothing():
    budget = RetryBudget()
    assert all(budget.allows(5.0) for _ in range(1000))
    assert taken(budget, 5.0) == 100


def test_calls_of_ten_seconds_count_and_older_ones_do_not():
    budget = RetryBudget()
    for second in range(20):
        for _ in range(100):
            budget.call_sent(second + 0.5)
    assert taken(budget, 19.9) == 0.2 * 1000 + 100


def test_retries_come_back_once_they_are_ten_seconds_old():
    budget = RetryBudget()
    assert taken(budget, 50.0) == 100
    assert taken(budget, 59.999) == 0
    assert taken(budget, 60.0) == 100


def test_an_idle_month_costs_no_more_than_an_idle_minute():
    """The steps are counted by the slots that are looked at."""

    class Slots(list):
        looked_at = 0

        def __setitem__(self, index, value):
            Slots.looked_at += 1
            super().__setitem__(index, value)

    budget = RetryBudget()
    budget._calls = Slots(budget._calls)
    assert budget.allows(30 * 86400.0)
    assert Slots.looked_at == RetryBudget.WINDOW


@pytest.mark.parametrize("gap", [10.0, 11.0, 19.0, 3600.0, 1e9, 1e15])
def test_after_a_long_gap_the_budget_is_as_new(gap):
    budget = RetryBudget()
    for _ in range(1000):
        budget.call_sent(7.0)
    assert taken(budget, 7.0) == 300
    assert taken(budget, 7.0 + gap) == 100


@given(
    st.floats(0, 1e9),
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.1, 0.4, 1.0, 3.3, 9.0, 9.99, 10.0, 11.0, 100.0]),
            st.sampled_from(["call", "take"]),
            st.integers(1, 60),
        ),
        max_size=40,
    ),
)
def test_the_budget_is_what_counting_everything_again_would_give(start, steps):
    budget, calls, retries, now = RetryBudget(), [], [], start
    for passed, kind, times in steps:
        now += passed
        second = int(now)
        for _ in range(times):
            if kind == "call":
                budget.call_sent(now)
                calls.append(second)
                continue
            recent_calls = sum(second - 10 < one <= second for one in calls)
            recent_retries = sum(second - 10 < one <= second for one in retries)
            allowed = recent_retries + 1 <= 0.2 * recent_calls + 100
            assert budget.allows(now) is allowed
            assert retried(budget, now) is allowed
            if allowed:
                retries.append(second)


def test_a_retry_takes_its_place_from_the_decision_until_ten_seconds_after_it_was_sent():
    budget = RetryBudget()
    for _ in range(100):
        budget.reserve()
    assert not budget.allows(50.0)
    assert not budget.allows(500.0)  # all of them wait for their turn still
    for _ in range(100):
        budget.retry_sent(500.0)
        budget.release()
    assert not budget.allows(509.9)
    assert budget.allows(510.0)


def test_a_retry_counts_from_the_second_in_which_it_was_sent():
    budget = RetryBudget()
    for now, times in ((3.0, 60), (12.0, 40)):
        for _ in range(times):
            budget.reserve()
        for _ in range(times):
            budget.retry_sent(now)  # nobody has looked in this second before
            budget.release()
    assert taken(budget, 13.5) == 60


def test_a_retry_that_is_not_made_gives_its_place_back():
    budget = RetryBudget()
    for _ in range(100):
        budget.reserve()
    budget.release()
    assert taken(budget, 1.0) == 1


def test_retries_that_are_gone_with_their_event_loop_leave_the_budget():
    budget = RetryBudget()
    for _ in range(100):
        budget.reserve()
    budget.forget_reserved()
    assert taken(budget, 1.0) == 100


def test_calls_that_wait_allow_no_retries():
    """A gather of many calls begins them all at once and sends them over a long time."""
    budget = RetryBudget()
    retries = 0
    for second in range(50):
        for _ in range(800):
            budget.call_sent(second + 0.5)
            retries += retried(budget, second + 0.5)  # each of them fails: an outage
    assert retries <= 0.2 * 50 * 800 + 10 * 50


# The next step

OTHER = TransportError("no connection")
POLICY = RetryPolicy(max_retries=2, base_delay=1.0)


def api(status, retry_after=None, **options):
    error = ApiError(http_status=status, retry_after=retry_after)
    options.setdefault("retryable", status in (408, 429, 500, 502, 503, 504))
    return Failure(error, retry_after=retry_after, **options)


def step(failure, tries, policy=POLICY, **options):
    given = {
        "safe": False,
        "blocked_for": 0.0,
        "budget_left": True,
        "now": 100.0,
        "deadline": None,
        "rng": HIGH,
    }
    return next_step(failure, tries, policy, **{**given, **options})


RESET = Failure(OTHER, retryable=True, maybe_applied=True)
STALE = Failure(OTHER, retryable=True, maybe_applied=True, stale_connection=True)
ONCE = RetryPolicy(retry_maybe_sent=False)
NEVER = RetryPolicy(max_retries=0)
PATIENT = RetryPolicy(wait_for_budget=True)


@pytest.mark.parametrize(
    ("failure", "tries", "options", "expected"),
    [
        # A failure is retried after a delay, out of the budget, max_retries times.
        (RESET, Tries(), {}, Again(1.0, Tries(retries=1), budgeted=True)),
        (RESET, Tries(retries=1), {}, Again(2.0, Tries(retries=2), budgeted=True)),
        (RESET, Tries(retries=2), {}, "give up"),
        (RESET, Tries(throttled=3), {}, Again(1.0, Tries(retries=1), budgeted=True)),
        (RESET, Tries(), {"rng": LOW}, Again(0.0, Tries(retries=1), budgeted=True)),
        (api(503), Tries(), {}, Again(1.0, Tries(retries=1), budgeted=True)),
        (api(503, retry_after=7.0), Tries(), {}, Again(8.0, Tries(retries=1), budgeted=True)),
        (api(503, retry_after=121.0), Tries(), {}, "give up"),
        (api(408), Tries(), {}, Again(1.0, Tries(retries=1), budgeted=True)),
        (RESET, Tries(), {"policy": NEVER}, "give up"),
        # What cannot change is not.
        (api(400), Tries(), {}, "give up"),
        (api(404), Tries(), {}, "give up"),
        (Failure(OTHER, retryable=False), Tries(), {}, "give up"),
        # What may have been applied, only if the policy or the operation allows it.
        (RESET, Tries(), {"policy": ONCE}, "give up"),
        (
            RESET,
            Tries(),
            {"policy": ONCE, "safe": True},
            Again(0.5, Tries(retries=1), budgeted=True),
        ),
        (
            Failure(OTHER, retryable=True),
            Tries(),
            {"policy": ONCE},
            Again(0.5, Tries(retries=1), budgeted=True),
        ),
        # The budget.
        (RESET, Tries(), {"budget_left": False}, "out of budget"),
        (RESET, Tries(), {"budget_left": False, "policy": PATIENT}, WaitForBudget(1.5)),
        (RESET, Tries(), {"budget_left": False, "policy": PATIENT, "rng": LOW}, WaitForBudget(0.5)),
        (
            RESET,
            Tries(),
            {"budget_left": False, "policy": PATIENT, "deadline": 101.5},
            WaitForBudget(1.5),
        ),
        (
            RESET,
            Tries(),
            {"budget_left": False, "policy": PATIENT, "deadline": 101.4},
            "out of budget",
        ),
        (RESET, Tries(retries=4), {"budget_left": False, "policy": PATIENT}, "give up"),
        (api(429), Tries(), {"budget_left": False}, Again(0.0, Tries(throttled=1))),
        (STALE, Tries(), {"budget_left": False}, Again(0.0, Tries(retries=1, reconnected=True))),
        # A stale connection is replaced at once, and once.
        (STALE, Tries(), {}, Again(0.0, Tries(retries=1, reconnected=True))),
        (
            STALE,
            Tries(reconnected=True),
            {},
            Again(1.0, Tries(retries=1, reconnected=True), budgeted=True),
        ),
        (STALE, Tries(retries=2), {}, "give up"),
        (STALE, Tries(), {"policy": ONCE}, "give up"),
        # A 429 waits for its turn as often as it takes, and steps back when it comes again.
        (api(429), Tries(), {}, Again(0.0, Tries(throttled=1))),
        (api(429), Tries(throttled=1), {}, Again(1.0, Tries(throttled=2))),
        (api(429), Tries(throttled=2), {}, Again(2.0, Tries(throttled=3))),
        (api(429), Tries(retries=2, throttled=50), {}, Again(20.0, Tries(retries=2, throttled=51))),
        (api(429, retry_after=5.0), Tries(throttled=7), {}, Again(0.0, Tries(throttled=8))),
        (api(429, retry_after=121.0), Tries(), {}, "give up"),
        (api(429), Tries(), {"policy": NEVER}, "give up"),
        (api(429), Tries(), {"policy": ONCE}, Again(0.0, Tries(throttled=1))),
        (api(429), Tries(), {"blocked_for": 59.9}, Again(0.0, Tries(throttled=1))),
        (api(429), Tries(), {"blocked_for": 60.0}, "give up"),
        (api(503), Tries(), {"blocked_for": 1e9}, Again(1.0, Tries(retries=1), budgeted=True)),
        # A 401 is answered by another token, once.
        (api(401), Tries(), {}, Renew(Tries(replayed=True))),
        (api(401), Tries(retries=2), {"policy": NEVER}, Renew(Tries(retries=2, replayed=True))),
        (api(401), Tries(replayed=True), {}, "give up"),
        # The deadline.
        (RESET, Tries(), {"deadline": 101.0}, Again(1.0, Tries(retries=1), budgeted=True)),
        (RESET, Tries(), {"deadline": 100.9}, "too late"),
        (api(429), Tries(throttled=1), {"deadline": 100.9}, "too late"),
        (api(429), Tries(), {"deadline": 100.0}, Again(0.0, Tries(throttled=1))),
        (STALE, Tries(), {"deadline": 99.0}, Again(0.0, Tries(retries=1, reconnected=True))),
    ],
)
def test_what_comes_after_a_failed_attempt(failure, tries, options, expected):
    failure = failure._replace(error=copy.copy(failure.error))
    found = step(failure, tries, **options)
    if isinstance(expected, str):
        assert isinstance(found, GiveUp)
        assert (found.error is failure.error) is (expected != "too late")
        if expected == "too late":
            assert isinstance(found.error, CallTimeoutError)
            assert found.error.message == "no other attempt can be made before the timeout"
        assert found.error.given_up == (
            "the project's retry budget is used up" if "budget" in expected else None
        )
    else:
        assert found == expected
