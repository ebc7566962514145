"""The pace is arithmetic: every fact here is checked with times that the test makes up."""

import itertools
import math
import random
import tracemalloc
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinch_conv_async._core.pace import Pace


@pytest.fixture
def rng():
    return random.Random(20)


def steady(pace, *, seconds, start=1000.0, stalls=None, tick=0.001, rng=None):
    """The departures of a supply that never runs dry, from an event loop that is late by its timers
    and its stalls.
    """
    rng = rng or random.Random(4)
    departures = []
    now = start
    stalled = start if stalls else math.inf
    while now < start + seconds:
        while pace.due <= now:
            pace.depart(now)
            departures.append(now)
        now = max(now, pace.due) + rng.uniform(0.0, tick)
        if now >= stalled:
            a_second, shortest, longest = stalls
            now = max(now, stalled + rng.uniform(shortest, longest))
            stalled = now + rng.expovariate(a_second)
    return departures


def most_in(departures, window):
    """The most departures that a half-open window of that length holds."""
    most = first = 0
    for last, departure in enumerate(departures):
        while departures[first] + window <= departure:
            first += 1
        most = max(most, last - first + 1)
    return most


class Longest(random.Random):
    """Chance at its upper end."""

    def uniform(self, a, b):
        return b


def climb_back(pace, now):
    """Departures until the pace is what it was; the time of the last one."""
    while pace.rate < pace.limit:
        now = max(now + 0.01, pace.due)
        pace.depart(now)
    return now


# The limit


@pytest.mark.parametrize("limit", [-1, math.inf, math.nan])
def test_a_limit_is_a_finite_number_that_is_not_negative(limit):
    with pytest.raises(
        ValueError, match="limit must be a number of requests a second, 0 or more, or None"
    ):
        Pace(limit)


@pytest.mark.parametrize("limit", [0, 0.0])
def test_a_limit_of_0_lets_nothing_depart_until_another_is_set(limit):
    pace = Pace(limit)
    assert pace.limit == pace.rate == pace.rate_at(5.0) == 0
    assert pace.due == math.inf
    pace.limit = 2
    assert pace.due <= 5.0
    assert pace.rate == 2


@pytest.mark.parametrize("before", [None, 100])
def test_what_has_departed_before_a_limit_of_0_counts_after_it(before, rng):
    pace = Pace(before)
    for call in range(100):
        pace.depart(1.0 + call / 100)
    pace.admit(2.0)
    pace.admit(2.0)
    pace.limit = 0
    pace.left(2.0)
    pace.refund()
    pace.throttled(2.0, departed=1.99, retry_after=None, rng=rng)
    assert pace.due == math.inf
    pace.limit = 50
    assert (pace.due > 2.5) == (before is not None)
    assert pace.due < 3.1
    assert pace.rate <= 50
    assert most_in(steady(pace, seconds=2.0, start=3.0), 1.0) <= 50


@pytest.mark.parametrize("seconds", [0.0, 3.0])
def test_a_limit_of_0_may_be_set_while_the_pace_is_lowered(seconds, rng):
    pace = Pace(800)
    departures = steady(pace, seconds=1.0)
    pace.throttled(departures[-1], departed=departures[-1], retry_after=None, rng=rng)
    rate = pace.rate
    pace.limit = 0
    pace.limit = 800
    assert pace.rate == rate
    steady(pace, seconds=5.0, start=departures[-1])
    assert pace.rate > rate


def test_a_pause_of_the_fleet_is_never_made_shorter():
    pace = Pace(800)
    pace.pause(50.0)
    pace.pause(20.0)
    assert pace.due == pace.paused_until == 50.0


def test_the_first_departure_is_due_at_once():
    assert Pace(800).due <= 0.0


