"""Who may send next: a call waits for its project's turn and for a connection slot.

The turn and the slot are granted together, so no call holds one of them while it waits for the
other. The waiting calls of a paused project hold no slot. While no slot is free, no turn is used
up.

- Within a project, retries go first. Otherwise the call that came first goes first.
- If the turn of several projects has come, they alternate.
- The cost of admitting one call does not grow with the number of waiting calls.
- A call counts against the pace from its grant until one second after its request was written
  (:class:`Permit`).

This file does not depend on what the calls send.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import math
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from ..errors import CallTimeoutError, RateLimitedError
from .lifetime import Lifetime
from .pace import Pace
from .retry import RetryBudget

__all__ = ["Admission", "Project"]

# A call that stops waiting stays in its queue for a while. The queues remove such calls when they
# are more than this number, and more than the waiting calls.
ABANDONED_KEPT: Final = 64

FORGETTABLE_AFTER: Final = Pace.AT_REST_AFTER
"""After so many idle seconds, a pace is back at its limit and equal to a new one.
"""

NOT_LATER: Final = -math.inf
"""A time before all others: "never yet", or "the admission does not wait for a time"."""

BURST_OF_A_SHARE: Final = 8
"""In a fleet, this many calls may leave together after an idle time. The share of one process is
often small: with even spacing alone, calls that come close together would wait long.
"""

STALE_AFTER: Final = 30.0
"""After so many seconds without a 429 and without a pause, a 429 begins a new row of 429s."""


def too_late_error() -> CallTimeoutError:
    """A new error for each call, because a shared error would collect every caller's traceback."""
    return CallTimeoutError("the project's turn cannot come before the timeout", sent="no")


