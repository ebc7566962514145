"""The outcomes that wait for a reader, and the places that bound how much a job holds.

An item takes a place before it is read from the input. The place becomes free when a reader that
has taken the item's outcome asks for another one. So the job sends nothing whose outcome is not
read, and memory does not grow with the input.
"""

from __future__ import annotations

import asyncio
from collections import deque

from ..models import UpdateOutcome

__all__ = ["Outcomes"]


class Outcomes:
    """The unread outcomes of a job that holds ``places`` items at most."""

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._unread: deque[UpdateOutcome] = deque()
        self._readers = 0  # readers that wait for an outcome
        self._taken = 0  # outcomes taken since a reader last asked for one
        self._changed = asyncio.Event()
        self._ended = False

    def __len__(self) -> int:
        return len(self._unread)

    async def place(self) -> None:
        """Take a place as soon as one is free."""
        await self._places.acquire()

    def add(self, outcome: UpdateOutcome) -> None:
        """Add the outcome of an item, which keeps its place."""
        self._unread.append(outcome)
        self._changed.set()

    def clear(self) -> None:
        """Forget the unread outcomes."""
        self._unread.clear()

    def end(self) -> None:
        """No outcome will be added."""
        self._ended = True
        self._changed.set()

    async def next(self) -> UpdateOutcome | None:
        """The next outcome; None if there will be no more."""
        self._readers += 1
        try:
            self._free_places()
            while not self._unread:
                if self._ended:
                    return None
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._readers -= 1
        outcome = self._unread.popleft()
        self._taken += 1
        if self._readers:
            # Another reader waits already, and this one may never ask again.
            self._free_places()
        return outcome

    def _free_places(self) -> None:
        """Free the places of the outcomes that were taken: a reader asks for more."""
        while self._taken:
            self._taken -= 1
            self._places.release()