@given(
    limit=st.one_of(st.integers(1, 60), st.floats(1.0, 60.0)),
    start=st.floats(0, 1e6),
    waits=st.lists(
        st.one_of(st.just(0.0), st.floats(0, 0.1), st.floats(0, 1.5)), min_size=60, max_size=200
    ),
    seed=st.integers(0, 1000),
)
def test_no_window_of_a_second_holds_more_than_the_limit(limit, start, waits, seed):
    pace = Pace(limit)
    choice = random.Random(seed)
    now = start
    departures = []
    for wait in waits:
        now += wait
        while pace.due <= now:
            pace.admit(now)
            if choice.random() < 0.1:
                pace.idle()
            if choice.random() < 0.1:
                pace.refund()
            else:
                pace.left(now)
                departures.append(now)
    whole = math.floor(limit)
    assert all(
        later - earlier >= 1.0
        for earlier, later in zip(departures, departures[whole:], strict=False)
    )


@settings(deadline=None)
@given(
    limit=st.one_of(st.integers(1, 60), st.floats(0.2, 60.0)),
    waits=st.lists(
        st.one_of(st.just(0.0), st.floats(0, 0.1), st.floats(0, 1.5)), min_size=60, max_size=200
    ),
    longest=st.sampled_from([0.0, 0.05, 0.4, 3.0]),
    seed=st.integers(0, 1000),
)
def test_no_window_holds_more_writes_than_the_limit_however_late_each_call_writes(
    limit, waits, longest, seed
):
    """A stalled event loop, a slow handshake: the writes come at other times than the admissions,
    and bunch up.
    """
    pace = Pace(limit)
    choice = random.Random(seed)
    now = 1000.0
    opening, writes = [], []
    for wait in waits:
        now += wait
        while opening and opening[0] <= now:
            opening.pop(0)
            if choice.random() < 0.1:
                pace.refund()
            else:
                pace.left(now)
                writes.append(now)
        while pace.due <= now:
            pace.admit(now)
            opening.append(now + choice.uniform(0.0, longest))
        opening.sort()
    whole = max(1, math.floor(limit))
    span = 1.0 if limit >= 1 else 1 / limit
    assert all(
        later - earlier >= span for earlier, later in zip(writes, writes[whole:], strict=False)
    )


def test_nothing_is_due_while_every_place_is_taken_by_a_call_that_has_not_written():
    pace = Pace(2)
    for _ in range(2):
        pace.admit(max(1000.0, pace.due))
    assert pace.due == math.inf
    assert pace.left(1003.0)
    assert pace.due == pytest.approx(1004.0)
    pace.refund()
    assert pace.due < 1003.0


def test_a_write_that_leaves_room_brings_nothing_nearer():
    pace = Pace(2)
    pace.admit(1000.0)
    due = pace.due
    assert not pace.left(1000.1)
    assert pace.due == due


def test_a_limit_that_is_lowered_below_what_has_not_written_waits_for_it():
    pace = Pace(20)
    for _ in range(5):
        pace.admit(max(1000.0, pace.due))
    pace.limit = 3
    assert pace.due == math.inf
    pace.left(1001.0)
    pace.left(1001.0)
    assert pace.due == math.inf
    pace.left(1001.0)
    assert pace.due == pytest.approx(1002.0)
    pace.limit = 20
    assert pace.due < 1001.1


def test_calls_that_are_lost_with_their_event_loop_leave_the_window():
    pace = Pace(1)
    pace.admit(1000.0)
    assert pace.due == math.inf
    pace.lost()
    assert pace.due < 1002.0


@given(
    limit=st.floats(0.001, 0.999),
    start=st.floats(0, 1e6),
    late=st.lists(st.floats(0, 3), max_size=50),
)
def test_below_one_a_second_departures_are_a_full_interval_apart(limit, start, late):
    pace = Pace(limit)
    pace.depart(start)
    last = start
    for wait in late:
        now = pace.due + wait
        assert now - last >= 1 / limit
        pace.depart(now)
        last = now


@settings(deadline=None)
@given(
    limits=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    steps=st.integers(1, 40),
    gap=st.floats(0, 0.2),
)
def test_a_changed_limit_counts_what_has_departed_already(limits, steps, gap):
    pace = Pace(30)
    departures = []
    now = 0.0
    for limit in limits:
        pace.limit = limit
        assert pace.limit == limit
        for _ in range(steps):
            if pace.due <= now:
                pace.depart(now)
                departures.append(now)
                assert sum(now - departure < 1.0 for departure in departures) <= limit
            else:
                now = min(pace.due, now + gap) if gap else pace.due


