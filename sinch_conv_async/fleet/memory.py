"""A fleet in the memory of one process: for session managers of one event loop, and for tests.

Several managers that are given the same :class:`MemoryFleet` share one limit and one token, as
processes do through a store. It needs no extra.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import attrs

from .._wire.failure import Failure
from .._wire.responses import TokenResponse
from . import Fleet, ProjectKey, Share, State, TokenKey, Wish, allot

__all__ = ["MemoryFleet"]


@attrs.define(eq=False)
class _Kept:
    """One token, the end of its life, and the lock of its token request."""

    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    access_token: str | None = attrs.field(default=None, repr=False)
    expires_at: float = 0.0


class MemoryFleet(Fleet):
    """Shares limit and token among the managers that get this object. ``clock`` gives seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._projects: dict[ProjectKey, State] = {}
        self._tokens: dict[TokenKey, _Kept] = {}

    async def share(self, project: ProjectKey, wish: Wish) -> Share:
        """The share of one manager."""
        return await self.share_at(project, wish, None)

    async def share_at(self, project: ProjectKey, wish: Wish, now: float | None) -> Share:
        """The same at a given time. For the conformance suite."""
        state = self._projects.get(project, State())
        at = self._clock() if now is None else now
        self._projects[project], share = allot(state, wish, at)
        return share

    async def token(
        self, key: TokenKey, fetch: Callable[[], Awaitable[TokenResponse | Failure]]
    ) -> TokenResponse | Failure:
        """The shared token, fetched by one manager at a time."""
        kept = self._tokens.setdefault(key, _Kept())
        async with kept.lock:
            left = kept.expires_at - self._clock()
            if kept.access_token is not None and left > 0:
                return TokenResponse(kept.access_token, left)
            began = self._clock()
            outcome = await fetch()
            if isinstance(outcome, TokenResponse):
                kept.access_token, kept.expires_at = outcome.access_token, began + outcome.lifetime
            return outcome

    async def forget_token(self, key: TokenKey, access_token: str) -> None:
        """Forget this token, to which the API answered 401, unless there is another one by now."""
        kept = self._tokens.get(key)
        if kept is not None and kept.access_token == access_token:
            kept.access_token = None

    async def close(self) -> None:
        """Do nothing, because other managers may still use it."""
