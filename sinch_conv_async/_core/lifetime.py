"""The calls of one client: which of them wait, how many run, and how both end with the client.

Whatever a call waits for (a token, its turn, the delay before a retry), it waits on a future that
this object knows. So closing the client can end the wait.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..errors import ClientStateError

__all__ = ["Lifetime", "closed_error"]


def closed_error() -> ClientStateError:
    """A fresh error for each call: a shared one would collect every caller's traceback."""
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
        """Waits until the future is done or the client closes. Cancelling the call cancels it."""
        self.check_open()
        self.waiting.add(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                # The call was cancelled in the tick in which the future failed. Looking at the
                # exception keeps asyncio from reporting that nobody has.
                future.exception()
            raise
        finally:
            self.waiting.discard(future)

    async def sleep(self, delay: float) -> None:
        """Waits ``delay`` seconds, or until the client closes."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(delay, _wake, future)
        try:
            await self.wait(future)
        finally:
            timer.cancel()

    def check_open(self) -> None:
        """Raises ClientStateError once the client is closed."""
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
        """Closes: the calls that wait fail now, and no other begins."""
        self.closed = True
        for future in self.waiting:
            if not future.done():
                future.set_exception(closed_error())

    async def drained(self) -> None:
        """Returns when no call is under way any more."""
        while self.running:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            # Shielded: several may wait here, and one that is cancelled leaves the others waiting.
            await asyncio.shield(self._drained)

    def on_another_loop(self) -> Lifetime:
        """The same client's calls once the event loop of these is closed, and they with it.

        Another object, because what is left of a call may still be torn down, whenever the garbage
        collector finds it.
        """
        fresh = Lifetime()
        fresh.closed = self.closed
        return fresh


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