def test_a_limit_that_was_lowered_and_raised_again_allows_nothing_twice():
    pace = Pace(100)
    departures = steady(pace, seconds=1.0, start=0.0)
    pace.limit = 50
    pace.limit = 100
    departures += steady(pace, seconds=3.0, start=departures[-1])
    assert most_in(departures, 1.0) <= 100


def test_what_a_lower_limit_made_it_forget_is_taken_to_be_as_late_as_it_can_have_been():
    pace = Pace(20)
    departures = steady(pace, seconds=0.5, start=1000.0)
    pace.limit = 1
    pace.limit = 20
    assert pace.due == pytest.approx(departures[-2] + 1.0)


def test_a_raised_limit_is_used():
    pace = Pace(10)
    steady(pace, seconds=5.0, start=0.0)
    pace.limit = 100
    assert len(steady(pace, seconds=10.0, start=5.0)) >= 980


@pytest.mark.parametrize("limit", [800, None])
def test_a_limit_that_is_raised_or_taken_away_is_not_waited_for_any_more(limit):
    pace = Pace(0.01)
    pace.depart(1000.0)
    assert pace.due > 1099.0
    pace.limit = limit
    assert pace.due <= 1001.1


def test_what_waited_for_a_lower_limit_does_not_depart_all_at_once():
    pace = Pace(1)
    pace.depart(1000.0)
    pace.limit = 800
    departures = steady(pace, seconds=1.0, start=1000.9, tick=0.0)
    assert most_in(departures, 0.05) <= 41


def test_a_limit_that_is_raised_in_a_pause_does_not_end_it(rng):
    pace = Pace(1)
    pace.depart(1000.0)
    pace.throttled(1000.1, departed=1000.0, retry_after=7.0, rng=rng)
    pace.limit = 800
    assert pace.due == 1007.1
    assert most_in(steady(pace, seconds=1.0, start=1007.1, tick=0.0), 0.05) <= 41


def test_a_limit_may_be_taken_away_and_set_again():
    pace = Pace(1)
    pace.depart(5.0)
    assert pace.due > 6.0
    pace.limit = None
    pace.limit = 2
    assert pace.rate == 2
    pace.depart(6.1)
    pace.depart(pace.due)
    assert pace.due > 7.1


def test_without_a_limit_everything_is_due_at_once():
    pace = Pace(None)
    for _ in range(10_000):
        assert pace.due <= 7.0
        pace.depart(7.0)
    pace.admit(7.0)
    pace.refund()
    assert pace.due <= 7.0
    assert pace.rate == pace.rate_at(7.0) == math.inf


def test_a_million_a_second_takes_memory_only_once_they_depart():
    tracemalloc.start()
    try:
        paces = [Pace(1_000_000) for _ in range(100)]
        for pace in paces:
            for second in range(100):
                pace.depart(float(second))
        assert tracemalloc.get_traced_memory()[0] / len(paces) < 1500
    finally:
        tracemalloc.stop()


# The supply


@pytest.mark.parametrize("limit", [1, 2, 7, 50, 800, 3000])
@pytest.mark.parametrize("stalls", [None, (3, 0.010, 0.050), (5, 0.010, 0.050), (10, 0.010, 0.050)])
def test_a_steady_supply_reaches_98_percent_though_the_loop_stalls(limit, stalls):
    seconds = max(20, 100 / limit)
    departures = steady(Pace(limit), seconds=seconds, stalls=stalls)
    assert len(departures) >= 0.98 * limit * seconds
    assert most_in(departures, 1.0) <= limit


def test_without_stalls_departures_are_evenly_spaced():
    departures = steady(Pace(800), seconds=5.0, tick=0.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(departures)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)
    assert 1 / 800 <= min(gaps) <= 1.01 / 800


@given(
    limit=st.sampled_from([20, 100, 800]),
    busy=st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 100)), min_size=1, max_size=15),
)
def test_idleness_saves_up_no_burst(limit, busy):
    pace = Pace(limit)
    departures = []
    now = 0.0
    for idle, calls in busy:
        now += idle
        for _ in range(calls):
            now = max(now, pace.due)
            pace.depart(now)
            departures.append(now)
        pace.idle()
    assert most_in(departures, 0.05) <= 0.05 * limit + 1


