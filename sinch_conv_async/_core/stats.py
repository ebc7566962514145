"""The counters of a manager since it was made, and the state of each project."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import attrs

__all__ = ["Counters", "ProjectStats", "SessionStats"]


@attrs.frozen
class ProjectStats:
    """One project of a manager at one moment.

    ``pace``: requests a second that it may send now, infinite when nothing sets it. ``limit``: the
    lowest ``rate_limit`` of its clients, ``None`` if no client sets one. ``in_flight``: exchanges.
    ``waiting``: calls that wait for their turn. ``throttled``: answers 429 so far. ``paused_for``:
    seconds until the project sends again after a 429, 0 if it does not pause. ``in_outage``:
    whether a bulk job of the project waits for the API to come back.

    With a fleet, else ``None``: ``share``, the requests a second that the fleet grants this
    process; ``members``, how many processes share the limit; ``store_answers``, whether the store
    answered the last time.
    """

    origin: str
    project_id: str
    pace: float
    in_flight: int
    waiting: int
    throttled: int
    limit: float | None
    paused_for: float
    in_outage: bool
    share: int | None = None
    members: int | None = None
    store_answers: bool | None = None

    def in_short(self) -> str:
        """The project's pace in a few words, for a repr."""
        if self.members is None:
            return f"{self.project_id} {self.pace:.0f}/s"
        store = "" if self.store_answers else ", store away"
        return f"{self.project_id} {self.pace:.0f}/s of {self.members} members{store}"


@attrs.frozen
class SessionStats:
    """A manager's counters at one moment.

    Since the manager was made: ``calls`` that were started, ``attempts`` (HTTP exchanges with the
    API), ``retries`` (attempts after the first of a call), ``throttled`` (answers 429),
    ``token_requests`` and ``token_failures`` (token requests that brought no token). ``succeeded``
    and ``failed`` (by the name of the error's class) count the calls that ended; a cancelled call
    is in neither. ``timed_out_waiting``: calls whose timeout passed before anything was sent.
    ``budget_refusals``: calls that ended because the retry budget of their project was used up.
    ``wait_seconds`` and ``exchange_seconds``: sums over the calls that ended, of the time that they
    waited (for a token, their turn, a retry) and of the time that their exchanges took.

    Now: ``in_flight`` exchanges, calls ``waiting`` for their turn, and ``projects`` with the state
    of each.
    """

    calls: int
    attempts: int
    retries: int
    throttled: int
    token_requests: int
    in_flight: int
    waiting: int
    projects: tuple[ProjectStats, ...]
    succeeded: int
    failed: Mapping[str, int] = attrs.field(hash=False)
    timed_out_waiting: int
    budget_refusals: int
    token_failures: int
    wait_seconds: float
    exchange_seconds: float


class Counters:
    """What a manager and its clients count, for :class:`SessionStats` to show."""

    def __init__(self) -> None:
        self.calls = 0
        self.attempts = 0
        self.retries = 0
        self.throttled = 0
        self.token_requests = 0
        self.token_failures = 0
        self.succeeded = 0
        self.failed: Counter[str] = Counter()
        self.timed_out_waiting = 0
        self.budget_refusals = 0
        self.wait_seconds = 0.0
        self.exchange_seconds = 0.0