class Project:
    """One project at one origin: its pace, its queue, its retry budget.

    ``limits``: the ``rate_limit`` of each client; the lowest one applies to all of them.
    ``patience``: the ``max_retry_after`` of each client; the longest one applies to all of them.

    ``probing``: the API asked for a longer pause than a call may wait. So one call at a time is
    sent, to find out whether the API accepts calls again.

    ``below_half``: its pace has fallen below half of its limit, and has not climbed back to it.
    ``outages``: how many bulk jobs wait for the end of an outage. ``blocked_since``: when the
    present row of 429s began; ``None`` after another answer. ``throttled_at``: when the last 429
    came.

    ``limit``: the lowest limit of its clients, in requests a second. When the last client has left,
    the limit stays. ``share``: the part of the limit that a fleet grants, if there is a fleet.
    ``sent``: how many turns were granted so far. ``asked_to_wait_until``: until when the API asked
    this process to wait; the latest such time.

    ``admission``: the :class:`Admission` of the present event loop, in which its calls wait.
    ``fresh``, ``retries``: the queues of first requests and of retries. ``abandoned``: calls that
    stopped waiting and are still in a queue. ``queued``: the project is in a list of the admission,
    or waits until ``sooner`` is called. ``later_at``: the time of its next turn, if the admission
    waits for that time. ``deadlines``: a heap of the waiting calls that have a deadline; calls that
    have ended are removed later.
    """

    __slots__ = (
        "abandoned",
        "admission",
        "asked_to_wait_until",
        "below_half",
        "blocked_since",
        "budget",
        "deadlines",
        "fresh",
        "in_flight",
        "later_at",
        "limit",
        "limits",
        "outages",
        "pace",
        "patience",
        "probing",
        "queued",
        "retries",
        "sent",
        "share",
        "throttled",
        "throttled_at",
        "waiting",
    )

    def __init__(self) -> None:
        self.pace = Pace(None)
        self.budget = RetryBudget()
        self.limits: weakref.WeakKeyDictionary[object, float | None] = weakref.WeakKeyDictionary()
        self.patience: weakref.WeakKeyDictionary[object, float] = weakref.WeakKeyDictionary()
        self.fresh: deque[asyncio.Future[Permit]] = deque()
        self.retries: deque[asyncio.Future[Permit]] = deque()
        self.deadlines: list[tuple[float, int, asyncio.Future[Permit]]] = []
        self.waiting = 0
        self.abandoned = 0
        self.in_flight = 0
        self.throttled = 0
        self.below_half = False
        self.blocked_since: float | None = None
        self.outages = 0
        self.throttled_at = NOT_LATER
        self.sent = 0
        self.limit: float | None = None
        self.share: int | None = None
        self.asked_to_wait_until = NOT_LATER
        self.probing = False
        self.queued = False
        self.admission: Admission | None = None
        self.later_at = NOT_LATER

    def __repr__(self) -> str:
        probing = ", probing" if self.probing else ""
        counts = f"waiting={self.waiting} in_flight={self.in_flight}"
        return f"<Project pace={self.pace.rate:.1f}/s {counts}{probing}>"

    def join(self, client: object, *, rate_limit: float | None, max_retry_after: float) -> None:
        """A client with its own limit and patience begins to share the project."""
        self.limits[client] = rate_limit
        self.patience[client] = max_retry_after
        self._set_limit()

    def leave(self, client: object) -> None:
        """The client is closed. The limit of the last client stays until another client joins.

        The reason: the server still counts the requests of the last second.
        """
        self.limits.pop(client, None)
        self.patience.pop(client, None)
        self._set_limit()

    def set_share(self, share: int | None) -> None:
        """Set the part of the limit that the fleet grants, in requests a second, or None."""
        self.share = share
        self.pace.burst = 1 if share is None else BURST_OF_A_SHARE
        self._set_limit()

    def _set_limit(self) -> None:
        if self.limits:
            self.limit = min(
                (limit for limit in self.limits.values() if limit is not None), default=None
            )
        limit = self.limit
        if limit is not None and self.share is not None:
            limit = min(limit, self.share)
        if limit != self.pace.limit:
            self.pace.limit = limit

    def fell_below_half(self, now: float) -> bool:
        """Whether the pace has just fallen below half of its limit; True once for each fall."""
        limit = self.pace.limit
        if self.below_half or limit is None or self.pace.rate_at(now) >= limit / 2:
            return False
        self.below_half = True
        return True

    def recovered(self, now: float) -> bool:
        """Whether the pace has just climbed back to its limit from below half; True once."""
        if not self.below_half or self.pace.rate_at(now) < self.pace.top:
            return False
        self.below_half = False
        return True

    def too_long(self, retry_after: float | None) -> bool:
        """Whether the server asks for a longer wait than any client of the project allows."""
        return retry_after is not None and retry_after > max(self.patience.values(), default=0.0)

    def blocked_for(self, now: float) -> float:
        """Seconds since the present row of 429s began; 0 if there is no such row."""
        return 0.0 if self.blocked_since is None else now - self.blocked_since

    def answered(self) -> None:
        """The API answered something other than 429."""
        self.blocked_since = None

    def refused(self, now: float) -> None:
        """The API answered 429."""
        self.throttled += 1
        # After a long time without a 429, the earlier 429s do not show that the API refused calls
        # since then. So a new row begins.
        idle = now - max(self.throttled_at, self.pace.paused_until)
        if self.blocked_since is None or idle > STALE_AFTER:
            self.blocked_since = now
        self.throttled_at = now

    def forget_loop(self) -> None:
        """The event loop is closed, and the calls that waited on it are gone.

        The pace stays, because the server still counts the requests that were sent.
        """
        self.fresh.clear()
        self.retries.clear()
        self.deadlines.clear()
        self.waiting = self.abandoned = self.in_flight = 0
        self.outages = 0
        self.pace.lost()
        self.budget.forget_reserved()
        self.queued = False
        # Otherwise, when the garbage collector ends a call of the closed loop, the counts would
        # change again.
        self.admission = None
        self.later_at = NOT_LATER

    def forgettable(self, now: float) -> bool:
        """Whether the manager can forget the project: it has no call, and its pace is long idle.

        A project that is probing can be forgotten too; otherwise it would stay forever if no
        further call is made.
        """
        return not self.waiting and not self.in_flight and now > self.pace.due + FORGETTABLE_AFTER

    def next_waiter(self) -> asyncio.Future[Permit] | None:
        """Remove the first call that still waits from its queue, and return its future."""
        for queue in (self.retries, self.fresh):
            while queue:
                future = queue.popleft()
                if not future.done():
                    return future
                self.abandoned -= 1
        return None

    def soonest(self) -> float:
        """The next turn cannot come before this time.

        Usually this is when the turn is due. In a fleet it is the end of the pause, because the
        fleet may grant a larger share at any time. It is also the end of the pause while ``due`` is
        infinite, because a call may give its place in the window back.
        """
        pace = self.pace
        return pace.due if self.share is None and pace.due < math.inf else pace.paused_until

    def wait_until(self, deadline: float, future: asyncio.Future[Permit], order: int) -> None:
        """Record the deadline of a call that has joined the queue."""
        deadlines = self.deadlines
        if len(deadlines) > 2 * self.waiting + ABANDONED_KEPT:
            # More than half of the entries have ended, so the cost is in proportion to the ended
            # entries.
            deadlines[:] = [entry for entry in deadlines if not entry[2].done()]
            heapq.heapify(deadlines)
        heapq.heappush(deadlines, (deadline, order, future))

    def too_late(self) -> list[asyncio.Future[Permit]]:
        """The waiting calls whose deadline is before the next turn."""
        deadlines, late = self.deadlines, []
        due = self.soonest()
        while deadlines and deadlines[0][0] < due:
            future = heapq.heappop(deadlines)[2]
            if not future.done():
                late.append(future)
        return late

    def abandon(self) -> None:
        """A call has stopped waiting. Its future stays in the queue until it is skipped."""
        self.waiting -= 1
        self.abandoned += 1
        if self.abandoned > ABANDONED_KEPT and self.abandoned > self.waiting:
            # The cost is in proportion to the calls that stopped waiting since the last clean-up.
            for queue in (self.retries, self.fresh):
                kept = [future for future in queue if not future.done()]
                # This also subtracts calls that have ended and will call abandon() soon.
                self.abandoned -= len(queue) - len(kept)
                queue.clear()
                queue.extend(kept)

    def refuse(self) -> list[asyncio.Future[Permit]]:
        """Empty the queues. Return the futures that still wait: the caller fails them."""
        waiting = [
            future for queue in (self.retries, self.fresh) for future in queue if not future.done()
        ]
        for queue in (self.retries, self.fresh):
            self.abandoned -= len(queue)  # each call in it has called abandon(), or will
            queue.clear()
        return waiting