@pytest.mark.parametrize(("limit", "at_once"), [(4, 4), (50, 8)])
def test_in_a_fleet_a_few_may_leave_at_once_after_idleness_and_the_window_holds(limit, at_once):
    pace = Pace(None)
    pace.burst = 8
    pace.limit = limit
    departures = []
    for began in (100.0, 200.0):
        pace.idle()
        now = began
        for _ in range(30):
            now = max(now, pace.due)
            pace.depart(now)
            pace.idle()
            departures.append(now)
        assert sum(began <= at < began + 0.001 for at in departures) == at_once
    assert most_in(departures, 1.0) <= limit


def test_what_idleness_saved_up_at_a_low_limit_is_no_larger_burst_at_a_high_one():
    pace = Pace(None)
    pace.burst = 8
    pace.limit = 8
    pace.idle()
    pace.depart(100.0)
    pace.idle()
    pace.limit = 800
    departures = []
    now = 200.0
    for _ in range(100):
        now = max(now, pace.due)
        pace.depart(now)
        departures.append(now)
    assert most_in(departures, 0.05) <= 0.05 * 800 + 8


def test_a_higher_limit_makes_up_for_no_more_requests_than_were_late():
    pace = Pace(80)
    pace.depart(100.0)
    now = 100.2  # 16 requests late
    pace.depart(now)
    pace.limit = 800
    departures = []
    for _ in range(100):
        now = max(now, pace.due)
        pace.depart(now)
        departures.append(now)
    assert departures.count(100.2) <= 21


def test_the_burst_that_catches_up_after_a_stall_does_not_come_back_each_second():
    pace = Pace(400)
    before = steady(pace, seconds=2.0)
    after = steady(pace, seconds=5.0, start=before[-1] + 0.6)
    assert most_in(before + after, 1.0) <= 400
    assert most_in(after, 0.05) >= 100
    assert most_in([departure for departure in after if departure > after[0] + 0.9], 0.05) <= 42
    assert len(after) >= 0.98 * 400 * 5


def test_lateness_of_more_than_a_quarter_of_a_second_is_not_made_up_for():
    pace = Pace(100)
    pace.depart(0.0)
    departures = 0
    while pace.due <= 10.0:
        pace.depart(10.0)
        departures += 1
    assert 25 <= departures <= 26


def test_a_departure_that_was_not_made_is_given_back():
    pace = Pace(2)
    pace.depart(1000.0)
    first = pace.due
    pace.admit(first)
    assert pace.due > 1001.0
    pace.refund()
    assert pace.due == pytest.approx(first)


# Congestion


def test_a_429_pauses_everyone_for_a_tenth_of_a_second_at_most(rng):
    for seed in range(50):
        pace = Pace(800)
        now = 10.0
        for _ in range(8):
            pace.depart(now)
            pace.throttled(now, departed=now, retry_after=None, rng=random.Random(seed))
            assert now < pace.paused_until <= now + 0.1
            assert pace.due >= pace.paused_until
            now = pace.due


@pytest.mark.parametrize("limit", [None, 800])
def test_retry_after_is_how_long_the_pause_is(limit, rng):
    pace = Pace(limit)
    pace.depart(1.0)
    pace.throttled(1.1, departed=1.0, retry_after=7.0, rng=rng)
    assert pace.due == pace.paused_until == 1.1 + 7.0


def test_a_pause_that_ends_before_the_next_turn_does_not_put_it_off(rng):
    pace = Pace(0.1)
    pace.depart(1.0)
    due = pace.due
    pace.throttled(1.1, departed=1.0, retry_after=None, rng=rng)
    assert pace.due == due


def test_without_a_limit_a_429_pauses_and_no_more(rng):
    pace = Pace(None)
    pace.depart(1.0)
    pace.throttled(1.0, departed=1.0, retry_after=None, rng=rng)
    assert 1.0 < pace.due <= 1.1
    assert pace.rate == math.inf


def test_what_the_pause_held_back_does_not_depart_all_at_once(rng):
    pace = Pace(100)
    pace.depart(1.0)
    pace.throttled(1.0, departed=1.0, retry_after=2.0, rng=rng)
    departures = steady(pace, seconds=1.0, start=pace.paused_until, tick=0.0)
    assert most_in(departures, 0.05) <= 6


