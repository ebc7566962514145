"""The tasks of one job: one reads the input, and one works on each message that is under way.

- The reading task waits for a place, takes an item, and starts a task for the item. If a task for
  the same message runs already, the item waits in the queue of that message, and that task works on
  it later. So items of one message keep their order.
- The reading task owns the input: when it stops reading for any reason, it closes the input, and
  waits until the input is closed.
- A task that waits for long (for the end of an outage, or between two rounds) is *parked*.
  ``stop_reading`` cancels the parked tasks and the reading task; the other tasks finish. ``aclose``
  cancels all tasks.
- An exception in a task ends the job: reading stops, and the other tasks finish. When the user has
  read their outcomes, the job raises the exception.
- The job has ended when its last task has ended. If the event loop is closed before that, the tasks
  end without errors (``_until_closed``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from .._core.send import Sender
from ..errors import ClientStateError, InvalidArgumentError, SinchError
from ..models import UpdateOutcome
from .input import Input
from .items import Work
from .outage import may_pass, probe_delays
from .outcomes import Outcomes
from .rounds import Rounds
from .state import JobState

__all__ = ["Job"]


class Job:
    """A running job. It never refers to the :class:`BulkUpdate` that the user holds."""

    def __init__(
        self,
        sender: Sender,
        source: Input,
        work: Work,
        concurrency: int,
        max_outage: float,
        may_send: Callable[[], bool] | None,
    ) -> None:
        self._sender = sender
        self._input = source
        self._work = work
        self._state = JobState()
        self._outcomes = Outcomes(concurrency)
        self._rounds = Rounds(sender, self._state, max_outage, may_send)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client_closed: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._aborted = False

    def __repr__(self) -> str:
        state = "at rest" if not self._tasks else "reading" if self._state.reading else "finishing"
        outage = ", outage" if self.in_outage else ""
        return f"{state}: {len(self._state.held)} held, {len(self._outcomes)} unread{outage}"

    @property
    def in_outage(self) -> bool:
        return self._rounds.in_outage

    @property
    def outage_error(self) -> SinchError | None:
        return self._rounds.outage_error

    # Methods for the user's BulkUpdate

    async def next_outcome(self) -> UpdateOutcome:
        """The next outcome. Raises the error that ended the job, or StopAsyncIteration."""
        if self._loop is None:
            self._start()
        elif self._loop is not asyncio.get_running_loop():
            raise ClientStateError("this bulk job belongs to another event loop")
        outcome = await self._outcomes.next()
        if outcome is None:
            error, self._state.error = self._state.error, None
            raise StopAsyncIteration if error is None else error
        return outcome

    def stop_reading(self) -> None:
        """Read no more items, and end the tasks that wait for long."""
        self._state.stop_reading()

    async def aclose(self) -> None:
        """End the job, and wait until it has ended."""
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            if self._loop.is_closed():
                return  # the tasks are gone with the loop
            raise ClientStateError("this bulk job belongs to another event loop")
        reader = self._state.reader
        closing = reader if reader in self._tasks else None
        self._abort()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        if reader is None:
            await self._input.aclose()
        elif closing is not None and not closing.cancelled() and (error := closing.exception()):
            self._state.error = None
            raise error

    def abandon(self) -> None:
        """End the job, because nobody can read its outcomes any more.

        The garbage collector calls this in any thread.
        """
        if self._loop is not None and self._tasks:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its tasks are gone
                self._loop.call_soon_threadsafe(self._abort)

    # Beginning and ending

    def _start(self) -> None:
        # Do this first. It raises if the client is closed. If the client's event loop is closed, it
        # gives the client a new ``lifetime``.
        self._sender.bound()
        self._loop = asyncio.get_running_loop()
        if self._state.stopped:
            self._outcomes.end()
            return
        closed = self._client_closed = self._loop.create_future()
        # When the client closes, it fails the futures of its waiting calls. This future is one of
        # them, so the job ends too, even while it waits for its input.
        self._sender.lifetime.waiting.add(closed)
        closed.add_done_callback(self._client_has_closed)
        self._state.reader = self._start_task(self._loop, "reader", self._read)

    def _start_task(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        run: Callable[..., Coroutine[Any, Any, None]],
        *given: Any,
    ) -> asyncio.Task[None]:
        task = loop.create_task(
            _until_closed(loop, run, *given), name=f"sinch_conv_async bulk {name}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not self._state.stopped:
                # The job did not cancel this task. The input or a transform raised CancelledError,
                # or all tasks of the loop are being cancelled.
                self._state.fail(asyncio.CancelledError("the bulk job was cancelled"))
        elif (error := task.exception()) is not None:
            self._state.fail(error)
        if not self._tasks:
            self._end()

    def _client_has_closed(self, closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            self._state.fail(closed.exception())

    def _abort(self) -> None:
        self._state.stop_reading()
        self._state.error = None
        self._outcomes.clear()
        if not self._aborted:
            self._aborted = True
            for task in self._tasks - {self._state.reader}:
                task.cancel()

    def _end(self) -> None:
        assert self._client_closed is not None  # it was made before the first task
        self._sender.lifetime.waiting.discard(self._client_closed)
        self._client_closed.cancel()
        self._state.held.clear()
        self._rounds.end_outage()
        self._outcomes.end()

    # The task that reads, and the tasks of the items

    async def _read(self) -> None:
        """Take items from the input, and close the input at the end."""
        try:
            while await self._read_one():
                pass
        except GeneratorExit:
            raise  # the event loop is closed, so this task cannot await
        except BaseException:
            self._state.reading = False
            await self._input.aclose()
            raise
        self._state.reading = False
        await self._input.aclose()

    async def _read_one(self) -> bool:
        """Read an item as soon as there is a place; return whether there may be more items."""
        await self._outcomes.place()
        try:
            given = await self._next()
        except StopAsyncIteration:
            return False
        if self._state.stopped:
            return False  # the input has caught the cancellation of this task
        try:
            item = self._work.item(given)
        except InvalidArgumentError as refused:
            number = self._input.given
            raise InvalidArgumentError(
                f"item {number} of the input (index {number - 1}) {refused}"
            ) from None
        key, held = self._work.key(item), self._state.held
        if key in held:
            held[key].append(item)
        else:
            held[key] = deque((item,))
            self._start_task(asyncio.get_running_loop(), "item", self._work_off, key)
        return True

    async def _next(self) -> object:
        """The next object of the input. In an outage, ask a list of messages again."""
        failing_since: float | None = None
        delays = probe_delays()
        while True:
            try:
                return await self._input.next()
            except SinchError as error:
                now = self._sender.now()
                failing_since = now if failing_since is None else failing_since
                lasts_too_long = now - failing_since >= self._rounds.max_outage
                if not self._input.asks_again or lasts_too_long or not may_pass(error):
                    raise
            await asyncio.sleep(next(delays))

    async def _work_off(self, key: Hashable) -> None:
        """Make the outcomes of all items of one key, one after the other."""
        items = self._state.held[key]
        while items:
            outcome = await self._work.outcome(items[0], self._rounds.send)
            if outcome.error is not None:
                # The reader gets the error as a value. The frames of a traceback would keep the job
                # alive.
                outcome.error.__traceback__ = None
            self._outcomes.add(outcome)
            items.popleft()
        del self._state.held[key]


async def _until_closed(
    loop: asyncio.AbstractEventLoop, run: Callable[..., Coroutine[Any, Any, None]], *given: Any
) -> None:
    """Run a task of the job; ignore its error if the event loop is closed.

    If its event loop is closed, the garbage collector ends the task with GeneratorExit. Code that
    then needs the loop, such as a queue of the input, fails. No caller could handle that error, and
    Python would print it.
    """
    try:
        await run(*given)
    except BaseException:
        if not loop.is_closed():
            raise
