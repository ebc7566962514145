"""When the next request of one project may depart.

Arithmetic on numbers that are passed in: monotonic seconds, answers of status 429, a source of randomness. It knows
neither who is waiting nor what is sent, and has no clock: a caller looks at ``due``, and tells of each departure.

Three rules together give the time of the next departure; the latest of them wins.

* *The window.* The departures of the last second, and the calls that were admitted and have not departed yet, are
  together at most ``limit``. This is the promise that is never broken: no second, wherever it begins, holds more
  departures than ``limit``. A departure is the write to the socket. Opening a connection may delay it after the
  admission, so a call counts from its admission on, and its second begins with its departure.
* *The spacing.* Departures follow one another at the pace, evenly. A wake-up that comes late finds several due and makes
  them all, so that a busy event loop costs no throughput; after idleness nothing has been saved up.
* *The pause.* After a 429 nobody departs for a while.

With each congestion the pace falls, to a little less than what was let through in the last second, and climbs back by
a fixed amount a second (additive increase, multiplicative decrease: Chiu and Jain, 1989, show that those who share a
limit in this way, knowing nothing of each other, come to share it evenly). What this does with the usual ways of
counting on a server is measured in ``benchmarks/pace_simulation.py``.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import deque
from random import Random
from typing import Final

__all__ = ["Pace"]

# A request counts against the server's second for a second; the nanosecond keeps rounding from making it less.
WINDOW: Final = 1.0 + 1e-9

# The ring starts small and doubles: hundreds of projects may share a process, most of them far below their limit.
FIRST_RING: Final = 16

NEVER: Final = -math.inf


class Pace:
    """The pace of one project: at most ``limit`` departures in any second, fewer while the server says 429.

    ``limit`` is in requests a second; ``None`` sets no pace at all, and a 429 then only pauses. A window of one second
    holds whole requests, so 2.5 a second counts as 2; below 1 it means one request every ``1 / limit`` seconds.

    ``due`` is the earliest time of the next admission, to be read only; infinite while every place of the window is
    taken by a call that was admitted and has not departed yet. When it is not later than now, and a call is there to be
    sent, call ``admit(now)``, then ``left(now)`` when its request has been written, or ``refund()`` if it never will be.
    When the line of waiting calls has run empty, call ``idle()``.
    """

    # The values come out of benchmarks/pace_simulation.py, which says what others do.
    HEADROOM = 0.005  # of the interval: the window is left unfilled by so much, or jitter on the way would overfill it
    CATCH_UP = 0.25  # seconds of lateness that are made up for; also the largest burst, in seconds' worth of departures
    FALL = 0.97  # the pace falls to this share of what has lately been let through
    WAITING_FALL = 0.66  # and to this of itself where the server asks for a wait: touches had better be rare
    TELLING = 5  # departures in a second, fewer of which say nothing about what is let through
    SATURATED = 0.5  # of the pace; nor does what departs at less than this
    PAUSE = 0.0125  # seconds, doubling while congestion lasts: 0.1 at most
    DEEPEST = 3  # doublings
    HEEL = 0.5  # seconds: a congestion that comes so soon after the last pause is the last one's continuation
    CLIMB = 0.015  # of the limit, each second
    LEAST = 0.35  # of the pace that was, within a second
    FLOOR = 0.002  # of the limit

    __slots__ = (
        "_allowance",
        "_at",
        "_brink",
        "_brink_at",
        "_climb",
        "_depth",
        "_dropped",
        "_interval",
        "_limit",
        "_lowered",
        "_next",
        "_outstanding",
        "_rate",
        "_rate_since",
        "_refused",
        "_ring",
        "_size",
        "_slowed",
        "_span",
        "_top",
        "_window",
        "due",
        "paused_until",
    )

    def __init__(self, limit: float | None) -> None:
        self.paused_until = NEVER
        self._next = NEVER  # the spacing's own time for the next departure
        self._allowance = 0.0  # how far the spacing may lie behind now
        self._lowered = NEVER
        self._depth = 0
        self._brink = math.inf  # the pace before it began to fall, and when that was
        self._brink_at = NEVER
        self._slowed = False
        self._rate = math.inf
        self._rate_since = NEVER
        self._refused: deque[float] = deque()  # when what was refused had departed, for a second
        self._ring = array("d")
        self._at = 0  # where the oldest departure lies, which the next one replaces
        self._dropped = NEVER
        self._outstanding = 0  # calls that were admitted and have not departed yet
        self.limit = limit  # and with it all that follows from it

    @property
    def limit(self) -> float | None:
        """The most requests a second; may be set while running."""
        return self._limit

    @limit.setter
    def limit(self, limit: float | None) -> None:
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(f"limit must be a positive number of requests a second or None, not {limit!r}")
        self._limit = limit
        newest = self._ring[self._at :] + self._ring[: self._at]
        if limit is None:
            self._window = 0  # else the whole requests that the ring may come to hold
            self._top = math.inf
            self._slowed = False
            newest = array("d")  # a limit that is set later counts from then on
        else:
            # Half a request more in every second would need a window of two.
            self._window = max(1, math.floor(limit))
            self._top = self._window if limit >= 1 else limit
            self._span = WINDOW if limit >= 1 else WINDOW / limit
            self._climb = self.CLIMB * self._top
            self._interval = (1 + self.HEADROOM) / self._top
            if len(newest) > self._window:
                self._dropped = newest[-self._window - 1]
                newest = newest[-self._window :]
            elif not newest:
                newest = array("d", [NEVER]) * min(self._window, FIRST_RING)
        if not self._slowed or self._rate > self._top:
            self._rate = self._top
        # A lower limit holds from the next departure on; a higher one at once, and what waited for the lower one is not lateness.
        soonest = max(newest[-1] + self._interval if newest else NEVER, self.paused_until)
        if self._next > soonest:
            self._next = soonest
            self._allowance = 0.0
        self._ring = newest
        self._size = len(newest)
        self._at = 0
        self._settle()

    @property
    def rate(self) -> float:
        """The pace in requests a second, as of the last departure or 429; infinite without a limit."""
        return self._rate

    @property
    def top(self) -> float:
        """The most requests a second that the pace climbs to: the limit, as far as a second holds whole requests."""
        return self._top

    def rate_at(self, now: float) -> float:
        """The pace that has been climbed back to by ``now``; changes nothing."""
        if not self._slowed:
            return self._rate
        return min(self._top, self._rate + self._climb * max(0.0, now - self._rate_since))

    def depart(self, now: float) -> None:
        """Admit a call whose request is written at once."""
        self.admit(now)
        self.left(now)

    def admit(self, now: float) -> None:
        """Give a call its turn. It takes a place of the window until ``left`` or ``refund`` says what became of it."""
        taken = self._outstanding + 1
        self._outstanding = taken
        if not self._window:
            return
        late = now - self._allowance
        due = (late if self._next < late else self._next) + (
            self._climbing(now) if self._slowed else self._interval
        )
        self._next = due
        self._allowance = self.CATCH_UP
        if taken >= self._size:
            self._settle()
            return
        at = self._at + taken
        if at >= self._size:
            at -= self._size
        free = self._ring[at] + self._span
        if free > due:
            if self._size < self._window:
                self._settle()
                return
            due = free
        self.due = due

    def left(self, now: float) -> bool:
        """Record a departure: the request of a call that was admitted has been written. Whether ``due`` came nearer."""
        full = self._outstanding >= self._size
        self._outstanding -= 1
        if not self._window:
            return False
        at = self._at
        self._ring[at] = now
        self._at = at + 1 if at + 1 < self._size else 0
        if full:
            self._settle()
        return full

    def idle(self) -> None:
        """Nobody waits any more: what the next departure is late by is not lateness."""
        self._allowance = 0.0

    def refund(self) -> None:
        """Give back the turn of a call that was admitted and will not depart."""
        self._outstanding -= 1
        if not self._window:
            return
        self._next -= self._interval
        self._settle()

    def lost(self) -> None:
        """The calls that were admitted and have not departed yet are gone with their event loop."""
        self._outstanding = 0
        self._settle()

    def throttled(self, now: float, *, departed: float, retry_after: float | None, rng: Random) -> None:
        """Take note of a 429 to a request that departed at ``departed``: pause, and lower the pace once."""
        if self._window:
            refused = self._refused
            refused.append(departed)
            while refused and refused[0] <= now - WINDOW:
                refused.popleft()
        if departed > self._lowered:
            if retry_after is not None:
                self._depth = self.DEEPEST
            elif departed < max(self._lowered, self.paused_until) + self.HEEL:
                self._depth = min(self._depth + 1, self.DEEPEST)
            else:
                self._depth = 0
            if self._window:
                rate = self.rate_at(now)
                if departed > self._brink_at + WINDOW:
                    self._brink = rate
                    self._brink_at = now
                if retry_after is None:
                    rate = self.FALL * min(rate, self._let_through(now))
                else:
                    rate *= self.WAITING_FALL
                # A server that remembers a second refuses for what was sent before the pace fell. Within a second it
                # falls no further than this, or it would take long to climb back.
                self._rate = max(rate, self._brink * self.LEAST, self._top * self.FLOOR)
                self._slowed = True
            self._lowered = now
            if retry_after is None:
                # Between half and all of it, so that processes that were refused together do not come back together.
                retry_after = self.PAUSE * (1 << self._depth) * rng.uniform(0.5, 1.0)
        elif retry_after is None:
            return
        until = now + retry_after
        if until > self.paused_until:
            self.paused_until = until
            if self._next < until:
                self._next = until  # what the pause held back is not lateness
        self._rate_since = self.paused_until  # nothing is climbed while nobody departs
        self._settle()

    def _let_through(self, now: float) -> float:
        """Requests a second that departed in the last one and have not been refused; infinite where too few did to say."""
        size, at, ring = self._size, self._at, self._ring
        oldest = bisect_right(range(size), now - WINDOW, key=lambda index: ring[(at + index) % size])
        departed = size - oldest
        if departed < self.TELLING:
            return math.inf
        # The first of them may be a moment ago: then it is of a part of a second that they tell.
        seconds = max(now - ring[(at + oldest) % size], self.PAUSE)
        if departed < self.SATURATED * self._rate * seconds:
            return math.inf  # so few were there to be sent, and what they used is not what there is
        return (departed - len(self._refused)) / seconds

    def _climbing(self, now: float) -> float:
        """The interval after a departure made now, while the pace climbs."""
        rate = self.rate_at(now)
        self._rate = rate
        self._rate_since = now
        if rate >= self._top:
            self._slowed = False
            return self._interval
        # One request's worth of a pace that goes on climbing: rate * t + climb * t * t / 2 == 1.
        interval = 2 * (1 + self.HEADROOM) / (rate + math.sqrt(rate * rate + 2 * self._climb))
        return max(interval, self._interval)

    def _grow(self) -> float:
        """Make room in the ring, ahead of its oldest departure; the time from which the window has room."""
        extra = min(self._size, self._window - self._size)
        # What an earlier, lower limit made us forget is taken to be as late as it can have been.
        self._ring = array("d", [self._dropped]) * extra + self._ring[self._at :] + self._ring[: self._at]
        self._size += extra
        self._at = 0
        return self._free()

    def _free(self) -> float:
        """The time from which the window has room; infinite while calls that have not departed take every place."""
        taken = self._outstanding
        if taken >= self._size:
            return math.inf
        return self._ring[(self._at + taken) % self._size] + self._span

    def _settle(self) -> None:
        due = max(self._next, self.paused_until)
        if self._window:
            free = self._free()
            while free > due and self._size < self._window:
                free = self._grow()
            due = max(due, free)
        self.due = due
