"""Retries: the policy, the budget, and the next step after a failed attempt.

Pure: ``now`` (monotonic seconds) and ``rng`` are passed in.
"""

from __future__ import annotations

import sys
from random import Random
from typing import Final, NamedTuple

import attrs

from .._wire.failure import Failure
from ..errors import ApiError, CallTimeoutError, InvalidArgumentError, SinchError

__all__ = [
    "Again",
    "GiveUp",
    "Renew",
    "RetryBudget",
    "RetryPolicy",
    "Step",
    "Tries",
    "WaitForBudget",
    "next_step",
]

BLOCKED_FOR: Final = 60.0
"""If a project gets no answer but 429 for so many seconds, its calls end with RateLimitedError."""

BUDGET_LOOKS: Final = (0.5, 1.5)
"""A call that waits for the retry budget checks it again after a random time between these
seconds."""

BUDGET_USED_UP: Final = "the project's retry budget is used up"

# A larger integer cannot be multiplied with a float.
_LARGEST: Final = sys.float_info.max


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often a call is retried, and how long it waits between attempts.

    ``max_retries``: retries after a failure. The one replay after a 401 is not counted. A retry
    after a 429 is not counted either: a 429 usually means that the project sends too much, so the
    call waits for its next turn as long as its ``timeout`` allows. The call ends with
    :class:`RateLimitedError` if ``max_retries`` is 0, if the server asks for more than
    ``max_retry_after``, or if the project has had no answer but 429 for a minute. ``base_delay``,
    ``max_delay``: seconds. A retry waits a random time between 0 and ``base_delay``; each further
    retry doubles the upper bound, up to ``max_delay`` (full jitter). If the server sends
    ``Retry-After``, the retry waits for that time instead. ``max_retry_after``: seconds. If the
    server asks for a longer wait, the call ends with the server's error. ``retry_maybe_sent``:
    whether to repeat a request that the server may have applied. An update replaces the whole
    metadata, so a repeat does no harm, with one exception: if another writer changed the metadata
    in between, the repeat overwrites that change.

    ``wait_for_budget``: what happens if the project's retry budget is used up. ``False``: the call
    ends with its error. ``True``: the call waits until the budget has room, as long as its
    ``timeout`` allows.

    Raises :class:`InvalidArgumentError` for a value that is negative, not finite or not a number.
    """

    max_retries: int = 4
    base_delay: float = 0.5
    max_delay: float = 20.0
    max_retry_after: float = 120.0
    retry_maybe_sent: bool = True
    wait_for_budget: bool = False

    def __attrs_post_init__(self) -> None:
        if (
            isinstance(self.max_retries, bool)
            or not isinstance(self.max_retries, int)
            or self.max_retries < 0
        ):
            raise InvalidArgumentError("max_retries must be a whole number, 0 or more")
        for name in ("base_delay", "max_delay", "max_retry_after"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 <= value <= _LARGEST
            ):
                raise InvalidArgumentError(f"{name} must be a finite number of seconds, 0 or more")
        for name in ("retry_maybe_sent", "wait_for_budget"):
            if type(getattr(self, name)) is not bool:
                raise InvalidArgumentError(f"{name} must be True or False")

    def allows(self, failure: Failure, *, safe: bool = False) -> bool:
        """Whether this kind of failure may be retried.

        ``safe``: a repeat of the request changes nothing (a read), so ``retry_maybe_sent`` does not
        matter.
        """
        return failure.retryable and (safe or self.retry_maybe_sent or not failure.maybe_applied)

    def too_long(self, retry_after: float | None) -> bool:
        """Whether the server asks for a longer wait than ``max_retry_after``."""
        return retry_after is not None and retry_after > self.max_retry_after

    def delay(self, *, retries: int, retry_after: float | None, rng: Random) -> float:
        """Seconds to wait before retry number ``retries`` + 1.

        With ``retry_after`` this is ``retry_after`` plus up to ``base_delay``, so that calls that
        were refused together do not come back together. Without it, this is the random time (full
        jitter) that the class describes.
        """
        if retry_after is not None:
            return retry_after + rng.uniform(0, self.base_delay)
        # Stop after 64 doublings: 2.0**1024 would overflow.
        return rng.uniform(0, min(self.max_delay, self.base_delay * 2.0 ** min(retries, 64)))

    def throttled_delay(self, times: int, *, rng: Random) -> float:
        """Seconds that one call waits in addition, after ``times`` 429s in a row (2 or more).

        The wait is between half and all of ``base_delay``, which doubles each time up to
        ``max_delay``. With full jitter, some calls would come back within the same second.
        """
        return rng.uniform(0.5, 1.0) * min(
            self.max_delay, self.base_delay * 2.0 ** min(times - 2, 64)
        )


class Tries(NamedTuple):
    """The facts about one call's earlier attempts that the next step depends on.

    ``retries``: how many attempts it made after a failure, without the attempts after a 429.
    ``throttled``: how many 429s came in a row. ``replayed``: the call was sent again with another
    token after a 401. ``reconnected``: the call was sent again at once after a stale connection.
    """

    retries: int = 0
    throttled: int = 0
    replayed: bool = False
    reconnected: bool = False


class Again(NamedTuple):
    """Send the call again after ``delay`` seconds.

    ``budgeted``: the retry budget counts this attempt.
    """

    delay: float
    tries: Tries
    budgeted: bool = False


class Renew(NamedTuple):
    """Send the call again with another access token, if the token source has one."""

    tries: Tries


class WaitForBudget(NamedTuple):
    """Decide again after ``delay`` seconds: the retry budget may have room by then."""

    delay: float


class GiveUp(NamedTuple):
    """End the call with ``error``."""

    error: SinchError


Step = Again | Renew | WaitForBudget | GiveUp


def next_step(
    failure: Failure,
    tries: Tries,
    policy: RetryPolicy,
    *,
    safe: bool,
    blocked_for: float,
    budget_left: bool,
    now: float,
    deadline: float | None,
    rng: Random,
) -> Step:
    """Decide what a call does after a failed attempt.

    ``safe``: a repeat changes nothing. ``blocked_for``: for how many seconds the project has had no
    answer but 429. ``budget_left``: whether the project's retry budget has room for one more retry.
    ``deadline``: when the call's timeout passes, ``None`` without one.
    """
    error = failure.error
    status = error.http_status if isinstance(error, ApiError) else None
    if status == 401:
        # WWW-Authenticate is not read: the API refuses an expired token in more than one way.
        return GiveUp(error) if tries.replayed else Renew(tries._replace(replayed=True))
    if (
        not policy.max_retries
        or not policy.allows(failure, safe=safe)
        or policy.too_long(failure.retry_after)
    ):
        return GiveUp(error)
    if status == 429:
        if blocked_for >= BLOCKED_FOR:
            return GiveUp(error)
        again = _after_429(failure, tries, policy, rng)
    elif tries.retries >= policy.max_retries:
        return GiveUp(error)
    elif failure.stale_connection and not tries.reconnected:
        # A stale connection does not show that the server fails.
        again = Again(0.0, tries._replace(retries=tries.retries + 1, reconnected=True))
    elif not budget_left:
        delay = rng.uniform(*BUDGET_LOOKS)
        if policy.wait_for_budget and (deadline is None or now + delay <= deadline):
            return WaitForBudget(delay)
        error.give_up(BUDGET_USED_UP)
        return GiveUp(error)
    else:
        delay = policy.delay(retries=tries.retries, retry_after=failure.retry_after, rng=rng)
        tries = tries._replace(retries=tries.retries + 1, throttled=0)
        again = Again(delay, tries, budgeted=True)
    if deadline is not None and again.delay and now + again.delay > deadline:
        return GiveUp(CallTimeoutError("no other attempt can be made before the timeout"))
    return again


def _after_429(failure: Failure, tries: Tries, policy: RetryPolicy, rng: Random) -> Again:
    """The next step after a 429: the call waits for its turn like every other call.

    From the second 429 in a row on, the call also waits a time of its own, unless the server has
    sent ``Retry-After``. The reason: processes that share a limit can use all of it for longer than
    a few pauses.
    """
    times = tries.throttled + 1
    delay = 0.0
    if times > 1 and failure.retry_after is None:
        delay = policy.throttled_delay(times, rng=rng)
    return Again(delay, tries._replace(throttled=times))


class RetryBudget:
    """Bounds the retries by a share of the calls, so that an outage does not multiply the load.

    Within ten seconds there may be at most 100 retries, plus 20 % of the calls whose first request
    was sent in that time. A single caller rarely reaches this bound. A service whose calls all fail
    sends 1.2 requests a call instead of five.

    Calls and retries count when they are sent, so a call that waits for its turn allows no retry
    yet. An allowed retry is reserved (``reserve``) until it is sent, or until it is known that it
    will not be sent; then ``release`` ends the reservation.
    """

    SHARE = 0.2
    PER_SECOND = 10
    WINDOW = 10

    __slots__ = ("_calls", "_calls_sum", "_reserved", "_retries", "_retries_sum", "_second")

    def __init__(self) -> None:
        self._calls = [0] * self.WINDOW
        self._retries = [0] * self.WINDOW
        self._calls_sum = 0
        self._retries_sum = 0
        self._reserved = 0
        self._second = 0

    def _roll(self, second: int) -> None:
        """Forget the seconds that have left the window. This takes ten steps at most."""
        for passed in range(self._second + 1, min(second, self._second + self.WINDOW) + 1):
            slot = passed % self.WINDOW
            self._calls_sum -= self._calls[slot]
            self._retries_sum -= self._retries[slot]
            self._calls[slot] = self._retries[slot] = 0
        self._second = second

    def call_sent(self, now: float) -> None:
        """Record that the first request of a call is sent."""
        second = int(now)
        if second != self._second:
            self._roll(second)
        self._calls[second % self.WINDOW] += 1
        self._calls_sum += 1

    def allows(self, now: float) -> bool:
        """Whether one more retry may be made."""
        second = int(now)
        if second != self._second:
            self._roll(second)
        retries = self._retries_sum + self._reserved + 1
        return retries <= self.SHARE * self._calls_sum + self.PER_SECOND * self.WINDOW

    def reserve(self) -> None:
        """Reserve a retry that will be sent later."""
        self._reserved += 1

    def release(self) -> None:
        """End the reservation of a retry: it was recorded as sent, or will not be sent."""
        self._reserved -= 1

    def retry_sent(self, now: float) -> None:
        """Record that a retry is sent."""
        second = int(now)
        if second != self._second:
            self._roll(second)
        self._retries[second % self.WINDOW] += 1
        self._retries_sum += 1

    def forget_reserved(self) -> None:
        """The event loop is closed, and the calls that had reserved a retry are gone."""
        self._reserved = 0
