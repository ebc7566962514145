"""The pace of one project: it tells when the next request may depart.

This file only computes. It has no clock, and does not depend on the waiting calls or on what they
send. The caller passes in monotonic seconds, 429 answers and a source of randomness. It reads
``due``, and reports each admission and each departure.

Three rules give a time for the next departure; the latest of the three times is used.

* *The window.* A departure is the write of a request to its socket. The departures of the last
  second, and the calls that were admitted and have not departed yet, are together at most
  ``limit``. So no second, wherever it begins, holds more departures than ``limit``. No other rule
  overrides this rule. Opening a connection may delay a departure. So a call counts from its
  admission until one second after its departure.
* *The spacing.* Departures follow one another evenly, at the pace. If the event loop wakes up late,
  several departures are due, and all of them may happen at once. So a busy loop costs no
  throughput. After an idle time, ``burst`` departures may happen at once; without a fleet ``burst``
  is 1.
* *The pause.* After a 429 no request departs for a while.

The pace follows AIMD, additive increase and multiplicative decrease. Chiu and Jain (1989) show that
processes with AIMD divide a limit evenly after a while, although they do not know each other.

* *Decrease.* A 429 lowers the pace to 98 % of the requests that were accepted in the last second
  (``DECREASE_FACTOR``). Further 429s to requests that departed before this fall change nothing.
* *Increase.* The pace climbs back by 2.6 % of the limit each second (``INCREASE_PER_SECOND``).
* *Noise.* Some 429s come at any pace: one app may have its own limit, or each gateway node may
  count its own requests. These 429s must not lower the pace: if 1 % of all answers were such 429s,
  the pace would lose most of the limit. So each fall is an experiment (``noise.py``). For 2.3 s or
  more, the pace does not climb, and the refusals before and after the fall are counted. If the
  refusals go on as before (``noise.py`` says when), they are noise: the pace goes back to its value
  before the fall (``rate_before``), and from then on this share of refusals causes neither a pause
  nor a fall. If there are still refusals that are not noise, the pace falls again.
* If clearly more than 5 % of the requests are refused, the cause is always congestion: the pace
  falls at once, and the known noise is forgotten.
* A process whose pace is less than a fifth of its limit takes all refusals for congestion
  (``PART_FOR_NOISE``). Other processes use the requests that this process leaves free, so its falls
  reduce the refusals little. It could not distinguish refusals that the other processes cause from
  noise.

``benchmarks/pace_simulation.py`` simulates these rules with servers that count in the usual ways.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import deque
from random import Random
from typing import Final

from .noise import LEAST_SENT, LONGEST_TRIAL, Noise, Sample, Trial, explains, severe

__all__ = ["Pace"]

# A server counts each request for one second. Because of the extra nanosecond, rounding cannot make
# this window shorter than a second.
WINDOW: Final = 1.0 + 1e-9

# To save memory, the ring starts small and doubles when it is full. A process may have hundreds of
# projects, and most of them stay far below their limit.
FIRST_RING: Final = 16

NEVER: Final = -math.inf


class Pace:
    """The pace of one project: at most ``limit`` departures in any second, fewer after a 429.

    ``limit`` is in requests a second; ``None`` sets no pace at all, and a 429 then only pauses. A
    window of one second holds whole requests, so a limit of 2.5 counts as 2. A limit below 1 means
    one request every ``1 / limit`` seconds. With a limit of 0, no request departs until another
    limit is set.

    ``burst``: how many departures may happen at once after an idle time; they count in the window
    too. A new value takes effect when ``limit`` is set next.

    ``due`` is the earliest time of the next admission; read it only. It is infinite while calls
    that were admitted and have not departed take every place of the window. When ``due`` has come
    and a call waits, call ``admit(now)``. Then call ``left(now)`` when the request has been
    written, or ``refund()`` if it will never be written. When no call waits any more, call
    ``idle()``.
    """

    # benchmarks/pace_simulation.py gave these values; docs/evidence/pace.rst has the figures.

    # The interval is longer by this share. Otherwise, jitter of the network would put too many
    # requests into the server's window.
    HEADROOM = 0.005
    # Seconds of lateness that the spacing makes up for. After a stall, the burst has at most the
    # requests of so many seconds.
    CATCH_UP = 0.25
    # The same, after a wait for room in the window.
    CATCH_UP_WHEN_FULL = 0.05
    DECREASE_FACTOR = 0.98  # the pace falls to this share of the requests accepted lately
    DECREASE_FACTOR_ASKED = 0.66  # of the pace, if the server asks for a wait
    INCREASE_PER_SECOND = 0.026  # of the limit
    INCREASE_PER_SECOND_ASKED = 0.015  # after a wait that the server has asked for
    # After so many seconds the pace is back at the limit, from any lower value.
    AT_REST_AFTER = 1 / INCREASE_PER_SECOND_ASKED + LONGEST_TRIAL
    STRAY = 0.01  # after a fall, this share of refusals causes no second fall
    # A share of the limit. A process below it shares the limit with other processes, and the
    # refusals that those cause look like noise.
    PART_FOR_NOISE = 0.2
    TELLING = 5  # fewer departures in a second do not show how many the server accepts
    SATURATED = 0.5  # of the pace; fewer departures than this share do not show it either
    PAUSE = 0.0125  # seconds; doubled while congestion lasts, up to 0.1
    DEEPEST = 3  # the most doublings of PAUSE
    # Seconds after a pause. A 429 to a request that departed within them belongs to the congestion
    # before the pause.
    RESUMED_FOR = 0.5
    LEAST = 0.35  # of the earlier pace: within a second the pace falls no lower
    FLOOR = 0.002  # of the limit: the pace never falls lower

    __slots__ = (
        "_allowance",
        "_at",
        "_decreased_at",
        "_depth",
        "_dropped",
        "_increase",
        "_interval",
        "_limit",
        "_lowered",
        "_next",
        "_noise",
        "_outstanding",
        "_rate",
        "_rate_before_decrease",
        "_rate_since",
        "_refused",
        "_ring",
        "_saved",
        "_size",
        "_slowed",
        "_span",
        "_top",
        "_trial",
        "_window",
        "burst",
        "due",
        "paused_until",
    )

    def __init__(self, limit: float | None) -> None:
        self.paused_until = NEVER
        self._next = NEVER  # when the spacing allows the next departure
        self._allowance = 0.0  # seconds of lateness that the spacing may make up for now
        self.burst = 1
        self._saved = 0.0  # the allowance after an idle time
        self._interval = math.inf  # between two departures at the limit
        self._lowered = NEVER  # when a 429 last paused or lowered the pace
        self._depth = 0  # how often PAUSE is doubled
        self._rate_before_decrease = math.inf  # the pace before the latest decrease
        self._decreased_at = NEVER  # when that decrease began
        self._noise = Noise()
        self._trial: Trial | None = None
        self._slowed = False
        self._rate = math.inf
        self._rate_since = NEVER
        # The times at which refused requests departed; each is kept for a second.
        self._refused: deque[float] = deque()
        self._ring = array("d")
        self._at = 0  # index of the oldest departure, which the next one replaces
        self._dropped = NEVER  # the newest departure that a lower limit removed from the ring
        self._outstanding = 0  # calls that were admitted and have not departed yet
        self._window = 0
        self.limit = limit  # the setter computes the other attributes

    @property
    def limit(self) -> float | None:
        """The most requests a second.

        It may be set at any time. 0 means that no request departs until another limit is set.
        """
        return self._limit

    @limit.setter
    def limit(self, limit: float | None) -> None:
        if limit is not None and not 0 <= limit < math.inf:
            raise ValueError(
                f"limit must be a number of requests a second, 0 or more, or None, not {limit!r}"
            )
        if limit == 0:
            self._hold()
            return
        self._limit = limit
        newest = self._ring[self._at :] + self._ring[: self._at]
        if limit is None:
            self._window = 0  # with a limit: how many departures the ring may grow to hold
            self._top = math.inf
            self._slowed = False
            newest = array("d")  # a later limit counts only the departures after it is set
        else:
            # A limit of 2.5 would need a window of two seconds, so it counts as 2.
            self._window = max(1, math.floor(limit))
            self._top = self._window if limit >= 1 else limit
            self._span = WINDOW if limit >= 1 else WINDOW / limit
            self._increase = self.INCREASE_PER_SECOND * self._top
            before, self._interval = self._interval, (1 + self.HEADROOM) / self._top
            self._saved = (self.burst - 1) * self._interval
            # Lateness stands for a number of late requests. At a faster pace they take less time.
            self._allowance *= min(1.0, self._interval / before)
            if len(newest) > self._window:
                self._dropped = newest[-self._window - 1]
                newest = newest[-self._window :]
            elif not newest:
                newest = array("d", [NEVER]) * min(self._window, FIRST_RING)
        if not self._slowed or self._rate > self._top:
            self._rate = self._top
        # A lower limit takes effect at the next departure. A higher limit takes effect at once; a
        # wait that the old limit caused is not lateness.
        soonest = max(newest[-1] + self._interval if newest else NEVER, self.paused_until)
        if self._next > soonest:
            self._next = soonest
            self._allowance = 0.0
        self._ring = newest
        self._size = len(newest)
        self._at = 0
        self._settle()

    def _hold(self) -> None:
        """Let nothing depart until another limit is set. The ring keeps the departures."""
        if not self._window:
            self.limit = 1.0
        self._limit = 0.0
        self._interval = self._next = math.inf
        self._settle()

    def pause(self, until: float) -> None:
        """Let nothing depart before ``until``, because the API made the fleet wait."""
        if until > self.paused_until:
            self.paused_until = until
            if self._next < until:
                self._next = until
            self._settle()

    @property
    def rate(self) -> float:
        """The pace in requests a second, at the time of the last departure or 429.

        Infinite without a limit.
        """
        return 0.0 if self._limit == 0 else self._rate

    @property
    def top(self) -> float:
        """The most requests a second that the pace climbs to: the limit in whole requests."""
        return self._top

    def rate_at(self, now: float) -> float:
        """The pace at ``now``, after its climb; changes nothing."""
        return 0.0 if self._limit == 0 else self._climbed(now)

    def _climbed(self, now: float) -> float:
        if not self._slowed:
            return self._rate
        return min(self._top, self._rate + self._increase * max(0.0, now - self._rate_since))

    def depart(self, now: float) -> None:
        """Admit a call whose request is written at once."""
        self.admit(now)
        self.left(now)

    def admit(self, now: float) -> None:
        """Give a call its turn.

        It takes a place of the window until ``left`` or ``refund``.
        """
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
            # A wait that the window caused is not lateness. Otherwise a burst after a stall of the
            # event loop would repeat each second.
            self._next = max(due, free - self.CATCH_UP_WHEN_FULL)
            due = free
        self.due = due

    def left(self, now: float) -> bool:
        """Record a departure: the request of a call that was admitted has been written.

        Returns whether ``due`` came nearer.
        """
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
        """No call waits any more, so the time until the next departure is not lateness."""
        self._allowance = self._saved

    def refund(self) -> None:
        """Give back the turn of a call that was admitted and will not depart."""
        self._outstanding -= 1
        if not self._window:
            return
        if self._limit:
            self._next -= self._interval
        self._settle()

    def lost(self) -> None:
        """The calls that were admitted and have not departed yet are gone with their event loop."""
        self._outstanding = 0
        self._settle()

    def throttled(
        self, now: float, *, departed: float, retry_after: float | None, rng: Random
    ) -> None:
        """Pause and lower the pace, after a 429 to a request that departed at ``departed``."""
        if self._window:
            self._count_refusal(now, departed)
        if departed > self._lowered:
            if retry_after is None and self._window and self._is_noise(now):
                return
            self._deepen(departed, asked=retry_after is not None)
            pause = retry_after
            if pause is None:
                # Pause between half and all of this time, so that processes that were refused
                # together do not come back together.
                pause = self.PAUSE * (1 << self._depth) * rng.uniform(0.5, 1.0)
            if self._window:
                self._lower(
                    now,
                    departed,
                    max(now + pause, self.paused_until),
                    asked=retry_after is not None,
                )
            self._lowered = now
        elif retry_after is None:
            return
        else:
            pause = retry_after
        until = now + pause
        if until > self.paused_until:
            self.paused_until = until
            if self._next < until:
                self._next = until  # a wait that the pause caused is not lateness
        # The pace does not climb while nothing departs.
        self._rate_since = max(self._rate_since, self.paused_until)
        self._settle()

    def _count_refusal(self, now: float, departed: float) -> None:
        refused = self._refused
        refused.append(departed)
        while refused and refused[0] <= now - WINDOW:
            refused.popleft()
        trial = self._trial
        if trial is not None:
            trial.refused(departed)
            trial.refused_since += departed > self._lowered
            self._observe(now, trial)

    def _is_noise(self, now: float) -> bool:
        """Whether the latest refusals cause no fall: they are noise, or a trial counts them."""
        trial = self._trial
        if trial is None:
            share = self._noise.share
            return share > 0.0 and explains(share, self._lately(now))
        if now > self._lowered + WINDOW:
            return not severe(self._lately(now))
        return not severe(Sample(self._sent_since(self._lowered), trial.refused_since))

    def _deepen(self, departed: float, *, asked: bool) -> None:
        """Choose the length of the pause: it grows while congestion goes on."""
        if asked:
            self._depth = self.DEEPEST
        elif departed < max(self._lowered, self.paused_until) + self.RESUMED_FOR:
            self._depth = min(self._depth + 1, self.DEEPEST)
        else:
            self._depth = 0

    def _lower(self, now: float, departed: float, resumed: float, *, asked: bool) -> None:
        """Lower the pace (multiplicative decrease), and begin a trial that measures the effect."""
        before = self._climbed(now)
        if departed > self._decreased_at + WINDOW:
            self._rate_before_decrease = before
            self._decreased_at = now
        if asked:
            self._fall_to(before * self.DECREASE_FACTOR_ASKED)
            self._increase = self.INCREASE_PER_SECOND_ASKED * self._top
            self._trial = None
            self._rate_since = now
            return
        self._fall_to(self.DECREASE_FACTOR * min(before, self._let_through(now)))
        lately = self._lately(now)
        if severe(lately):
            self._noise.forget()
            before = self._rate
        self._begin(
            Trial(
                resumed=resumed,
                rate=self._rate,
                rate_before=before,
                before=lately,
                trigger=departed,
            )
        )

    def _fall_to(self, rate: float) -> None:
        # A server that counts the last second also counts requests that departed before the fall,
        # and refuses others because of them. So within a second the pace falls no lower than a
        # fixed share (``LEAST``) of its earlier value; otherwise its climb back would take long.
        self._rate = max(rate, self._rate_before_decrease * self.LEAST, self._top * self.FLOOR)
        self._slowed = True

    def _begin(self, trial: Trial) -> None:
        self._trial = trial
        self._increase = self.INCREASE_PER_SECOND * self._top
        self._rate_since = trial.ends  # no climb until then

    def _observe(self, now: float, trial: Trial) -> None:
        """Let the trial count, and set the pace by its result when it is over."""
        if now >= trial.count_at and not trial.count(now, self._sent_since(now - WINDOW)):
            self._trial = None  # too late: with so few departures, the trial has no result
        elif trial.over(now):
            self._trial = None
            if trial.after.sent >= LEAST_SENT:
                self._conclude(now, trial)

    def _conclude(self, now: float, trial: Trial) -> None:
        noise, after = self._noise, trial.after
        noise.learn(trial, may_be_noise=trial.rate_before >= self.PART_FOR_NOISE * self._top)
        if noise.share and explains(noise.share, trial.settling):
            # The refusals went on as before, so they are noise.
            self._rate = min(self._top, max(self._rate, trial.rate_before))
            self._rate_since = now
        elif not explains(max(noise.share, self.STRAY), after):
            # The fall was not enough.
            self._rate_before_decrease = self._rate
            self._fall_to(self._rate * self.DECREASE_FACTOR * (1.0 - after.share))
            self._lowered = now
            self._begin(
                Trial(
                    resumed=now,
                    rate=self._rate,
                    rate_before=trial.rate_before,
                    before=after,
                    trigger=now,
                )
            )

    def _sent_since(self, since: float) -> int:
        """Departures after ``since``, which is at most a second ago."""
        size, at, ring = self._size, self._at, self._ring
        return size - bisect_right(range(size), since, key=lambda index: ring[(at + index) % size])

    def _lately(self, now: float) -> Sample:
        """The requests of the last second."""
        return Sample(self._sent_since(now - WINDOW), len(self._refused))

    def _let_through(self, now: float) -> float:
        """Requests a second that the server accepted in the last second.

        Infinite if too few departed.
        """
        sent, refused = self._sent_since(now - WINDOW), len(self._refused)
        if sent < self.TELLING:
            return math.inf
        # The departures may cover only a part of the last second: then divide by that part.
        seconds = max(now - self._ring[(self._at - sent) % self._size], self.PAUSE)
        if sent < self.SATURATED * self._rate * seconds:
            return math.inf  # few calls were sent, so they do not show how many the server accepts
        return (sent - refused) / seconds

    def _climbing(self, now: float) -> float:
        """The interval after a departure made now, while the pace climbs."""
        trial = self._trial
        if trial is not None:
            self._observe(now, trial)
        rate = self._climbed(now)
        self._rate = rate
        if now > self._rate_since:
            self._rate_since = now
        if rate >= self._top and self._trial is None:
            self._slowed = False
            return self._interval
        # The time of one request while the pace climbs: rate * t + climb * t * t / 2 == 1.
        interval = 2 * (1 + self.HEADROOM) / (rate + math.sqrt(rate * rate + 2 * self._increase))
        return max(interval, self._interval)

    def _grow(self) -> float:
        """Make room in the ring before its oldest departure.

        Returns the time from which the window has room.
        """
        extra = min(self._size, self._window - self._size)
        # A lower limit has removed departures from the ring. Assume the latest possible time for
        # each.
        self._ring = (
            array("d", [self._dropped]) * extra + self._ring[self._at :] + self._ring[: self._at]
        )
        self._size += extra
        self._at = 0
        return self._free()

    def _free(self) -> float:
        """The time from which the window has room.

        Infinite while calls that have not departed take every place.
        """
        taken = self._outstanding
        if taken >= self._size:
            return math.inf
        return self._ring[(self._at + taken) % self._size] + self._span

    def _settle(self) -> None:
        """Compute ``due`` from the three rules."""
        due = max(self._next, self.paused_until)
        if self._window:
            free = self._free()
            while free > due and self._size < self._window:
                free = self._grow()
            due = max(due, free)
        self.due = due
