"""The policy and the budget are arithmetic: time and chance are handed to them."""

from __future__ import annotations

import copy
import pickle
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sinch_conv_async import InvalidArgumentError, RetryPolicy, TransportError
from sinch_conv_async._core.retry import RetryBudget
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
    [-1, -0.001, float("nan"), float("inf"), float("-inf"), 10**400, None, "1", True, False, 1j, b"1", [1]],
)
def test_seconds_that_are_none_are_refused_by_name(name, value):
    with pytest.raises(
        InvalidArgumentError, match=rf"^{name} must be a finite number of seconds, 0 or more$"
    ):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("value", [-1, 1.0, True, False, None, "4", float("inf")])
def test_a_number_of_retries_that_is_none_is_refused(value):
    with pytest.raises(InvalidArgumentError, match=r"^max_retries must be a whole number, 0 or more$"):
        RetryPolicy(max_retries=value)


@pytest.mark.parametrize("value", [None, 0, 1, "no"])
def test_retry_maybe_sent_is_yes_or_no(value):
    with pytest.raises(InvalidArgumentError, match=r"^retry_maybe_sent must be True or False$"):
        RetryPolicy(retry_maybe_sent=value)


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
    assert policy == RetryPolicy(max_retries=2) == copy.copy(policy) == pickle.loads(pickle.dumps(policy))
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
def test_what_the_server_asks_for_is_kept_to_and_spread_a_little(base_delay, retry_after, retries, seed):
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


def taken(budget, now, wanted=10_000):
    """How many retries the budget gives out at this moment, when asked for as many as this."""
    return sum(budget.take(now) for _ in range(wanted))


@pytest.mark.parametrize(
    ("calls", "retries"), [(0, 100), (1, 100), (4, 100), (5, 101), (100, 120), (8000, 1700)]
)
def test_a_fifth_of_the_calls_and_ten_a_second_may_be_retried(calls, retries):
    budget = RetryBudget()
    for _ in range(calls):
        budget.call(1000.5)
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
            budget.call(second + 0.5)
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
        budget.call(7.0)
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
                budget.call(now)
                calls.append(second)
                continue
            recent_calls = sum(second - 10 < one <= second for one in calls)
            recent_retries = sum(second - 10 < one <= second for one in retries)
            allowed = recent_retries + 1 <= 0.2 * recent_calls + 100
            assert budget.allows(now) is allowed
            assert budget.take(now) is allowed
            if allowed:
                retries.append(second)
