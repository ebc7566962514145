"""Several processes share one limit and one token: the protocol, and how a limit is divided.

Pure: this module knows neither Redis nor PostgreSQL, and has no clock of its own.

How a limit is divided. Each process asks the store for a *share*: a whole number of requests a
second, lent for ``LEASE`` seconds. It asks again every ``INTERVAL`` seconds, and sets its own pace
to the share. So no call ever waits for the store. The method is that of Google's Doorman.

1. The store divides the limit less one percent (:func:`divided`). The rest covers jitter on the
   way.
2. The division is max-min fair: a process that wants little gets all that it wants, and the others
   divide the rest evenly (:func:`fair_share`).
3. A process is granted at most what the live leases of the others leave. So live leases never add
   up to more than the limit. A share that grows waits until another one has become smaller.
4. A store that knows no project state, or that heard nothing of the project for longer than a
   lease, cannot know which leases are live. It learns for one lease: it grants only what a process
   says that it holds. A process that holds nothing is lent a part of what rule 1 keeps back.
5. A process whose lease has ended lowers its pace at once to an even part of the limit
   (:func:`without_store`). It raises its pace to that only one lease later, when the leases of all
   other processes have ended as well (:class:`Holding`).

The functions of Redis and PostgreSQL do the same arithmetic, and one conformance suite tests all.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

import attrs

if TYPE_CHECKING:
    from .._wire.failure import Failure
    from .._wire.responses import TokenResponse

__all__ = [
    "Fleet",
    "FleetError",
    "Holding",
    "Lease",
    "ProjectKey",
    "Share",
    "State",
    "TokenKey",
    "Wish",
    "allot",
    "divided",
    "fair_share",
    "least_wish",
    "without_store",
]

LEASE: Final = 2.0
"""Seconds that a share is lent for. A process that dies leaves its share unused for so long."""

INTERVAL: Final = 0.25
"""Seconds between two requests of one process for its share."""

MANY: Final = 100
"""Members above which a lease and the interval grow in proportion: the store reads all members each
time."""

KEPT_BACK: Final = 100
"""One part in so many of the limit is not divided. With all of it, jitter on the way puts 805 into
a second of 800."""

KEPT_BACK_FROM: Final = 10
"""The least limit of which something is kept back: of fewer requests, one is too large a part."""

LEAST_WISH: Final = 8
"""Requests a second that a quiet process may want, so that its next call need not wait."""


@attrs.frozen
class ProjectKey:
    """The project whose limit is shared, at an origin of the Conversation API. Holds no secret."""

    origin: str
    project_id: str


@attrs.frozen
class TokenKey:
    """The access key whose token is shared. It is never written to a store in plain text."""

    auth_origin: str
    key_id: str
    key_secret: str = attrs.field(repr=False)


@attrs.frozen
class Wish:
    """The request of one process to the store.

    ``member``: a name that no other process has. ``limit``: requests a second that the project
    allows; the lowest of the live members' limits counts. ``wanted``: requests a second that the
    process would send. ``holds``: requests a second that it may send now. ``paused_for``: seconds
    that a ``Retry-After`` of the API still asks it to wait. ``leaves``: it gives its share back.
    """

    member: str
    limit: float
    wanted: int
    holds: int = 0
    paused_for: float = 0.0
    leaves: bool = False


@attrs.frozen
class Share:
    """The answer of the store: ``share`` requests a second for ``lease`` seconds.

    The lease counts from when the process asked.

    ``members``: processes that share the limit, this one included. ``interval``: seconds until the
    process asks again. ``paused_for``: seconds for which a ``Retry-After`` stops the whole fleet.
    """

    share: int
    lease: float
    members: int
    interval: float = INTERVAL
    paused_for: float = 0.0


@attrs.frozen
class Lease:
    """One member's share in the store.

    ``kept_back``: it comes out of the part that is not divided.
    """

    share: int
    until: float
    wanted: int
    limit: float
    kept_back: bool = False


@attrs.frozen
class State:
    """What a store knows of one project; all times are by the store's clock.

    ``heard_at``: when any member asked last. ``learning_until``: the end of the learning of rule 4.
    ``paused_until``: the end of a pause of the whole fleet.
    """

    leases: Mapping[str, Lease] = attrs.field(factory=dict)
    heard_at: float = -math.inf
    learning_until: float = -math.inf
    paused_until: float = -math.inf


class FleetError(Exception):
    """The store gave no usable answer. The text holds no secret."""


class Fleet(Protocol):
    """A store that several processes share.

    If the store gives no answer in time, ``share`` raises ``FleetError``.

    ``token`` does not: without the store it calls ``fetch``.
    """

    async def share(self, project: ProjectKey, wish: Wish) -> Share:
        """The share of one process; one round trip."""
        ...

    async def token(
        self, key: TokenKey, fetch: Callable[[], Awaitable[TokenResponse | Failure]]
    ) -> TokenResponse | Failure:
        """The fleet's token. One process at a time calls ``fetch``, the token request."""
        ...

    async def forget_token(self, key: TokenKey, access_token: str) -> None:
        """Delete this token, to which the API answered 401, if the fleet still uses it."""
        ...

    async def close(self) -> None:
        """Close the connections that the fleet has opened. Closing twice is fine."""
        ...