class Permit:
    """The turn and the slot of one call.

    ``departed``: when the request was written, ``None`` before. ``probe``: the call is a probe,
    which finds out whether the API accepts calls again.
    """

    __slots__ = ("_admission", "_project", "_released", "departed", "probe")

    def __init__(self, admission: Admission, project: Project) -> None:
        self._admission = admission
        self._project = project
        self._released = False
        self.departed: float | None = None
        self.probe = project.probing

    def written(self) -> None:
        """The request has been written to its socket. A second call of this method does nothing."""
        if self.departed is None and not self._released:
            self.departed = self._admission.departed(self._project)

    def release(self) -> None:
        """Give the slot back, and the turn too unless the request was written."""
        self._released = True
        self._admission.release(self._project, departed=self.departed)


class Admission:
    """The slots of a manager, and the projects that wait for them.

    ``clock`` gives monotonic seconds; ``call_later`` is the method of the event loop. Both are
    arguments so that tests can control the time.
    """

    __slots__ = (
        "_call_later",
        "_clock",
        "_later",
        "_loop_is_closed",
        "_order",
        "_ready",
        "_timer",
        "_timer_at",
        "free",
        "slots",
        "waiting",
    )

    def __init__(
        self,
        slots: int,
        *,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        loop_is_closed: Callable[[], bool] = lambda: False,
    ) -> None:
        self.slots = slots
        self.free = slots
        self.waiting = 0
        self._clock = clock
        self._call_later = call_later
        self._loop_is_closed = loop_is_closed
        # Projects with waiting calls whose turn may have come.
        self._ready: deque[Project] = deque()
        self._later: list[tuple[float, int, Project]] = []  # a heap: projects with a later turn
        self._order = 0  # a rising number, so that heap entries differ before their last element
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def admit_now(self, project: Project, now: float) -> Permit | None:
        """The turn and a slot if both are free and no call waits for them."""
        if (
            not self.free
            or project.waiting
            or now < project.pace.due
            or (project.probing and project.in_flight)
        ):
            return None
        project.admission = self
        permit = self._grant(project, now)
        project.pace.idle()
        return permit

    def _grant(self, project: Project, now: float) -> Permit:
        self.free -= 1
        project.in_flight += 1
        project.sent += 1
        project.pace.admit(now)
        return Permit(self, project)

    async def admit(
        self, project: Project, lifetime: Lifetime, *, again: bool, deadline: float | None
    ) -> Permit:
        """The turn and a slot, as soon as both are free.

        Raises CallTimeoutError as soon as the turn cannot come before ``deadline``. ``again``: the
        call has had a turn before, so it goes ahead of calls that had none.
        """
        if deadline is not None:
            # For a retry, count no call ahead: nobody knows how many of the queued retries still
            # wait.
            self._check_deadline(project, 0 if again else project.waiting, deadline)
        if not project.waiting and project.pace.due <= self._clock():
            project.pace.idle()  # no call waited when the turn came, so this is not lateness
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        project.admission = self
        (project.retries if again else project.fresh).append(future)
        if deadline is not None:
            self._order += 1
            project.wait_until(deadline, future, self._order)
        project.waiting += 1
        self.waiting += 1
        if not project.queued:
            project.queued = True
            self._ready.append(project)
            self._pump()
        # This is ``Lifetime.wait``, written out here. It saves a coroutine for each waiting call,
        # of which there may be a hundred thousand.
        waiting = lifetime.waiting
        waiting.add(future)
        try:
            return await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                # The call was cancelled in the same tick in which the grant was made. So give the
                # grant back, for the next call.
                future.result().release()
            elif project.admission is self:
                self.waiting -= 1
                project.abandon()
            raise
        finally:
            waiting.discard(future)
            if not project.waiting:
                project.deadlines.clear()

    def _check_deadline(self, project: Project, ahead: int, deadline: float) -> None:
        """Raises CallTimeoutError if the turn cannot come before ``deadline``.

        ``ahead``: how many calls have their turn before this call.
        """
        pace, now = project.pace, self._clock()
        # Find the earliest possible time. So count with the clients' limit and not with the present
        # pace: a lowered pace climbs back, a late pace catches up, and a fleet may grant more at
        # any time.
        limit = project.limit
        at_best = ahead / limit if limit else 0.0
        due = project.soonest()
        if max(now, max(due, now - pace.CATCH_UP) + at_best) > deadline:
            raise too_late_error()

    def departed(self, project: Project) -> float:
        """Record that a request of the project has been written, and return the time."""
        now = self._clock()
        if project.admission is self and project.pace.left(now):
            self.sooner(project)
        return now

    def release(self, project: Project, *, departed: float | None) -> None:
        """Give a slot back, and the turn too if nothing departed."""
        if project.admission is not self or self._loop_is_closed():
            return  # the garbage collector ends a call of a closed event loop
        if departed is None:
            project.pace.refund()
        self.free += 1
        project.in_flight -= 1
        if project.waiting and not project.queued:
            project.queued = True
            self._ready.append(project)
        if self._ready or self._later or project.pace.due < project.later_at:
            self.sooner(project)  # the turn may have been given back too

    def sooner(self, project: Project) -> None:
        """Make grants: the project's next turn may come sooner, or a slot is free."""
        if project.pace.due < project.later_at:
            project.later_at = NOT_LATER
            self._ready.append(project)
        if self._ready or self._later:
            self._pump()

    def answered(self, project: Project, permit: Permit) -> None:
        """The API answered a call with something other than 429.

        If the call was a probe, the probing ends. If the call was sent before the probing began,
        its answer does not end the probing.
        """
        project.answered()
        if project.probing and permit.probe:
            project.probing = False
            if project.waiting and not project.queued:
                project.queued = True
                self._ready.append(project)
                self._pump()

    def paused(self, project: Project) -> None:
        """A pause has begun or grown. Fail the calls that would miss their deadline."""
        for future in project.too_late():
            future.set_exception(too_late_error())

    def refuse_waiting(self, project: Project, error: RateLimitedError) -> None:
        """Fail every call that waits for the project. From now on one call at a time probes."""
        project.probing = True
        for future in project.refuse():
            own = copy.copy(error)
            own.attempts = 0
            future.set_exception(own)

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pump(self) -> None:
        """Make every grant that can be made now, and set the timer for the next."""
        now = self._clock()
        later = self._later
        ready = self._ready
        while later and later[0][0] <= now:
            at, _, project = heapq.heappop(later)
            if at == project.later_at:  # otherwise sooner() has moved the project to ready
                project.later_at = NOT_LATER
                ready.append(project)
        while ready and self.free:
            project = ready.popleft()
            if project.probing and project.in_flight:
                project.queued = False  # release() or answered() calls _pump() again
                continue
            if now < project.pace.due:
                project.later_at = project.pace.due
                if project.later_at < math.inf:  # otherwise sooner() calls _pump() again
                    self._order += 1
                    heapq.heappush(later, (project.later_at, self._order, project))
                continue
            future = project.next_waiter()
            if future is None:
                project.queued = False
                project.pace.idle()
                continue
            self.waiting -= 1
            project.waiting -= 1
            future.set_result(self._grant(project, now))
            ready.append(project)
        if later and self.free and (self._timer is None or later[0][0] < self._timer_at):
            self.stop()
            self._timer_at = later[0][0]
            self._timer = self._call_later(self._timer_at - now, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._pump()
