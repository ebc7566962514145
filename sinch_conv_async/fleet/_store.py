"""The parts of a fleet that are the same for every store: one token request for all.

A store has five operations, which :class:`StoreFleet` names: ``share_at``, and four for the token.
Each is atomic, and measures time by the store's clock. This is how a token is shared:

1. ``look``: if the store has a fresh token, take it. Otherwise one process gets the lock and asks
   the token endpoint; the others wait, or go on with an old token that is still valid.
2. The lock lasts ``LOCK`` seconds, and its owner renews it while the request is under way. So a
   process that dies holds up the others for ``LOCK`` seconds at most.
3. A token is stored only by the owner of the lock. A process that was stopped for longer cannot
   overwrite a later token.
4. Without the store, or after ``WAIT`` seconds of waiting, a process asks the endpoint itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import attrs

from .._wire.failure import Failure
from .._wire.responses import TokenResponse
from . import Fleet, FleetError, ProjectKey, Share, TokenKey, Wish
from ._seal import Seal

__all__ = ["CONNECT_TIMEOUT", "FRESH", "LOCK", "TIMEOUT", "Found", "StoreFleet", "in_time", "seen"]

T = TypeVar("T")

TIMEOUT: Final = 0.25
"""Seconds that one operation of the store may take."""

CONNECT_TIMEOUT: Final = 2.0
"""Seconds that an attempt to connect may take. It goes on while operations are late: with TLS and a
password it takes several round trips, and one that is always begun anew would never end."""

STALLED: Final = 5
"""Passes of the event loop in which an answer still counts that came during a stall of it."""

LOCK: Final = 2.0
"""Seconds that the lock of one token lasts unless it is renewed."""

RENEW_LOCK: Final = 0.5
"""Seconds between two renewals of the lock."""

LOOK_AGAIN: Final = 0.05
"""Seconds between two looks of a process that waits for another one's token request."""

WAIT: Final = 5.0
"""Seconds that a process waits for another one's token request before it makes its own."""

FRESH: Final = 0.3
"""The part of a token's life that must be left for it to be fresh. Below it, one process renews the
token."""


@attrs.frozen
class Found:
    """The result of ``look``.

    ``sealed``: the sealed token, if there is one, which lives for ``lifetime`` more seconds.
    ``locked``: the asking process now owns the lock, and must make the token request.
    """

    sealed: str | None
    lifetime: float
    locked: bool


class StoreFleet(Fleet):
    """A fleet on a store. Each operation raises FleetError if the store gives no answer."""

    async def share(self, project: ProjectKey, wish: Wish) -> Share:
        """The share of one process: one round trip. Raises FleetError."""
        return await self.share_at(project, wish, None)

    async def token(
        self, key: TokenKey, fetch: Callable[[], Awaitable[TokenResponse | Failure]]
    ) -> TokenResponse | Failure:
        """The fleet's token for the key; without the store, what ``fetch`` gives."""
        seal = Seal.of(key)
        owner = secrets.token_hex(8)
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT
        try:
            while loop.time() < until:
                found = await self.look(seal.name, owner)
                if found.locked:
                    return await self._fetch(seal, owner, fetch)
                if found.sealed is None:
                    await asyncio.sleep(LOOK_AGAIN)
                    continue
                token = seal.open(found.sealed)
                if token is not None:
                    return TokenResponse(token, found.lifetime)
                await self.delete(seal.name, found.sealed)  # somebody else wrote it
        except FleetError:
            pass  # as without a fleet
        return await fetch()

    async def forget_token(self, key: TokenKey, access_token: str) -> None:
        """Deletes this token, to which the API answered 401, if the fleet has no other one yet."""
        seal = Seal.of(key)
        with contextlib.suppress(FleetError):
            found = await self.look(seal.name, "")
            if found.sealed is not None and seal.open(found.sealed) == access_token:
                await self.delete(seal.name, found.sealed)

    @abstractmethod
    async def share_at(self, project: ProjectKey, wish: Wish, now: float | None) -> Share:
        """The share at a given time of the store's clock, or now. For the conformance suite."""

    @abstractmethod
    async def look(self, name: str, owner: str) -> Found:
        """The token. Takes the lock for ``owner`` if it is free and the token not fresh.

        Nobody gets the lock for an empty ``owner``.
        """

    @abstractmethod
    async def renew_lock(self, name: str, owner: str) -> None:
        """Prolong the lock if the owner still has it."""

    @abstractmethod
    async def store(self, name: str, owner: str, sealed: str | None, lifetime: float) -> None:
        """Store a token, if any, and release the lock. Do nothing if another owner has the lock."""

    @abstractmethod
    async def delete(self, name: str, sealed: str) -> None:
        """Delete the token if it is still this one."""

    async def _fetch(
        self, seal: Seal, owner: str, fetch: Callable[[], Awaitable[TokenResponse | Failure]]
    ) -> TokenResponse | Failure:
        sealed, lifetime = None, 0.0
        try:
            async with self._lock_renewed(seal.name, owner):
                outcome = await fetch()
            if not isinstance(outcome, Failure):
                sealed, lifetime = seal.close(outcome.access_token), outcome.lifetime
            return outcome
        finally:
            # Also after a failure or a cancellation, so that the next process need not wait for the
            # end of the lock.
            with contextlib.suppress(FleetError):
                await asyncio.shield(self.store(seal.name, owner, sealed, lifetime))

    @contextlib.asynccontextmanager
    async def _lock_renewed(self, name: str, owner: str) -> AsyncGenerator[None]:
        async def renew() -> None:
            while True:
                await asyncio.sleep(RENEW_LOCK)
                with contextlib.suppress(FleetError):
                    await self.renew_lock(name, owner)

        loop = asyncio.get_running_loop()
        renewing = loop.create_task(renew(), name="sinch_conv_async token lock")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])


async def in_time(operation: asyncio.Future[Any], seconds: float) -> bool:
    """Whether an operation ends in so many seconds. It goes on if it does not."""
    await asyncio.wait([operation], timeout=seconds)
    for _ in range(STALLED):
        if operation.done():
            break
        await asyncio.sleep(0)
    return operation.done()


def seen(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task whose failure asyncio does not report if nobody waits for the task any more."""
    task = asyncio.get_running_loop().create_task(coroutine)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
