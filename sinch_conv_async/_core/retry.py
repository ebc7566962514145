"""When to try again: the policy, the budget, and what an attempt's failure says about it.

Pure: ``now`` (monotonic seconds) and ``rng`` are passed in.
"""

from __future__ import annotations

import sys
from random import Random
from typing import Final

import attrs

from .._wire.failure import Failure
from ..errors import InvalidArgumentError

__all__ = ["RetryBudget", "RetryPolicy"]

# An integer may be larger, and does not multiply with a float then.
_LARGEST: Final = sys.float_info.max


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often and how patiently a call is tried again.

    ``max_retries``: retries after the first attempt; the one replay after a 401 is not counted.
    ``base_delay``, ``max_delay``: seconds; a retry waits a random time between 0 and ``base_delay``, which doubles with each retry up to
    ``max_delay`` (full jitter), or what ``Retry-After`` asks for. ``max_retry_after``: seconds; a server that asks for more than this
    ends the call with its error. ``retry_maybe_sent``: whether to repeat a request that the server may have applied. Setting metadata
    is absolute, so a repeat is harmless, unless somebody else wrote other metadata in between: it would be overwritten.

    Raises :class:`InvalidArgumentError` for a negative or non-finite number, and for what is no number.
    """

    max_retries: int = 4
    base_delay: float = 0.5
    max_delay: float = 20.0
    max_retry_after: float = 120.0
    retry_maybe_sent: bool = True

    def __attrs_post_init__(self) -> None:
        if (
            isinstance(self.max_retries, bool)
            or not isinstance(self.max_retries, int)
            or self.max_retries < 0
        ):
            raise InvalidArgumentError("max_retries must be a whole number, 0 or more")
        for name in ("base_delay", "max_delay", "max_retry_after"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
                raise InvalidArgumentError(f"{name} must be a finite number of seconds, 0 or more")
        if type(self.retry_maybe_sent) is not bool:
            raise InvalidArgumentError("retry_maybe_sent must be True or False")

    def allows(self, failure: Failure) -> bool:
        """Whether this kind of failure may be tried again at all; how often, and the budget, are asked separately."""
        return failure.retryable and (self.retry_maybe_sent or not failure.maybe_applied)

    def too_long(self, retry_after: float | None) -> bool:
        """Whether the server asks for more patience than there is."""
        return retry_after is not None and retry_after > self.max_retry_after

    def delay(self, *, retries: int, retry_after: float | None, rng: Random) -> float:
        """Seconds to wait before retry number ``retries`` + 1.

        A server's ``Retry-After`` is kept to, plus up to ``base_delay``, so that those who were sent away together do not come back together.
        """
        if retry_after is not None:
            return retry_after + rng.uniform(0, self.base_delay)
        # Doubling 64 times is beyond any max_delay already; 2.0**1024 would overflow.
        return rng.uniform(0, min(self.max_delay, self.base_delay * 2.0 ** min(retries, 64)))

    def throttled_delay(self, times: int, *, rng: Random) -> float:
        """Seconds that a call steps back for which has been answered 429 ``times`` times in a row, the first one not counting.

        Between half and all of ``base_delay``, doubled each time: with full jitter some come back into the same full second.
        """
        return rng.uniform(0.5, 1.0) * min(self.max_delay, self.base_delay * 2.0 ** min(times - 2, 64))


class RetryBudget:
    """Keeps an outage from being multiplied: retries are at most a share of the calls.

    Of the last ten seconds, 20 % of the calls plus 10 a second may be retried. A lone caller hardly meets it; a
    service whose every call fails sends 1.2 requests a call instead of five.
    """

    SHARE = 0.2
    PER_SECOND = 10
    WINDOW = 10

    __slots__ = ("_calls", "_calls_sum", "_retries", "_retries_sum", "_second")

    def __init__(self) -> None:
        self._calls = [0] * self.WINDOW
        self._retries = [0] * self.WINDOW
        self._calls_sum = 0
        self._retries_sum = 0
        self._second = 0

    def _roll(self, second: int) -> None:
        """Forgets the seconds that have left the window; at most ten steps, whatever time has passed."""
        for passed in range(self._second + 1, min(second, self._second + self.WINDOW) + 1):
            slot = passed % self.WINDOW
            self._calls_sum -= self._calls[slot]
            self._retries_sum -= self._retries[slot]
            self._calls[slot] = self._retries[slot] = 0
        self._second = second

    def call(self, now: float) -> None:
        """Records a call that starts."""
        second = int(now)
        if second != self._second:
            self._roll(second)
        self._calls[second % self.WINDOW] += 1
        self._calls_sum += 1

    def allows(self, now: float) -> bool:
        """Whether a retry may be made now."""
        second = int(now)
        if second != self._second:
            self._roll(second)
        return self._retries_sum + 1 <= self.SHARE * self._calls_sum + self.PER_SECOND * self.WINDOW

    def take(self, now: float) -> bool:
        """Takes one retry out of the budget, or answers False when it is used up."""
        if not self.allows(now):
            return False
        self._retries[self._second % self.WINDOW] += 1
        self._retries_sum += 1
        return True