def test_one_congestion_lowers_the_pace_once(rng):
    pace = Pace(800)
    for call in range(5):
        pace.depart(1.0 + call / 700)
    pace.throttled(1.1, departed=1.0, retry_after=None, rng=rng)
    rate, paused_until = pace.rate, pace.paused_until
    assert rate == pytest.approx(Pace.DECREASE_FACTOR * 800)
    for call in range(5):
        pace.throttled(1.2, departed=1.0 + call / 700, retry_after=None, rng=rng)
    assert (pace.rate, pace.paused_until) == (rate, paused_until)


def test_the_longest_retry_after_of_one_congestion_is_kept(rng):
    pace = Pace(800)
    pace.throttled(1.0, departed=0.9, retry_after=1.0, rng=rng)
    rate = pace.rate
    pace.throttled(1.1, departed=0.9, retry_after=3.0, rng=rng)
    pace.throttled(1.2, departed=0.9, retry_after=0.5, rng=rng)
    assert pace.paused_until == pytest.approx(4.1)
    assert pace.rate == rate


@pytest.mark.parametrize("refused", [1, 40, 100, 200, 300, 400])
def test_the_pace_falls_to_a_little_less_than_what_was_let_through(refused, rng):
    pace = Pace(800)
    times = [1.0 + call / 800 for call in range(400)]
    for departed in times:
        pace.depart(departed)
    for departed in times[:refused]:
        pace.throttled(1.5, departed=departed, retry_after=None, rng=rng)
    # By the first of them; what the others say counts when the congestion goes on.
    first = pace.rate
    assert first == pytest.approx(Pace.DECREASE_FACTOR * 399 / 0.5)
    now = pace.due
    pace.depart(now)
    pace.throttled(now, departed=now, retry_after=None, rng=rng)
    let_through = (400 - refused) / (now - 1.0)
    assert pace.rate == pytest.approx(
        max(Pace.DECREASE_FACTOR * min(first, let_through), Pace.LEAST * 800)
    )


def test_too_few_departures_say_nothing_about_what_is_let_through(rng):
    pace = Pace(800)
    for now in (1.0, 1.1, 1.2, 1.3):
        pace.depart(now)
    pace.throttled(1.3, departed=1.3, retry_after=None, rng=rng)
    assert pace.rate == pytest.approx(Pace.DECREASE_FACTOR * 800)


def test_five_departures_do_say_something(rng):
    pace = Pace(800)
    for call in range(5):
        pace.depart(1.0 + call / 500)
    pace.throttled(1.01, departed=1.0, retry_after=None, rng=rng)
    assert pace.rate == pytest.approx(Pace.DECREASE_FACTOR * 4 / 0.0125)


def test_who_sends_less_than_the_pace_is_slowed_no_further_than_by_a_touch(rng):
    """What it used is not what there is."""
    pace = Pace(800)
    for call in range(100):
        pace.depart(1.0 + call / 100)
    for call in range(50):
        pace.throttled(1.99, departed=1.0 + call / 100, retry_after=None, rng=rng)
    assert pace.rate == pytest.approx(Pace.DECREASE_FACTOR * 800)


def test_what_was_refused_more_than_a_second_ago_is_forgotten(rng):
    pace = Pace(800)
    for call in range(100):
        pace.depart(1.0 + call / 800)
        pace.throttled(1.2, departed=1.0 + call / 800, retry_after=60.0, rng=rng)
    low = pace.rate
    pace.throttled(61.3, departed=61.2, retry_after=60.0, rng=rng)
    assert len(pace._refused) == 1
    assert pace.rate < low


def test_a_congestion_that_goes_on_does_not_lower_the_pace_below_a_third_within_a_second(rng):
    pace = Pace(800)
    now = 0.0
    rates = [800.0]
    while now < 1.0:
        for _ in range(10):
            pace.depart(now)
        pace.throttled(now, departed=now, retry_after=2e-9, rng=rng)
        rates.append(pace.rate)
        now = max(pace.due, now + 0.05)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(Pace.LEAST * 800)
    now = 1.2
    pace.depart(now)
    pace.throttled(now, departed=now, retry_after=None, rng=rng)
    assert pace.rate < rates[-1]


