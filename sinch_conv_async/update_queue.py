"""A queue of updates that a service fills, and that one bulk job empties for as long as it runs.

- ``put`` adds an update to ``_pending``, where it stays until it has an outcome, and to
  ``_queued``, from which the job reads. ``max_size`` bounds ``_pending``.
- One task runs the job. If an error ends the job, such as a refused key, the task waits a while and
  starts another job, with all that is pending.
- ``stop`` lets the job go on until everything has an outcome, or until the time is up. Then it
  cancels the job. The updates that are still pending were not done.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from ._core.log import ERROR, WARNING, log
from ._wire.operations import UpdateMetadata
from .client import ConversationClient
from .enums import MessagesSource
from .errors import ClientStateError, InvalidArgumentError, SinchError
from .models import MetadataUpdate, UpdateOutcome

__all__ = ["UpdateQueue"]

RESTART_AFTER: Final = 30.0
"""Seconds before another job is started after an error. The key may be corrected meanwhile."""


class UpdateQueue:
    """A queue of updates, which one bulk job sends in the background of a service.

    Use ``async with UpdateQueue(client) as queue:`` around the life of the service, inside the
    block of the client. A handler calls :meth:`put_nowait` and answers at once. The updates are
    sent as :meth:`ConversationClient.update_many` sends them: in order for each message, at the
    project's pace, and held back in an outage for as long as it lasts.

    ``max_size``: the most pending updates; more are refused. ``on_outcome``: a plain or
    asynchronous function that is called with each outcome, one after the other; its exceptions go
    to the event loop's exception handler. Without it, updates that failed are logged as warnings.
    ``concurrency``: updates under way at a time. ``stop_within``: seconds that leaving the
    ``async with`` block waits for pending updates.

    An error that ends the job (a refused key) is logged and kept in :attr:`error`; the job starts
    again after 30 seconds. The queue is in memory and does not survive the process. If updates must
    not be lost, keep them in a table of your own.

    Raises :class:`InvalidArgumentError` for an argument that cannot be right.
    """

    def __init__(
        self,
        client: ConversationClient,
        *,
        max_size: int = 10_000,
        on_outcome: Callable[[UpdateOutcome], Awaitable[object] | object] | None = None,
        concurrency: int | None = None,
        stop_within: float = 5.0,
    ) -> None:
        if type(max_size) is not int or max_size < 1:
            raise InvalidArgumentError("max_size must be a whole number, 1 or more")
        if on_outcome is not None and not callable(on_outcome):
            raise InvalidArgumentError("on_outcome must be a function of an outcome")
        self._client = client
        self._max_size = max_size
        self._on_outcome = on_outcome
        self._concurrency = concurrency
        self._stop_within = stop_within
        # By identity, because the same update can be put twice.
        self._pending: dict[int, MetadataUpdate] = {}
        self._queued: deque[MetadataUpdate] = deque()
        self._news = asyncio.Event()  # there is something to send, or the queue stops
        self._room = asyncio.Event()  # an update has left, or the queue stops
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._error: SinchError | None = None

    def __repr__(self) -> str:
        if self._task is None:
            state = "not started"
        elif self._task.done():
            state = "stopped"
        else:
            state = "stopping" if self._stopping.is_set() else "running"
        error = f", {type(self._error).__name__}" if self._error is not None else ""
        return f"<UpdateQueue {state}: {len(self)} of {self._max_size} pending{error}>"

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def pending(self) -> tuple[MetadataUpdate, ...]:
        """The updates that have no outcome yet, in the order in which they were put.

        After :meth:`stop` these are the updates that were not done. Those that were under way then
        may have been applied.
        """
        return tuple(self._pending.values())

    @property
    def error(self) -> SinchError | None:
        """The error that ended the job, until the next outcome; otherwise ``None``."""
        return self._error

    # Filling

    def put_nowait(
        self, message_id: str, metadata: str, *, messages_source: MessagesSource | str | None = None
    ) -> None:
        """Put one update into the queue. Arguments as for ``update_message_metadata``.

        Raises :class:`InvalidArgumentError`, :class:`asyncio.QueueFull` if ``max_size`` updates are
        pending, and :class:`ClientStateError` once the queue stops or its client is closed.
        """
        ended = self._task is not None and self._task.done()
        if ended or self._stopping.is_set() or self._client.closed:
            raise ClientStateError("the update queue has been stopped")
        UpdateMetadata.of("", "", message_id, metadata, messages_source)  # checks the arguments
        update = MetadataUpdate(message_id, metadata, messages_source)
        if len(self._pending) >= self._max_size:
            raise asyncio.QueueFull
        self._pending[id(update)] = update
        self._queued.append(update)
        self._news.set()

    async def put(
        self, message_id: str, metadata: str, *, messages_source: MessagesSource | str | None = None
    ) -> None:
        """The same, but wait while the queue is full."""
        while True:
            try:
                self.put_nowait(message_id, metadata, messages_source=messages_source)
            except asyncio.QueueFull:
                self._room.clear()
                await self._room.wait()
            else:
                return

    # Emptying

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise ClientStateError("an update queue is started once")
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name="sinch_conv_async update queue")
        self._task.add_done_callback(lambda task: self._room.set())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop(self._stop_within)

    async def stop(self, within: float | None = None) -> tuple[MetadataUpdate, ...]:
        """Take no more updates, and return those that were not done ``within`` this many seconds.

        ``None``: wait until all have an outcome, however long that takes. If the job does not run
        because of an :attr:`error`, it does not wait. Stopping twice is fine.
        """
        self._stopping.set()
        self._news.set()
        self._room.set()
        task = self._task
        if task is not None and not task.done():
            try:
                await asyncio.wait([task], timeout=within)
            finally:
                task.cancel()
            await asyncio.wait([task])
            if self._pending:
                log(WARNING, "the update queue has stopped with %d updates not done", len(self))
        return self.pending

    async def _run(self) -> None:
        """Empty the queue, with another job after each error."""
        while True:
            self._queued = deque(self._pending.values())
            try:
                async with self._client.update_many(
                    self._feed(), concurrency=self._concurrency, max_outage=None
                ) as outcomes:
                    async for outcome in outcomes:
                        await self._done(outcome)
            except SinchError as error:
                self._error = error
            else:
                return
            log(ERROR, "the update queue cannot send: %s", str(self._error))
            if self._client.closed:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RESTART_AFTER)
            if self._stopping.is_set():
                return

    async def _feed(self) -> AsyncGenerator[MetadataUpdate]:
        while True:
            while self._queued:
                yield self._queued.popleft()
            if self._stopping.is_set():
                return
            self._news.clear()
            await self._news.wait()

    async def _done(self, outcome: UpdateOutcome) -> None:
        self._error = None
        try:
            if self._on_outcome is not None:
                seen = self._on_outcome(outcome)
                if inspect.isawaitable(seen):
                    await seen
            elif outcome.error is not None:
                message_id = outcome.update.message_id
                log(
                    WARNING,
                    "message %s was not updated: %s",
                    message_id,
                    str(outcome.error),
                    message_id=message_id,
                )
        except Exception as error:  # noqa: BLE001  # the user's function raised; the queue goes on
            problem = f"on_outcome raised for message {outcome.update.message_id}"
            handler = asyncio.get_running_loop().call_exception_handler
            handler({"message": problem, "exception": error})
        self._pending.pop(id(outcome.update), None)
        self._room.set()
