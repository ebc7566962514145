"""Checks of what every fleet must do, to run on a fleet of your own. Needs hypothesis.

::

    def test_my_fleet_divides_as_the_reference_does():
        check_shares(lambda: MyFleet("..."))

    def test_my_fleet_shares_a_token():
        asyncio.run(check_tokens(lambda: MyFleet("...")))

A check raises AssertionError, with the history that went wrong. Each uses names of its own, so a
store may be used for many checks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final, Protocol

import attrs
import hypothesis
from hypothesis import strategies

from .._wire.failure import Failure
from .._wire.responses import TokenResponse
from ..errors import TokenError
from . import Fleet, ProjectKey, Share, State, TokenKey, Wish, allot

__all__ = ["FleetUnderTest", "check_shares", "check_tokens"]

START: Final = 1_700_000_000.0
"""Seconds of the store's clock at which a history begins."""

SAME: Final = 1e-5
"""Seconds by which two times may differ: stores keep times as floating-point numbers, or as
text."""

PROCESSES: Final = 8
"""Processes that want one token at the same time."""


class FleetUnderTest(Fleet, Protocol):
    """A fleet whose store's clock can be set for a test."""

    async def share_at(self, project: ProjectKey, wish: Wish, now: float | None) -> Share:
        """What ``share`` answers when the store's clock shows ``now``."""
        ...


@attrs.frozen
class _Step:
    seconds: float
    wish: Wish


def _steps() -> strategies.SearchStrategy[list[_Step]]:
    wish = strategies.builds(
        Wish,
        member=strategies.sampled_from([f"process-{number}" for number in range(9)]),
        limit=strategies.sampled_from([800.0, 800.0, 600.0, 10.5, 2.0, 0.5]),
        wanted=strategies.integers(0, 1000),
        holds=strategies.sampled_from([0, 0, 8, 100, 792]),
        paused_for=strategies.sampled_from([0.0, 0.0, 0.0, 1.5]),
        leaves=strategies.integers(0, 19).map(lambda number: number == 0),
    )
    # Up to a quarter of a second is a normal interval; two seconds end leases.
    seconds = strategies.sampled_from([0.0, 0.01, 0.1, 0.25, 0.25, 1.0, 2.0, 5.0])
    return strategies.lists(strategies.builds(_Step, seconds, wish), max_size=40)


def check_shares(make: Callable[[], FleetUnderTest], *, examples: int = 100) -> None:
    """Checks that a store divides a limit as :func:`~sinch_conv_async.fleet.allot` does.

    Each example is a history of up to 40 steps.
    """

    @hypothesis.settings(max_examples=examples, deadline=None)
    @hypothesis.given(_steps())
    def divides_as_the_reference(steps: list[_Step]) -> None:
        asyncio.run(_compare(make(), steps))

    divides_as_the_reference()


async def _compare(fleet: FleetUnderTest, steps: list[_Step]) -> None:
    project = ProjectKey("https://api.example", secrets.token_hex(8))
    state, now = State(), START
    try:
        for step in steps:
            now += step.seconds
            state, expected = allot(state, step.wish, now)
            given = await fleet.share_at(project, step.wish, now)
            assert (given.share, given.members) == (expected.share, expected.members)
            for name in ("lease", "interval", "paused_for"):
                assert abs(getattr(given, name) - getattr(expected, name)) < SAME, name
    finally:
        await fleet.close()


async def check_tokens(make: Callable[[], Fleet]) -> None:
    """Checks that processes share one token: one request, one renewal, no lock left behind."""
    fleets = [make() for _ in range(PROCESSES)]
    key = TokenKey("https://auth.example", "key-id", secrets.token_hex(16))
    fetched: list[str] = []

    async def fetch() -> TokenResponse | Failure:
        fetched.append(secrets.token_hex(16))
        await asyncio.sleep(0.05)  # while others ask
        return TokenResponse(fetched[-1], 60.0)

    async def refused() -> TokenResponse | Failure:
        return Failure(TokenError("invalid_client", error="invalid_client"), retryable=False)

    async def token_of(fleet: Fleet) -> str:
        outcome = await fleet.token(key, fetch)
        assert isinstance(outcome, TokenResponse), outcome
        assert 0 < outcome.lifetime <= 60.0
        return outcome.access_token

    try:
        outcome = await fleets[0].token(key, refused)
        assert isinstance(outcome, Failure), "what the fetch gives is what the caller gets"
        tokens = set(await asyncio.gather(*map(token_of, fleets)))
        assert tokens == {fetched[0]}, "one token request for all"
        await fleets[1].forget_token(key, "another token")
        assert await token_of(fleets[2]) == fetched[0], "only the refused token is forgotten"
        await asyncio.gather(*(fleet.forget_token(key, fetched[0]) for fleet in fleets))
        tokens = set(await asyncio.gather(*map(token_of, fleets)))
        assert tokens == {fetched[1]}, "one renewal for all"
        other = attrs.evolve(key, key_secret=secrets.token_hex(16))
        outcome = await fleets[3].token(other, fetch)
        assert isinstance(outcome, TokenResponse)
        assert outcome.access_token == fetched[2], "a rotated secret is another key"
    finally:
        for fleet in fleets:
            await fleet.close()