def test_a_server_that_asks_for_a_wait_is_touched_less_often(rng):
    pace = Pace(800)
    pace.depart(1.0)
    pace.throttled(1.0, departed=1.0, retry_after=1.0, rng=rng)
    assert pace.rate == pytest.approx(Pace.DECREASE_FACTOR_ASKED * 800)


def test_pauses_double_while_congestion_goes_on_and_are_short_again_after_some_quiet(rng):
    pace = Pace(800)
    now = 0.0
    pauses = []
    for _ in range(6):
        pace.depart(now)
        pace.throttled(now, departed=now, retry_after=None, rng=Longest())
        pauses.append(pace.paused_until - now)
        now = pace.due
    assert pauses == pytest.approx([0.0125, 0.025, 0.05, 0.1, 0.1, 0.1])
    now = climb_back(pace, now)
    pace.throttled(now, departed=now, retry_after=None, rng=Longest())
    assert pace.paused_until == pytest.approx(now + 0.0125)


def test_the_pace_climbs_by_a_fixed_share_of_the_limit_a_second_and_no_further_than_the_limit(rng):
    pace = Pace(800)
    pace.depart(0.0)
    pace.throttled(0.0, departed=0.0, retry_after=1.0, rng=rng)
    low = pace.rate
    assert pace.rate_at(0.5) == low
    assert pace.rate_at(1.0) == low
    assert pace.rate_at(3.0) == pytest.approx(low + 2 * 0.015 * 800)
    assert pace.rate_at(1000.0) == 800
    for tenth in range(1, 21):
        pace.depart(1.0 + tenth / 10)
    assert pace.rate == pytest.approx(low + 2 * 0.015 * 800)
    pace.depart(1000.0)
    assert pace.rate == 800
    assert len(steady(pace, seconds=10.0, start=1000.01)) >= 7840


def test_it_does_not_climb_in_a_pause_that_another_429_had_asked_for(rng):
    pace = Pace(800)
    pace.depart(1.0)
    pace.throttled(1.1, departed=1.0, retry_after=0.5, rng=rng)
    pace.depart(2.0)
    pace.throttled(
        3.0, departed=0.9, retry_after=10.0, rng=rng
    )  # the answer to a request that took its time
    pace.throttled(3.1, departed=2.0, retry_after=None, rng=rng)
    assert pace.paused_until == 13.0
    low = pace.rate
    # Nor in the seconds after it, in which what the fall has changed is counted.
    assert pace.rate_at(15.3) == low
    assert pace.rate_at(16.3) == pytest.approx(low + Pace.INCREASE_PER_SECOND * 800)


def test_a_limit_that_is_raised_after_the_climb_holds_at_once(rng):
    pace = Pace(100)
    pace.depart(0.0)
    pace.throttled(0.0, departed=0.0, retry_after=None, rng=rng)
    climb_back(pace, 1.0)
    pace.limit = 200
    assert pace.rate == 200


def test_while_it_climbs_an_interval_is_one_requests_worth(rng):
    pace = Pace(100)
    pace.depart(0.0)
    for second in range(1, 8):
        pace.throttled(float(second), departed=float(second), retry_after=0.5, rng=rng)
    now = pace.due
    low = pace.rate
    assert low < 10
    pace.depart(now)
    interval = (pace.due - now) / 1.005
    assert low * interval + 1.5 * interval**2 / 2 == pytest.approx(1)


def test_departures_follow_the_pace_while_it_climbs(rng):
    pace = Pace(100)
    pace.depart(0.0)
    pace.throttled(0.0, departed=0.0, retry_after=1.0, rng=rng)
    low = pace.rate
    departures = steady(pace, seconds=10.0, start=1.0)
    assert len(departures) == pytest.approx(10 * low + 1.5 * 10 * 10 / 2, rel=0.01)


def test_a_slow_pace_does_not_wait_for_what_it_will_have_climbed_to(rng):
    pace = Pace(1)
    now = 0.0
    for _ in range(40):
        pace.throttled(now, departed=now, retry_after=0.0, rng=rng)
        now += 1.01
    assert pace.rate < 0.1
    pace.depart(now)
    assert pace.due - now < 11


