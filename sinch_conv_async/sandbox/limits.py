"""How many requests are let through: a window of a second, and a token bucket. Both are pure."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import attrs

__all__ = ["Bucket", "Limit", "Unlimited", "Window"]


class Limit(Protocol):
    """Decides which requests are too many, one after the other, all connections together."""

    def admits(self, now: float) -> bool:
        """Count a request at this time, or say False and do not count it."""
        ...


class Unlimited:
    """Lets everything through."""

    def admits(self, now: float) -> bool:
        """Say True."""
        return True


@attrs.define(eq=False)
class Window:
    """At most `limit` requests in any window of one second."""

    limit: int
    _arrivals: deque[float] = attrs.field(factory=deque[float], init=False, repr=False)

    def admits(self, now: float) -> bool:
        """Count a request, unless the second before it holds as many as the limit allows."""
        arrivals = self._arrivals
        while arrivals and arrivals[0] <= now - 1.0:
            arrivals.popleft()
        if len(arrivals) >= self.limit:
            return False
        arrivals.append(now)
        return True


@attrs.define(eq=False)
class Bucket:
    """`burst` requests at once, and `rate` a second from then on."""

    rate: float
    burst: int
    _filled_at: float
    _content: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._content = float(self.burst)

    def admits(self, now: float) -> bool:
        """Fill the bucket up to now, and take one out of it, unless it holds less than one."""
        self._content = min(self._content + (now - self._filled_at) * self.rate, float(self.burst))
        self._filled_at = now
        if self._content < 1.0:
            return False
        self._content -= 1.0
        return True
