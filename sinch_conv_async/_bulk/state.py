"""What the parts of one job share: the items that it holds, and whether it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Generator, Hashable
from typing import Any

__all__ = ["JobState"]


class JobState:
    """How far a job has come.

    ``held``: by key, the item under way and those that wait behind it. ``reading``: the input has
    more to give. ``stopped``: nothing more is read, and no task waits for long. ``error``: what
    ends the job. ``reader``: the task that reads the input. ``parked``: tasks that wait for long.
    """

    def __init__(self) -> None:
        self.held: dict[Hashable, deque[Any]] = {}
        self.reading = True
        self.stopped = False
        self.error: BaseException | None = None
        self.reader: asyncio.Task[None] | None = None
        self.parked: set[asyncio.Task[Any]] = set()

    def stop_reading(self) -> None:
        """End the reading, and what waits for long.

        The reader is cancelled once only: a second time would cut the cleanup of the input.
        """
        if self.stopped:
            return
        self.stopped = True
        if self.reader is not None and self.reading:
            self.reader.cancel()
        self.reading = False
        for task in self.parked:
            task.cancel()

    def fail(self, error: BaseException | None) -> None:
        """End the job with an error: what is under way still gets its outcome."""
        self.error = self.error or error
        self.stop_reading()

    @contextlib.contextmanager
    def parking(self) -> Generator[None]:
        """Where a task may wait for long: ``stop_reading`` cancels it, and it has no outcome."""
        this = asyncio.current_task()
        assert this is not None  # a coroutine of the job runs in a task of the job
        if self.stopped:
            raise asyncio.CancelledError
        self.parked.add(this)
        try:
            yield
        finally:
            self.parked.discard(this)