def test_the_pace_never_falls_to_nothing(rng):
    pace = Pace(800)
    for second in range(2000):
        pace.throttled(second * 2.0, departed=second * 2.0, retry_after=1.99, rng=rng)
    assert pace.rate >= 1.6


def test_a_limit_below_the_lowered_pace_lowers_it_further_and_a_higher_one_is_climbed_to(rng):
    pace = Pace(800)
    pace.throttled(0.0, departed=0.0, retry_after=None, rng=rng)
    pace.limit = 1000
    assert pace.rate == pytest.approx(Pace.DECREASE_FACTOR * 800)
    pace.limit = 100
    assert pace.rate == 100
    pace.depart(1.0)
    assert pace.rate_at(1.0) == 100


# Congestion or noise


class Served:
    """A server in steps of a millisecond, 20 ms away, and a pace whose supply never runs dry."""

    def __init__(self, pace, allows, *, seed=3):
        self.pace = pace
        self.allows = allows
        self.rng = random.Random(seed)
        self.millisecond = 0
        self.arrivals = deque()
        self.answers = deque()
        self.allowed = self.refused = 0

    def run(self, seconds):
        """Requests that are served in so many seconds more, for each of them."""
        self.allowed = self.refused = 0
        for _ in range(round(seconds * 1000)):
            self.millisecond += 1
            now = self.millisecond / 1000
            while self.pace.due <= now:
                self.pace.depart(now)
                self.arrivals.append((self.millisecond + 10, now))
            while self.arrivals and self.arrivals[0][0] <= self.millisecond:
                _, departed = self.arrivals.popleft()
                if self.allows(now):
                    self.allowed += 1
                else:
                    self.refused += 1
                    self.answers.append((self.millisecond + 10, departed))
            while self.answers and self.answers[0][0] <= self.millisecond:
                _, departed = self.answers.popleft()
                self.pace.throttled(now, departed=departed, retry_after=None, rng=self.rng)
        return self.allowed / seconds


def window_of(limit):
    """A server that allows so many in any second."""
    log = deque()

    def allows(now):
        while log and log[0] <= now - 1.0:
            log.popleft()
        if len(log) < limit:
            log.append(now)
        return len(log) < limit or log[-1] == now

    return allows


@pytest.mark.parametrize("share", [0.005, 0.01, 0.02, 0.04])
def test_refusals_that_come_whatever_the_pace_cost_little_more_than_themselves(share):
    rng = random.Random(5)
    server = Served(Pace(800), lambda now: rng.random() >= share)
    server.run(10.0)
    assert server.run(30.0) >= 0.9 * 800


def test_a_limit_is_found_and_kept_to_though_some_refusals_are_noise():
    rng = random.Random(6)
    allows = window_of(400)
    server = Served(Pace(800), lambda now: rng.random() >= 0.02 and allows(now))
    server.run(15.0)
    assert server.run(30.0) >= 0.75 * 400
    assert server.refused <= 0.05 * (server.refused + server.allowed)


def test_noise_that_becomes_congestion_lowers_the_pace_within_a_second():
    rng = random.Random(7)
    limits = [window_of(800)]
    server = Served(Pace(800), lambda now: rng.random() >= 0.01 and limits[0](now))
    server.run(15.0)
    assert server.pace.rate >= 0.9 * 800
    limits[0] = window_of(200)
    server.run(2.0)
    assert server.pace.rate <= 0.5 * 800
    server.run(5.0)
    assert server.run(5.0) >= 0.9 * 200
    assert server.refused <= 0.05 * (server.refused + server.allowed)


def test_when_the_noise_stops_the_pace_goes_on_as_if_it_had_never_been():
    rng = random.Random(8)
    share = [0.02]
    server = Served(Pace(800), lambda now: rng.random() >= share[0])
    server.run(15.0)
    share[0] = 0.0
    server.run(15.0)
    assert server.run(5.0) >= 0.98 * 800


