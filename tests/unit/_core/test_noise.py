"""Noise is arithmetic on counts: every fact here is checked with counts and times that the test
makes up.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinch_conv_async._core.noise import MEMORY, Noise, Sample, Trial, explains, severe


def trial(*, rate=800.0, before=(800, 8), trigger=9.9):
    """A trial of a fall at 10.0, with departures from then on."""
    return Trial(
        resumed=10.0, rate=rate, rate_before=816.0, before=Sample(*before), trigger=trigger
    )


def found(around, after, *, rate=800.0):
    """A trial that has found so many departures and refusals around the fall and after it."""
    one = trial(rate=rate, before=around)
    assert one.count(11.0, 0)
    assert one.count(12.0, after[0])
    for _ in range(after[1]):
        one.refused(11.5)
    return one


@pytest.mark.parametrize(
    ("share", "sent", "refused", "expected"),
    [
        (0.0, 800, 0, True),
        (0.0, 800, 1, False),
        (0.01, 800, 8, True),
        (0.01, 800, 15, True),  # 8 + 2.5 * sqrt(8) = 15.07
        (0.01, 800, 16, False),
        (0.04, 100, 9, True),
        (0.04, 100, 10, False),
        (0.04, 0, 0, True),
    ],
)
def test_a_share_explains_as_many_refusals_as_chance_allows(share, sent, refused, expected):
    assert explains(share, Sample(sent, refused)) is expected


@pytest.mark.parametrize(
    ("sent", "refused", "expected"),
    [
        (800, 58, False),
        (800, 59, True),
        (100, 11, False),
        (100, 12, True),
        (1, 1, True),
        (0, 0, False),
    ],
)
def test_more_than_5_percent_beyond_chance_is_severe(sent, refused, expected):
    assert severe(Sample(sent, refused)) is expected


def test_a_sample_without_departures_has_no_share_refused():
    assert Sample(0, 3).share == 0.0
    assert Sample(200, 3).share == 0.015


# A trial


@pytest.mark.parametrize(
    ("rate", "seconds"), [(800.0, 1), (400.0, 1), (399.0, 2), (150.0, 3), (80.0, 4), (1.0, 4)]
)
def test_a_slow_pace_is_watched_for_longer(rate, seconds):
    assert trial(rate=rate).ends == pytest.approx(10.0 + 1.0 + seconds + 0.3)


def test_refusals_belong_to_the_second_in_which_their_request_departed():
    one = trial(rate=300.0, before=(300, 2))
    for departed in (9.5, 10.5, 10.99, 11.0, 12.99, 13.0):
        one.refused(departed)
    assert one.count(11.0, 290)
    assert one.count(12.01, 291)
    assert not one.over(13.5)
    assert one.count(13.0, 292)
    assert one.around == (590, 5)
    assert one.settling == (290, 2)
    assert one.after == (583, 2)


def test_a_trial_is_over_when_everything_is_counted_and_the_last_answers_have_come():
    one = trial()
    assert one.count(11.0, 800)
    assert not one.over(99.0)
    assert one.count(12.0, 800)
    assert not one.over(12.2)
    assert one.over(12.3)
    assert one.count_at == math.inf


@pytest.mark.parametrize(("now", "in_time"), [(11.0, True), (11.25, True), (11.26, False)])
def test_a_count_that_comes_late_is_of_no_use(now, in_time):
    assert trial().count(now, 800) is in_time


# What several trials tell


def test_nothing_is_noise_at_first():
    assert Noise().share == 0.0


@pytest.mark.parametrize(
    ("trials", "share"),
    [
        ([((800, 8), (800, 8))], 0.0),  # one trial is not enough
        ([((800, 8), (800, 8)), ((800, 8), (800, 8))], 0.01),
        ([((800, 8), (800, 8)), ((800, 8), (800, 4))], 0.0075),
        ([((800, 2), (800, 2)), ((800, 2), (800, 2))], 0.0),  # nor are four refusals
        ([((800, 9), (800, 3)), ((800, 9), (800, 6))], 0.0),  # less than 60 % of the share before
        ([((800, 30), (800, 1)), ((800, 20), (800, 0))], 0.0),
        (
            [((800, 8), (800, 8)), ((800, 8), (800, 8)), ((800, 8), (800, 0))],
            0.0,
        ),  # none: forgotten
    ],
)
def test_refusals_that_a_fall_does_not_change_are_noise(trials, share):
    noise = Noise()
    for around, after in trials:
        noise.learn(found(around, after), may_be_noise=True)
    assert noise.share == pytest.approx(share, rel=0.05)


def test_a_trial_with_far_fewer_refusals_replaces_the_earlier_ones():
    noise = Noise()
    for _ in range(4):
        noise.learn(found((800, 32), (800, 32)), may_be_noise=True)
    assert noise.share == pytest.approx(0.04)
    for _ in range(2):
        noise.learn(found((800, 8), (800, 8)), may_be_noise=True)
    assert noise.share == pytest.approx(0.01)


def test_a_process_that_cannot_tell_noise_from_its_neighbours_knows_of_none():
    noise = Noise()
    for _ in range(5):
        noise.learn(found((800, 8), (800, 8)), may_be_noise=False)
    assert noise.share == 0.0
    noise.learn(found((800, 8), (800, 8)), may_be_noise=True)
    assert noise.share == pytest.approx(0.01)


def test_noise_can_be_forgotten():
    noise = Noise()
    for _ in range(2):
        noise.learn(found((800, 8), (800, 8)), may_be_noise=True)
    noise.forget()
    assert noise.share == 0.0
    noise.learn(found((800, 8), (800, 8)), may_be_noise=True)
    assert noise.share == 0.0


def test_the_latest_trials_count_most():
    noise = Noise()
    for refused in [8] * 20 + [16] * 5:
        noise.learn(found((800, refused), (800, refused)), may_be_noise=True)
    assert 0.018 <= noise.share <= 0.02


counts = st.integers(0, 2000).flatmap(lambda sent: st.tuples(st.just(sent), st.integers(0, sent)))


@given(trials=st.lists(st.tuples(counts, counts), max_size=20))
def test_noise_is_a_share_whatever_the_trials_find(trials):
    noise = Noise()
    for around, after in trials:
        noise.learn(found(around, after), may_be_noise=True)
        assert 0.0 <= noise.share <= 1.0
        assert noise._after.sent <= MEMORY * 1.001
