"""The calls of one client: those that wait, the number that run, and how closing ends them.

A call waits for a token, for its turn or for the delay before a retry. Each wait is on a future
that this object knows, so closing the client can end the wait.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..errors import ClientStateError

__all__ = ["Lifetime", "closed_error"]


def closed_error() -> ClientStateError:
    """A new error for each call, because a shared error would collect every caller's traceback."""
    return ClientStateError("the client is closed")


class Lifetime:
    """The calls of one client on one event loop."""

    __slots__ = ("_drained", "closed", "running", "waiting")

    def __init__(self) -> None:
        self.closed = False
        self.waiting: set[asyncio.Future[Any]] = set()
        self.running = 0
        self._drained: asyncio.Future[None] | None = None

    async def wait(self, future: asyncio.Future[None]) -> None:
        """Wait until the future is done or the client closes. A cancelled call cancels it."""
        self.check_open()
        self.waiting.add(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                # The call was cancelled in the tick in which the future failed. Reading the
                # exception keeps asyncio from reporting it as never retrieved.
                future.exception()
            raise
        finally:
            self.waiting.discard(future)

    async def sleep(self, delay: float) -> None:
        """Wait ``delay`` seconds, or until the client closes."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(delay, _wake, future)
        try:
            await self.wait(future)
        finally:
            timer.cancel()

    def check_open(self) -> None:
        """Raise ClientStateError if the client is closed."""
        if self.closed:
            raise closed_error()

    def begin(self) -> None:
        """One call begins."""
        self.check_open()
        self.running += 1

    def end(self) -> None:
        """One call has ended, whichever way."""
        self.running -= 1
        if not self.running and self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def fail_waiting(self) -> None:
        """Close: the calls that wait fail now, and no other begins."""
        self.closed = True
        for future in self.waiting:
            if not future.done():
                future.set_exception(closed_error())

    async def drained(self) -> None:
        """Return when no call is under way any more."""
        while self.running:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            # Shielded, so that a caller that is cancelled does not cancel the wait of others.
            await asyncio.shield(self._drained)

    def on_another_loop(self) -> Lifetime:
        """A new object for the same client, after the event loop of these calls was closed.

        The garbage collector may still end a call of the closed loop, and that must not change the
        counts of the new one.
        """
        fresh = Lifetime()
        fresh.closed = self.closed
        return fresh


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
