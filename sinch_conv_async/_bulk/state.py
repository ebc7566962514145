"""What the parts of one job share: the items that it holds, and whether it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Generator, Hashable
from typing import Any

__all__ = ["JobState"]


class JobState:
    """The state of a job.

    ``held``: by key, the item under way and those that wait behind it. ``reading``: the input has
    more to give. ``stopped``: no more items are read, and no task waits for long. ``error``: the
    error that ends the job. ``reader``: the task that reads the input. ``parked``: tasks that wait
    for long.
    """

    def __init__(self) -> None:
        self.held: dict[Hashable, deque[Any]] = {}
        self.reading = True
        self.stopped = False
        self.error: BaseException | None = None
        self.reader: asyncio.Task[None] | None = None
        self.parked: set[asyncio.Task[Any]] = set()

    def stop_reading(self) -> None:
        """End the reading, and the tasks that wait for long.

        The reader is cancelled only once, because a second cancellation would interrupt the cleanup
        of the input.
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
        """End the job with an error. The updates under way still get their outcomes."""
        self.error = self.error or error
        self.stop_reading()

    @contextlib.contextmanager
    def parking(self) -> Generator[None]:
        """Around a long wait of a task: ``stop_reading`` cancels the task, which has no outcome."""
        this = asyncio.current_task()
        assert this is not None  # a coroutine of the job runs in a task of the job
        if self.stopped:
            raise asyncio.CancelledError
        self.parked.add(this)
        try:
            yield
        finally:
            self.parked.discard(this)
