"""One token request for the whole fleet, whatever the store: who asks, who waits, what is kept.

A store has four operations (:class:`TokenStore`). Each is atomic, and measures time by its own
clock.

1. ``look``: a fresh token is there: take it. Otherwise one process gets the lock and asks the token
   endpoint; the others wait, or go on with an old token that still lives.
2. The lock lasts ``LOCK`` seconds, and its owner renews it while the request is under way. So a
   process that dies holds up the others for ``LOCK`` seconds at most.
3. A token is stored only by the owner of the lock. A process that was stopped for longer cannot
   overwrite what came after it.
4. Without the store, or after ``WAIT`` seconds of waiting, a process asks the endpoint itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol

import attrs

from .._wire.failure import Failure
from .._wire.responses import TokenResponse
from . import FleetError, TokenKey
from ._seal import Seal

__all__ = ["Found", "TokenStore", "forget_token", "shared_token"]

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
    """What a look into the store found.

    ``sealed``: the sealed token, if there is one, which lives for ``lifetime`` more seconds.
    ``locked``: the asking process now owns the lock, and is to make the token request.
    """

    sealed: str | None
    lifetime: float
    locked: bool


class TokenStore(Protocol):
    """The atomic operations of a store. Each raises FleetError where the store gives no answer."""

    async def look(self, name: str, owner: str) -> Found:
        """The token. Takes the lock for ``owner`` if it is free and the token not fresh."""
        ...

    async def renew_lock(self, name: str, owner: str) -> None:
        """Prolongs the lock if it is still the owner's."""
        ...

    async def store(self, name: str, owner: str, sealed: str | None, lifetime: float) -> None:
        """Stores a token, if any, and gives the lock back; nothing if the lock is another's."""
        ...

    async def delete(self, name: str, sealed: str) -> None:
        """Deletes the token if it is still this one."""
        ...


async def shared_token(
    store: TokenStore,
    key: TokenKey,
    fetch: Callable[[], Awaitable[TokenResponse | Failure]],
) -> TokenResponse | Failure:
    """The fleet's token, fetched if need be."""
    seal = Seal.of(key)
    owner = secrets.token_hex(8)
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT
    try:
        while loop.time() < until:
            found = await store.look(seal.name, owner)
            if found.locked:
                return await _fetch(store, seal, owner, fetch)
            if found.sealed is None:
                await asyncio.sleep(LOOK_AGAIN)
                continue
            token = seal.open(found.sealed)
            if token is not None:
                return TokenResponse(token, found.lifetime)
            await store.delete(seal.name, found.sealed)  # somebody else wrote it
    except FleetError:
        pass  # as without a fleet
    return await fetch()


async def _fetch(
    store: TokenStore,
    seal: Seal,
    owner: str,
    fetch: Callable[[], Awaitable[TokenResponse | Failure]],
) -> TokenResponse | Failure:
    sealed, lifetime = None, 0.0
    try:
        async with _lock_renewed(store, seal.name, owner):
            outcome = await fetch()
        if not isinstance(outcome, Failure):
            sealed, lifetime = seal.close(outcome.access_token), outcome.lifetime
        return outcome
    finally:
        # Also after a failure or a cancellation: the next process need not wait for the lock to
        # end.
        with contextlib.suppress(FleetError):
            await asyncio.shield(store.store(seal.name, owner, sealed, lifetime))


@contextlib.asynccontextmanager
async def _lock_renewed(store: TokenStore, name: str, owner: str) -> AsyncGenerator[None]:
    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_LOCK)
            with contextlib.suppress(FleetError):
                await store.renew_lock(name, owner)

    renewing = asyncio.get_running_loop().create_task(renew(), name="sinch_conv_async token lock")
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])


async def forget_token(store: TokenStore, key: TokenKey, access_token: str) -> None:
    """Deletes the token that the API refused, unless the fleet has another one by now."""
    seal = Seal.of(key)
    with contextlib.suppress(FleetError):
        found = await store.look(seal.name, "")
        if found.sealed is not None and seal.open(found.sealed) == access_token:
            await store.delete(seal.name, found.sealed)
