"""Keeps the pace of each project at the share that a fleet gives it.

Only a manager with ``fleet=`` has one.

One task for each project asks the store for a share, sets the project's pace to it, and asks again
after the interval that the store returns. So calls wait only for the pace, never for the store.

1. *What a process wants* is what it sent in its busiest recent second, plus an addition, plus the
   calls that wait now. A quiet process wants a little too, so that its next call has a share.
2. *When a lease ends* and the store has not answered, the pace falls to an even part of the limit
   (:class:`~sinch_conv_async.fleet.Holding`). A process that never had an answer sends little at
   first, and after ``GIVES_UP_AFTER`` seconds without an answer the whole limit, as without a
   fleet.
3. *A pause* that the API asked for with ``Retry-After`` is sent to the store, which sends it to the
   others. A pause from the store is not sent again, because it would never end.
4. *Another event loop or process* is another member: it joins anew, under a new name.
5. *The end.* A manager that closes gives its shares back, and its fleet closes its connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import attrs

from .._wire.arguments import Credentials
from .._wire.failure import Failure
from .._wire.responses import TokenResponse
from ..fleet import (
    INTERVAL,
    LEASE,
    Fleet,
    FleetError,
    Holding,
    ProjectKey,
    Share,
    TokenKey,
    Wish,
    least_wish,
    without_store,
)
from .admission import Project
from .binding import Binding
from .log import INFO, log

__all__ = ["Demand", "Shared", "Sharing"]

MEASURED_FOR: Final = 2.0
"""Seconds of departures that determine what a process wants. A process that sends in bursts keeps
its share between them.
"""

GROWTH: Final = 1.25
"""The factor by which a process wants more than it sent, so that its pace can grow."""

DEVIATIONS: Final = 2.0
"""The addition for a process that sends little. Calls that come at random vary like a Poisson
variable, whose standard deviation is the square root of its mean.
"""

GIVES_UP_AFTER: Final = LEASE
"""Seconds without an answer after which a new process goes on alone, with the whole limit. A busy
machine may miss the first answers, and a fleet that is at its limit already would then get many
429s.
"""


class Demand:
    """How many requests a second a process wants, by what it sent and the calls that wait."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def wanted(self, now: float, *, sent: int, waiting: int, limit: float, members: int) -> int:
        """``sent``: requests since the project was made. ``waiting``: calls that wait."""
        seen = self._seen
        while len(seen) > 1 and seen[1][0] <= now - MEASURED_FOR:
            seen.popleft()
        seen.append((now, sent))
        # The busiest period of about a second counts and not the mean, because a burst may come
        # again.
        busiest = 0.0
        for at, count in seen:
            if now - at >= INTERVAL:
                busiest = max(busiest, (sent - count) / max(1.0, now - at))
        growing = max(busiest * GROWTH, busiest + DEVIATIONS * math.sqrt(busiest))
        wanted = math.ceil(growing) + waiting
        return min(max(wanted, least_wish(limit, members)), max(1, math.floor(limit)))


@attrs.define(eq=False)
class Shared:
    """One project of a manager in the fleet.

    ``joined_at``: when it asked first. ``holding``: the share that it holds, ``None`` before the
    first answer. ``unanswered``: requests to the store since its last answer. ``alone``: it goes on
    without the store.
    """

    key: ProjectKey
    project: Project = attrs.field(repr=False)
    member: str
    demand: Demand = attrs.field(factory=Demand, repr=False)
    joined_at: float = 0.0
    holding: Holding | None = None
    unanswered: int = 0
    alone: bool = False
    task: asyncio.Task[None] | None = attrs.field(default=None, repr=False)

    @property
    def members(self) -> int:
        """How many processes share the project, by the last answer of the store."""
        return 1 if self.holding is None else self.holding.members

    def rate(self, limit: float, now: float) -> int:
        """Requests a second that the process may send now."""
        if self.holding is not None:
            return self.holding.rate(limit, now)
        return without_store(limit, 1) if self.alone else least_wish(limit, 1)


