"""How a limit is divided: the arithmetic by tables, and a fleet that lives through whatever
hypothesis does to it.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sinch_conv_async.fleet import (
    INTERVAL,
    LEASE,
    Holding,
    Lease,
    Share,
    State,
    TokenKey,
    Wish,
    allot,
    divided,
    fair_share,
    least_wish,
    without_store,
)

NOW = 1_700_000_000.0


def settled(*leases: tuple[str, int, int], limit: float = 800.0) -> State:
    """A state in which nobody learns any more: name, share and wish of each member."""
    return State(
        {name: Lease(share, NOW + 1.0, wanted, limit) for name, share, wanted in leases},
        heard_at=NOW - 0.1,
        learning_until=NOW,
    )


@pytest.mark.parametrize(
    ("limit", "handed_out"),
    [(800, 792), (600, 594), (100, 99), (99.5, 98), (10, 9), (9, 9), (2.5, 2), (1, 1), (0.2, 1)],
)
def test_one_percent_of_the_limit_is_kept_back_where_that_is_a_whole_request(limit, handed_out):
    assert divided(limit) == handed_out


@pytest.mark.parametrize(
    ("limit", "members", "least"), [(800, 8, 8), (800, 100, 2), (4, 8, 1), (0.5, 1, 1)]
)
def test_a_quiet_process_wants_a_little(limit, members, least):
    assert least_wish(limit, members) == least


@pytest.mark.parametrize(
    ("capacity", "wanted", "turn", "shares"),
    [
        (792, {"a": 900, "b": 900}, 0, {"a": 396, "b": 396}),
        (792, {"a": 10, "b": 900, "c": 900}, 0, {"a": 10, "b": 391, "c": 391}),
        (792, {"a": 10, "b": 20}, 0, {"a": 10, "b": 20}),
        (2, {"a": 9, "b": 9, "c": 9}, 0, {"a": 0, "b": 1, "c": 1}),
        (2, {"a": 9, "b": 9, "c": 9}, 1, {"a": 1, "b": 1, "c": 0}),
        (5, {}, 0, {}),
    ],
)
def test_shares_are_max_min_fair_and_the_odd_request_goes_round(capacity, wanted, turn, shares):
    assert fair_share(capacity, wanted, turn) == shares


@given(
    st.integers(0, 1000),
    st.dictionaries(st.text("abc", min_size=1), st.integers(0, 1000), max_size=9),
    st.integers(0, 99),
)
def test_nobody_can_get_more_without_taking_from_one_who_has_less(capacity, wanted, turn):
    shares = fair_share(capacity, wanted, turn)
    assert all(0 <= shares[name] <= wanted[name] for name in wanted)
    assert sum(shares.values()) == min(capacity, sum(wanted.values()))
    hungry = [share for name, share in shares.items() if share < wanted[name]]
    if hungry:
        assert max(shares.values()) <= min(hungry) + 1


def test_every_member_in_turn_gets_the_one_request_there_is():
    wanted = dict.fromkeys("abcde", 9)
    lucky = [
        name for turn in range(5) for name, share in fair_share(1, wanted, turn).items() if share
    ]
    assert sorted(lucky) == list("abcde")


def test_a_share_grows_only_by_what_others_have_given_back():
    state = settled(("busy", 792, 900))
    state, share = allot(state, Wish("new", 800, 900), NOW)
    assert (share.share, share.members) == (0, 2)
    state, share = allot(state, Wish("busy", 800, 900, holds=792), NOW + 0.1)
    assert share.share == 396
    state, share = allot(state, Wish("new", 800, 900), NOW + 0.2)
    assert share.share == 396


def test_the_lowest_limit_of_the_live_members_counts():
    _, share = allot(
        settled(
            (
                "a",
                10,
                10,
            ),
            limit=600.0,
        ),
        Wish("b", 800, 900),
        NOW,
    )
    assert share.share == divided(600) - 10


def test_a_member_that_leaves_gives_its_share_back_at_once():
    state, share = allot(
        settled(("a", 400, 400), ("b", 392, 900)), Wish("a", 800, 0, leaves=True), NOW
    )
    assert share == Share(0, 0.0, 1)
    _, share = allot(state, Wish("b", 800, 900, holds=392), NOW)
    assert share.share == 792


def test_a_store_without_memory_learns_for_one_lease_what_is_held():
    state, share = allot(State(), Wish("a", 800, 900, holds=500), NOW)
    assert share.share == 500
    # Nobody can hold more together than was divided.
    state, share = allot(state, Wish("b", 800, 900, holds=500), NOW)
    assert share.share == 292
    # A newcomer is lent a part of what is kept back; the next one finds nothing left of it.
    state, share = allot(state, Wish("new", 800, 900), NOW)
    assert share.share == 8
    state, share = allot(state, Wish("newer", 800, 900), NOW)
    assert share.share == 0
    # It keeps what it got, and no more, until the learning ends.
    state, share = allot(state, Wish("a", 800, 900, holds=500), NOW + 1.9)
    assert share.share == 500
    state, share = allot(state, Wish("new", 800, 3, holds=8), NOW + 1.9)
    assert share.share == 3
    state, share = allot(state, Wish("a", 800, 900, holds=500), NOW + LEASE)
    assert share.share == divided(800) - 3  # all but "new" have gone


@pytest.mark.parametrize("silence", [LEASE, 60.0, -1.0])
def test_after_a_silence_or_a_clock_that_went_back_it_learns_as_well(silence):
    state = State({"a": Lease(792, NOW + 2, 900, 800.0)}, heard_at=NOW, learning_until=NOW)
    state, share = allot(state, Wish("new", 800, 900), NOW + silence)
    assert share.share == 8
    assert state.learning_until == NOW + silence + LEASE


def test_a_pause_is_shared_and_never_made_shorter():
    state, share = allot(settled(), Wish("a", 800, 9, paused_for=5.0), NOW)
    assert share.paused_for == 5.0
    state, share = allot(state, Wish("b", 800, 9, paused_for=1.0), NOW + 1.0)
    assert share.paused_for == pytest.approx(4.0)
    _, share = allot(state, Wish("b", 800, 9), NOW + 9.0)
    assert share.paused_for == 0.0


def test_leases_and_intervals_grow_with_hundreds_of_members():
    many = settled(*((f"m{number}", 1, 1) for number in range(399)))
    _, share = allot(many, Wish("one more", 800, 1), NOW)
    assert (share.members, share.lease, share.interval) == (400, 4 * LEASE, 4 * INTERVAL)


@pytest.mark.parametrize(
    ("limit", "members", "rate"), [(800, 1, 792), (800, 8, 99), (800, 0, 792), (5, 8, 1)]
)
def test_without_the_store_everybody_takes_an_even_part(limit, members, rate):
    assert without_store(limit, members) == rate


@pytest.mark.parametrize(
    ("granted", "members", "rates"),
    [
        # Two of them had uneven shares: the larger falls when its lease ends, the smaller rises a
        # lease later.
        (700, 2, [700, 396, 396]),
        (92, 2, [92, 92, 396]),
        (0, 1, [0, 0, 792]),
    ],
)
def test_a_lease_that_ends_lowers_at_once_and_raises_one_lease_later(granted, members, rates):
    holding = Holding.of(Share(granted, 2.0, members), asked_at=10.0)
    assert [holding.rate(800, at) for at in (11.999, 12.0, 14.0)] == rates
    assert [holding.changes_at(at) for at in (10.0, 12.0, 14.0)] == [12.0, 14.0, None]


def test_neither_keys_nor_wishes_show_a_secret():
    key = TokenKey("https://auth.example", "key-id", "the secret itself")
    assert "secret itself" not in repr(key)


class Member:
    def __init__(self) -> None:
        self.holding: Holding | None = None
        self.wanted = 0


class FleetThatLives(RuleBasedStateMachine):
    """Processes join, ask, crash, leave and are silent; the store forgets. Live leases never exceed
    the limit.
    """

    @initialize(limit=st.sampled_from([800.0, 100.0, 10.0, 3.0, 1.0]))
    def begin(self, limit: float) -> None:
        self.limit = limit
        self.now = NOW
        self.state = State()
        self.members: dict[str, Member] = {}
        self.born = 0

    @rule(seconds=st.sampled_from([0.01, 0.1, INTERVAL, 1.0, LEASE, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(wanted=st.integers(0, 1000))
    def one_joins(self, wanted: int) -> None:
        if len(self.members) < 9:
            self.born += 1
            self.members[f"m{self.born}"] = member = Member()
            member.wanted = wanted
            self.asks(f"m{self.born}")

    @rule(data=st.data(), wanted=st.integers(0, 1000))
    def one_asks(self, data: st.DataObject, wanted: int) -> None:
        if self.members:
            name = data.draw(st.sampled_from(sorted(self.members)))
            self.members[name].wanted = wanted
            self.asks(name)

    @rule()
    def all_ask(self) -> None:
        for name in sorted(self.members):
            self.asks(name)

    @rule(data=st.data(), crash=st.booleans())
    def one_goes(self, data: st.DataObject, crash: bool) -> None:
        if self.members:
            name = data.draw(st.sampled_from(sorted(self.members)))
            member = self.members.pop(name)
            if not crash:
                wish = Wish(name, self.limit, 0, holds=self.holds(member), leaves=True)
                self.state, _ = allot(self.state, wish, self.now)

    @rule()
    def the_store_forgets(self) -> None:
        self.state = State()

    def holds(self, member: Member) -> int:
        return 0 if member.holding is None else member.holding.rate(self.limit, self.now)

    def asks(self, name: str) -> None:
        member = self.members[name]
        lent = member.holding is not None and self.now < member.holding.until
        wish = Wish(name, self.limit, member.wanted, holds=self.holds(member) if lent else 0)
        self.state, share = allot(self.state, wish, self.now)
        assert 0 <= share.share <= member.wanted
        member.holding = Holding.of(share, self.now)

    @invariant()
    def live_leases_never_exceed_the_limit(self) -> None:
        held = sum(
            member.holding.granted
            for member in self.members.values()
            if member.holding is not None and self.now < member.holding.until
        )
        assert held <= max(1, math.floor(self.limit))

    def teardown(self) -> None:
        if not hasattr(self, "limit") or not self.members:
            return
        # Whatever has happened: after two leases of regular asking, everybody has a fair share.
        for _ in range(round(2 * LEASE / INTERVAL) + 3):
            self.now += INTERVAL
            self.all_ask()
        wanted = {name: member.wanted for name, member in self.members.items()}
        fair = fair_share(divided(self.limit), wanted, 0)
        given = {
            name: member.holding.granted for name, member in self.members.items() if member.holding
        }
        assert sum(given.values()) >= sum(fair.values()) - len(fair)
        assert all(abs(given[name] - fair[name]) <= 1 for name in fair)


TestFleetThatLives = FleetThatLives.TestCase