def divided(limit: float) -> int:
    """The requests a second of a limit that are divided among the members, at least 1."""
    whole = max(1, math.floor(limit))
    return whole - math.ceil(whole / KEPT_BACK) if whole >= KEPT_BACK_FROM else whole


def least_wish(limit: float, members: int) -> int:
    """The requests a second that a quiet process wants, so that its next call need not wait."""
    return max(1, min(LEAST_WISH, math.floor(limit / (4 * max(1, members)))))


def fair_share(capacity: int, wanted: Mapping[str, int], turn: int) -> dict[str, int]:
    """Whole shares that are max-min fair.

    No member can get more without taking from a member that has less.

    Of members that want the same, some may get one request more than others, or one instead of
    none. ``turn`` is a counter that goes up with time: with each step the next ones get it.
    """
    names = sorted(wanted)
    order = sorted(range(len(names)), key=lambda at: (wanted[names[at]], (at + turn) % len(names)))
    shares: dict[str, int] = {}
    for done, at in enumerate(order):
        shares[names[at]] = part = min(wanted[names[at]], capacity // (len(names) - done))
        capacity -= part
    return shares


def allot(state: State, wish: Wish, now: float) -> tuple[State, Share]:
    """The project's next state and the member's share. ``now``: seconds by the store's clock."""
    live = {
        name: lease
        for name, lease in state.leases.items()
        if lease.until > now and name != wish.member
    }
    own = state.leases.get(wish.member)
    if own is not None and own.until <= now:
        own = None
    paused_until = max(state.paused_until, now + wish.paused_for)
    members = len(live) + 1
    lease_seconds = LEASE * max(1.0, members / MANY)
    # If the clock went back, the state is lost too, because no lease can be judged by it.
    silent = not state.heard_at <= now < state.heard_at + lease_seconds
    learning_until = now + lease_seconds if silent else state.learning_until
    if wish.leaves:
        share_of_none = Share(0, 0.0, len(live), paused_for=max(0.0, paused_until - now))
        return State(live, now, learning_until, paused_until), share_of_none

    limit = min([wish.limit, *(lease.limit for lease in live.values())])
    if now < learning_until:
        share, kept_back = _learning(limit, live, own, wish)
    else:
        share, kept_back = _dividing(limit, live, wish, now), False
    lease = Lease(share, now + lease_seconds, wish.wanted, wish.limit, kept_back)
    return (
        State({**live, wish.member: lease}, now, learning_until, paused_until),
        Share(
            share,
            lease_seconds,
            members,
            interval=INTERVAL * lease_seconds / LEASE,
            paused_for=max(0.0, paused_until - now),
        ),
    )


def _dividing(limit: float, live: Mapping[str, Lease], wish: Wish, now: float) -> int:
    wanted = {name: lease.wanted for name, lease in live.items()} | {wish.member: wish.wanted}
    capacity = divided(limit)
    fair = fair_share(capacity, wanted, math.floor(now / LEASE))[wish.member]
    return max(0, min(fair, capacity - sum(lease.share for lease in live.values())))


def _learning(
    limit: float, live: Mapping[str, Lease], own: Lease | None, wish: Wish
) -> tuple[int, bool]:
    """A share of rule 4, and whether it comes out of the part that is kept back."""
    capacity = divided(limit)
    if own is not None:
        return min(own.share, wish.wanted), own.kept_back
    if wish.holds:
        lent = sum(lease.share for lease in live.values() if not lease.kept_back)
        return max(0, min(wish.holds, wish.wanted, capacity - lent)), False
    lent = sum(lease.share for lease in live.values() if lease.kept_back)
    return max(0, min(LEAST_WISH, wish.wanted, max(1, math.floor(limit)) - capacity - lent)), True


def without_store(limit: float, members: int) -> int:
    """The requests a second of one process without the store: an even part of the limit."""
    return max(1, divided(limit) // max(1, members))


@attrs.frozen
class Holding:
    """What one process may send, by its own clock and the store's answers.

    ``granted``: the latest share. ``until``: the end of its lease, counted from when the share was
    asked for. ``lease``: its length in seconds. ``members``: how many processes there were.
    """

    granted: int
    until: float
    lease: float
    members: int

    @classmethod
    def of(cls, share: Share, asked_at: float) -> Holding:
        """The holding after an answer. ``asked_at``: when the process asked."""
        return cls(share.share, asked_at + share.lease, share.lease, share.members)

    def rate(self, limit: float, now: float) -> int:
        """Requests a second that the process may send at ``now``. 0: none at present."""
        if now < self.until:
            return self.granted
        alone = without_store(limit, self.members)
        # Lower at once. Raise when every other lease has ended too.
        return min(self.granted, alone) if now < self.until + self.lease else alone

    def changes_at(self, now: float) -> float | None:
        """When the rate next changes without an answer of the store; None if it does not."""
        return next((at for at in (self.until, self.until + self.lease) if now < at), None)