class Sharing:
    """The fleet's side of one manager: a task for each project, and the shared tokens."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.projects: dict[tuple[str, str], Shared] = {}
        self._member = ""
        self._binding: Binding | None = None
        self._refused: dict[TokenKey, str] = {}

    def bound(self, binding: Binding) -> None:
        """The manager has bound to an event loop: this process joins the fleet under a new name."""
        self._member = secrets.token_hex(8)
        self._binding = binding
        for shared in self.projects.values():
            self._join(shared)

    def share(self, origin: str, project_id: str, project: Project) -> None:
        """The project has a client, so the fleet controls its limit from now on."""
        key = (origin, project_id)
        if key not in self.projects:
            self.projects[key] = shared = Shared(
                ProjectKey(origin, project_id), project, self._member
            )
            project.set_share(least_wish(project.limit or 1, 1))
            if self._binding is not None:
                self._join(shared)

    def forget_all_but(self, kept: Mapping[tuple[str, str], Project]) -> None:
        """The manager has forgotten all projects but these."""
        for key, shared in list(self.projects.items()):
            if key not in kept:
                del self.projects[key]
                if shared.task is not None:
                    shared.task.cancel()

    def forget_loop(self) -> None:
        """The event loop is closed, and its tasks are gone."""
        self._binding = None
        for shared in self.projects.values():
            shared.task = None

    def stop(self) -> None:
        """End the tasks without telling the store: the manager was dropped without a close."""
        for task in self._tasks():
            task.cancel()

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [shared.task for shared in self.projects.values() if shared.task is not None]

    async def close(self) -> None:
        """Give the shares back and close the fleet's connections."""
        self.stop()
        await asyncio.gather(*self._tasks(), return_exceptions=True)
        await asyncio.gather(*map(self._leave, self.projects.values()))
        await self.fleet.close()

    def stats(self, origin: str, project_id: str) -> dict[str, Any]:
        """The fields of :class:`ProjectStats` for a project in the fleet."""
        shared = self.projects[origin, project_id]
        answers = not shared.unanswered and shared.holding is not None
        return {"share": shared.project.share, "members": shared.members, "store_answers": answers}

    def requester(
        self,
        auth_origin: str,
        credentials: Credentials,
        request: Callable[[Credentials], Awaitable[TokenResponse | Failure]],
    ) -> tuple[Callable[[Credentials], Awaitable[TokenResponse | Failure]], Callable[[str], None]]:
        """The function that requests a token, and the one to call when the API refuses a token."""
        key = TokenKey(auth_origin, credentials.key_id, credentials.key_secret)

        async def shared(credentials: Credentials) -> TokenResponse | Failure:
            refused = self._refused.pop(key, None)
            if refused is not None:
                await self.fleet.forget_token(key, refused)
            return await self.fleet.token(key, lambda: request(credentials))

        return shared, lambda access_token: self._refused.__setitem__(key, access_token)

    def _join(self, shared: Shared) -> None:
        shared.member, shared.demand = self._member, Demand()
        shared.holding, shared.unanswered, shared.alone = None, 0, False
        shared.task = asyncio.get_running_loop().create_task(
            self._keep(shared), name="sinch_conv_async share of a project"
        )

    async def _keep(self, shared: Shared) -> None:
        assert self._binding is not None  # the task runs on the loop that was bound
        binding = self._binding
        clock = binding.clock
        shared.joined_at = clock()
        while True:
            asked_at = clock()
            limit = shared.project.limit
            if limit is None:
                await self._without_limit(shared)
                continue
            try:
                share = await self.fleet.share(shared.key, self._wish(shared, limit, asked_at))
            except FleetError as error:
                self._not_answered(shared, error, clock())
                interval = INTERVAL
            else:
                self._answered(shared, share, asked_at)
                interval = share.interval
            await self._until(shared, asked_at + interval, binding)

    async def _without_limit(self, shared: Shared) -> None:
        """The project has no client, or no client with a limit, so there is nothing to share."""
        if shared.holding is not None:
            shared.holding = None
            await self._leave(shared)
        if shared.project.share is not None:
            shared.project.set_share(None)
        await asyncio.sleep(INTERVAL)

    async def _until(self, shared: Shared, ends: float, binding: Binding) -> None:
        """Set the pace, also when a lease ends meanwhile, until it is time to ask again."""
        while True:
            now = binding.clock()
            self._set_pace(shared, binding, now)
            if now >= ends:
                return
            changes_at = None if shared.holding is None else shared.holding.changes_at(now)
            until = ends if changes_at is None else min(ends, changes_at)
            await asyncio.sleep(max(0.0, until - now))

    def _set_pace(self, shared: Shared, binding: Binding, now: float) -> None:
        project = shared.project
        limit = project.limit
        share = None if limit is None else shared.rate(limit, now)
        if share != project.share:
            project.set_share(share)
            binding.admission.sooner(project)

    def _wish(self, shared: Shared, limit: float, now: float) -> Wish:
        project = shared.project
        wanted = shared.demand.wanted(
            now, sent=project.sent, waiting=project.waiting, limit=limit, members=shared.members
        )
        new = shared.holding is None and not shared.alone  # it has no share yet
        return Wish(
            shared.member,
            limit,
            wanted,
            holds=0 if new else shared.rate(limit, now),
            paused_for=max(0.0, project.asked_to_wait_until - now),
        )

    def _answered(self, shared: Shared, share: Share, asked_at: float) -> None:
        if shared.holding is None or shared.alone:
            what = "back in the fleet" if shared.alone else "joined the fleet"
            log(INFO, f"{what}: %d members", share.members, project_id=shared.key.project_id)
        shared.unanswered, shared.alone = 0, False
        shared.holding = Holding.of(share, asked_at)
        if share.paused_for:
            shared.project.pace.pause(asked_at + share.paused_for)

    def _not_answered(self, shared: Shared, error: FleetError, now: float) -> None:
        shared.unanswered += 1
        if shared.holding is None:
            alone = now >= shared.joined_at + GIVES_UP_AFTER
        else:
            alone = now >= shared.holding.until
        if alone and not shared.alone:
            shared.alone = True
            log(INFO, "alone, without the fleet: %s", error, project_id=shared.key.project_id)

    async def _leave(self, shared: Shared) -> None:
        with contextlib.suppress(FleetError):
            await self.fleet.share(shared.key, Wish(shared.member, 1.0, 0, leaves=True))