def test_the_pace_stays_where_it_fell_to_until_the_fall_has_been_judged(rng):
    pace = Pace(800)
    departures = steady(pace, seconds=1.0)
    fell = departures[-1]
    pace.throttled(fell, departed=fell, retry_after=None, rng=rng)
    low, resumed = pace.rate, pace.paused_until
    steady(pace, seconds=2.2, start=fell)
    assert pace.rate == low
    steady(pace, seconds=1.0, start=resumed + 2.3)
    assert low < pace.rate <= low + Pace.INCREASE_PER_SECOND * 800


def test_a_fall_that_was_not_enough_is_followed_by_another_when_it_has_been_judged(rng):
    pace = Pace(800)
    fell = steady(pace, seconds=1.0)[-1]
    pace.throttled(fell, departed=fell, retry_after=None, rng=rng)
    low, resumed = pace.rate, pace.paused_until
    after = steady(pace, seconds=resumed + 2.1 - fell, start=fell)
    for departed in after[::25]:  # 4 %
        pace.throttled(after[-1], departed=departed, retry_after=None, rng=rng)
    assert pace.rate == low
    steady(pace, seconds=0.4, start=resumed + 2.1)
    assert pace.rate == pytest.approx(low * 0.96 * Pace.DECREASE_FACTOR, rel=0.01)


def test_a_few_departures_after_a_fall_say_nothing_and_the_pace_climbs_again(rng):
    pace = Pace(5)
    last = steady(pace, seconds=3.0)[-1]
    pace.throttled(last, departed=last, retry_after=None, rng=rng)
    fallen = pace.rate
    # The fall is watched for five seconds; there are too few departures in them to judge it.
    departures = steady(pace, seconds=7.0, start=last)
    assert len(departures) < 36
    assert fallen < pace.rate <= 5


def test_a_pause_of_the_fleet_that_is_shorter_than_the_spacing_changes_nothing():
    pace = Pace(1)
    pace.depart(100.0)
    due = pace.due
    pace.pause(100.5)
    assert pace.due == due
    pace.pause(103.0)
    pace.pause(102.0)
    assert pace.due == 103.0


def test_a_process_that_stops_sending_after_a_fall_learns_nothing_from_it(rng):
    pace = Pace(800)
    fell = steady(pace, seconds=1.0)[-1]
    pace.throttled(fell, departed=fell, retry_after=None, rng=rng)
    low = pace.rate
    pace.depart(fell + 60.0)
    pace.throttled(fell + 60.1, departed=fell + 60.0, retry_after=None, rng=rng)
    assert pace.rate_at(fell + 60.1) == pytest.approx(Pace.DECREASE_FACTOR * 800)
    assert pace.rate > low


@pytest.mark.parametrize("round_trip", [1, 50, 200])
def test_three_processes_that_know_nothing_of_each_other_share_a_sliding_window(round_trip):
    """In steps of a millisecond, for 40 s; what other servers and other numbers do is in
    benchmarks/pace_simulation.py.
    """
    paces = [Pace(800) for _ in range(3)]
    rngs = [random.Random(seed) for seed in range(3)]
    order = [0, 1, 2]
    arrivals = deque()
    answers = deque()
    window = deque()
    allowed = [0, 0, 0]
    refused = 0
    for millisecond in range(40_000):
        now = millisecond / 1000
        rngs[0].shuffle(order)  # or the same one would always find the window full
        for index in order:
            pace = paces[index]
            while pace.due <= now and millisecond >= index * 50:
                pace.depart(now)
                arrivals.append((millisecond + round_trip // 2, index, now))
        while window and window[0] <= now - 1.0:
            window.popleft()
        while arrivals and arrivals[0][0] <= millisecond:
            _, index, departed = arrivals.popleft()
            settled = now >= 10.0
            if len(window) < 800:
                window.append(now)
                allowed[index] += settled
            else:
                refused += settled
                answers.append((millisecond + round_trip - round_trip // 2, index, departed))
        while answers and answers[0][0] <= millisecond:
            _, index, departed = answers.popleft()
            paces[index].throttled(now, departed=departed, retry_after=None, rng=rngs[index])
    assert sum(allowed) >= 0.95 * 800 * 30
    assert refused <= 0.02 * (sum(allowed) + refused)
    assert min(allowed) >= 0.7 * 800 / 3 * 30
