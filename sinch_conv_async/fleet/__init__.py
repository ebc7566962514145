"""Several processes share one limit and one token. This module has the protocol and the rules.

Pure: this module depends on neither Redis nor PostgreSQL, and has no clock.

How a limit is divided. Each process asks the store for a *share*: a whole number of requests a
second. The store lends the share for ``LEASE`` seconds. The process asks again every ``INTERVAL``
seconds, and sets its own pace to the share. So no call waits for the store. Google's Doorman uses
the same method.

1. The store divides 99 % of the limit (:func:`divided`). The other 1 % is kept back, because
   requests may arrive closer together than they were sent.
2. The division is max-min fair: a process that wants little gets all that it wants. The other
   processes divide the remaining requests evenly (:func:`fair_share`).
3. A process gets at most the part of the limit that the live leases of the other processes leave
   free. So the live leases together are never more than the limit. A share can grow only after
   another share has become smaller.
4. A store cannot know which leases are live if it has no state of the project, or if no process
   has asked for longer than a lease. Then the store learns for the time of one lease: it grants a
   process only the share that the process says it holds. A process that holds no share gets a part
   of the 1 % that rule 1 keeps back.
5. If the lease of a process ends without a new share, an even part of the limit becomes its pace
   (:func:`without_store`). If its pace was higher, the process lowers it at once. If its pace was
   lower, the process raises it one lease later, when the leases of all other processes have ended
   too (:class:`Holding`).

The code for Redis and the code for PostgreSQL compute the same. The same tests check this module
and both of them.
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
"""A share is lent for so many seconds. If a process dies, its share is unused for up to that
time."""

INTERVAL: Final = 0.25
"""Seconds between two requests of one process for its share."""

MANY: Final = 100
"""Above this number of members, the lease and the interval grow in proportion to it, because the
store reads all members at each request."""

KEPT_BACK: Final = 100
"""One part in so many of the limit is kept back. If the whole limit were divided, some requests
would come closer together on the way: 805 would arrive in one second, where 800 are allowed."""

KEPT_BACK_FROM: Final = 10
"""No part is kept back of a lower limit than this, because one whole request would be too large a
part."""

LEAST_WISH: Final = 8
"""A quiet process may want so many requests a second, so that its next call need not wait."""


@attrs.frozen
class ProjectKey:
    """The project whose limit is shared, at one origin of the API. It holds no secret."""

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
    allows, as this process knows it; the store uses the lowest limit of the live members.
    ``wanted``: requests a second that the process would like to send. ``holds``: requests a second
    that the process may send now. ``paused_for``: for how many seconds the process must still wait,
    because the API sent it ``Retry-After``. ``leaves``: the process leaves the fleet and gives its
    share back.
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

    The lease begins when the process sends its request.

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

    ``kept_back``: the share comes out of the part of the limit that is not divided.
    """

    share: int
    until: float
    wanted: int
    limit: float
    kept_back: bool = False


@attrs.frozen
class State:
    """The state of one project in a store. All times are by the store's clock.

    ``heard_at``: when a member last asked. ``learning_until``: until when the store learns which
    leases are live. ``paused_until``: until when the whole fleet pauses.
    """

    leases: Mapping[str, Lease] = attrs.field(factory=dict)
    heard_at: float = -math.inf
    learning_until: float = -math.inf
    paused_until: float = -math.inf


class FleetError(Exception):
    """The store gave no usable answer. The text holds no secret."""


class Fleet(Protocol):
    """A store that several processes share.

    If the store gives no answer in time, ``share`` raises ``FleetError``. In that case ``token``
    raises nothing: it calls ``fetch``.
    """

    async def share(self, project: ProjectKey, wish: Wish) -> Share:
        """Ask the store for the share of one process, in one round trip."""
        ...

    async def token(
        self, key: TokenKey, fetch: Callable[[], Awaitable[TokenResponse | Failure]]
    ) -> TokenResponse | Failure:
        """The fleet's token. One process at a time calls ``fetch``, which requests a token."""
        ...

    async def forget_token(self, key: TokenKey, access_token: str) -> None:
        """Delete this token if the fleet still uses it: the API has answered 401 to it."""
        ...

    async def close(self) -> None:
        """Close the connections that the fleet has opened. Closing twice is fine."""
        ...


def divided(limit: float) -> int:
    """How many requests a second of a limit the members divide; at least 1."""
    whole = max(1, math.floor(limit))
    return whole - math.ceil(whole / KEPT_BACK) if whole >= KEPT_BACK_FROM else whole


def least_wish(limit: float, members: int) -> int:
    """How many requests a second a quiet process wants, so that its next call need not wait."""
    return max(1, min(LEAST_WISH, math.floor(limit / (4 * max(1, members)))))


def fair_share(capacity: int, wanted: Mapping[str, int], turn: int) -> dict[str, int]:
    """Divide the capacity into whole shares that are max-min fair.

    A member could get more only if another member, with an equal or smaller share, got less.

    Among members that want the same, some may get one request more than the others. ``turn`` is a
    counter that rises with time: with each step, other members get this request.
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
    # If the store's clock was set back, the store must learn too: the clock cannot show which
    # leases are live.
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
    """The share by rule 4, and whether it comes out of the part that rule 1 keeps back."""
    capacity = divided(limit)
    if own is not None:
        return min(own.share, wish.wanted), own.kept_back
    if wish.holds:
        lent = sum(lease.share for lease in live.values() if not lease.kept_back)
        return max(0, min(wish.holds, wish.wanted, capacity - lent)), False
    lent = sum(lease.share for lease in live.values() if lease.kept_back)
    return max(0, min(LEAST_WISH, wish.wanted, max(1, math.floor(limit)) - capacity - lent)), True


def without_store(limit: float, members: int) -> int:
    """How many requests a second a process may send without the store: an even part."""
    return max(1, divided(limit) // max(1, members))


@attrs.frozen
class Holding:
    """How much one process may send, by the store's latest answer and the process's own clock.

    ``granted``: the latest share. ``until``: when its lease ends; the lease begins when the process
    asks. ``lease``: the length of the lease in seconds. ``members``: how many processes shared the
    limit.
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
        """Requests a second that the process may send at ``now``; 0 if it may send none."""
        if now < self.until:
            return self.granted
        alone = without_store(limit, self.members)
        # Lower the rate at once. Raise it only when every other lease has ended too.
        return min(self.granted, alone) if now < self.until + self.lease else alone

    def changes_at(self, now: float) -> float | None:
        """When the rate next changes if the store does not answer; None if it will not change."""
        return next((at for at in (self.until, self.until + self.lease) if now < at), None)
