"""Many updates as one job: a stream of items in, a stream of outcomes out.

How a job works, in the order of the code:

- :class:`BulkUpdate` is what the user holds. Everything that runs belongs to a :class:`_Job`, which
  never refers to it. So when nobody holds the ``BulkUpdate`` any more, it is freed at once, and
  ends the job.
- A job holds ``concurrency`` items at most: each has one of as many *places*. It is under way,
  waits behind an earlier item of the same id, or has an outcome that nobody has read. A place
  becomes free when a reader asks for the next outcome. So nothing is sent that nobody
  reads, and memory does not grow with the input.
- One task reads the input. It waits for a place, takes an item, and starts a task for it; if the
  same id is under way, the item waits in a queue of that id, and the task of the earlier one goes
  on with it. So items of one id keep their order.
- The reading task owns the input: when it stops reading, for whatever reason, it closes the input
  and waits for that.
- The task of an item makes its outcome: an update sends one call (:class:`_Updates`), a
  transformation sends a read and perhaps an update (:class:`_Transformation`). Each call goes
  through :meth:`_Job.send`, which waits while the API is out, sends the call, and asks ``judge`` in
  ``_core/outage.py`` what becomes of one that failed.
- Tasks that wait for long, for the end of an outage or between two rounds of retries, are *parked*.
  ``stop_reading`` cancels these and the reading task, and lets the others finish. ``aclose``
  cancels all.
- An exception in a task ends the job: reading stops, the other tasks finish, their outcomes are
  read, then the exception is raised.
- The job has ended when its last task has. Nothing here relies on an event loop that has been
  closed in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Hashable,
    Iterable,
    Iterator,
)
from types import TracebackType
from typing import Any, Final, Protocol, Self, runtime_checkable

import attrs

from ._core.log import INFO, WARNING, log
from ._core.outage import (
    AnotherRound,
    ApiState,
    EndJob,
    Evidence,
    Failed,
    Outage,
    WaitForApi,
    judge,
    may_pass,
    probe_delays,
)
from ._core.send import Call, Sender
from ._wire.operations import GetMessage
from .enums import MessagesSource
from .errors import ClientStateError, InvalidArgumentError, SinchError
from .models import (
    ConversationMessage,
    MetadataUpdate,
    NotUpdated,
    Unchanged,
    Updated,
    UpdateOutcome,
)

__all__ = ["BulkUpdate", "Change", "Messages", "Transform", "Updates"]

Pair = tuple[str, str] | list[str]
"""Message id and metadata. A list of two is what a CSV reader's rows are."""

Updates = Iterable[MetadataUpdate | Pair] | AsyncIterable[MetadataUpdate | Pair]
"""What ``update_many`` takes: updates, or pairs of message id and metadata."""


@runtime_checkable
class Change(Protocol):
    """A :class:`~sinch_conv_async.MetadataUpdate` that is computed from its message.

    The outcome leads back to it.
    """

    def changed(self, message: ConversationMessage) -> str | None:
        """The new metadata, or ``None``. Raises InvalidArgumentError if there can be none."""
        ...


Messages = (
    Iterable[str | ConversationMessage | Change] | AsyncIterable[str | ConversationMessage | Change]
)
"""What ``transform_many`` takes: message ids, or messages as they were read."""

Transform = Callable[[ConversationMessage], str | Awaitable[str | None] | None]
"""A plain or asynchronous function: the new metadata of a message, or ``None`` to leave it."""

MAX_OUTAGE: Final = 900.0
"""Seconds that a job waits for the API to come back, unless told otherwise."""

TO_GO_ON: Final = "Updates that have no outcome can be given to a new job."
"""What is left to do after an outage that did not end."""


class BulkUpdate:
    """The outcomes of a bulk job, one for each item of its input, in order of completion.

    An asynchronous iterator, and an asynchronous context manager that leaves nothing running. Made
    by :meth:`ConversationClient.update_many` and :meth:`~ConversationClient.transform_many`;
    nothing is read or sent before the first outcome is asked for.

    An update that fails is an outcome. What ends the whole job is raised, after the outcomes that
    were finished: a refused key (:class:`TokenError`), a final 401 (:class:`AuthenticationError`),
    a closed client (:class:`ClientStateError`), an outage longer than ``max_outage`` (its last
    error), and whatever the input raises. Two updates of one id keep their order. The client's
    ``timeout`` is for single calls: an update of a job waits for its turn as long as that takes.

    The job owns its input. When it stops reading, it closes the input, if that is a generator or
    has an ``aclose`` method, and waits for its cleanup. Several tasks may read the outcomes of one
    job: each outcome goes to one of them, and what ends the job is raised in one. A job that is no
    longer held by anybody ends by itself, as :meth:`aclose` would end it.
    """

    def __init__(self, job: _Job) -> None:
        self._job = job

    def __repr__(self) -> str:
        return f"<BulkUpdate {self._job!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> UpdateOutcome:
        return await self._job.next_outcome()

    def __del__(self) -> None:
        self._job.abandon()

    @property
    def in_outage(self) -> bool:
        """Whether the job waits for the API to come back."""
        return self._job.in_outage

    @property
    def outage_error(self) -> SinchError | None:
        """The last error while :attr:`in_outage`; ``None`` otherwise."""
        return self._job.outage_error

    def stop_reading(self) -> None:
        """Take no more of the input. The outcomes of what is under way still come.

        An update that waits for the end of an outage, or between two rounds of retries, gets no
        outcome: it would take as long.
        """
        self._job.stop_reading()

    async def aclose(self) -> None:
        """End the job now. Closing twice is fine.

        What is under way is cancelled, and may or may not have been applied. Returns when the input
        has been closed, too; raises what its cleanup raises.
        """
        await self._job.aclose()


def update_many(
    sender: Sender, updates: Updates, *, concurrency: int, max_outage: float
) -> BulkUpdate:
    """The job of :meth:`ConversationClient.update_many`; ``max_outage`` may be infinite."""
    source = _Input("updates", updates)
    return BulkUpdate(_Job(sender, source, _Updates(sender), concurrency, max_outage))


def transform_many(
    sender: Sender,
    messages: Messages,
    transform: Transform,
    *,
    messages_source: MessagesSource | str | None,
    concurrency: int,
    max_outage: float,
) -> BulkUpdate:
    """The job of :meth:`ConversationClient.transform_many`; ``max_outage`` may be infinite."""
    if isinstance(messages, str):
        raise InvalidArgumentError("messages must be an iterable of message ids, not one text")
    if not callable(transform):
        raise InvalidArgumentError("transform must be a function of a message")
    source = _Input("messages", messages)
    work = _Transformation(sender, transform, messages_source)
    return BulkUpdate(_Job(sender, source, work, concurrency, max_outage))


# What is done for each item


class _Work(Protocol):
    """What a job does for each item of its input."""

    def item(self, given: object) -> Any:
        """The item that is made of what the input gave, or InvalidArgumentError."""
        ...

    def key(self, item: Any) -> Hashable:
        """Items of one key are for one message, and keep their order."""
        ...

    async def outcome(self, item: Any, job: _Job) -> UpdateOutcome:
        """The outcome, once there is one."""
        ...


class _Updates:
    """Each item is an update, which is sent."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def item(self, given: object) -> MetadataUpdate:
        if isinstance(given, MetadataUpdate):
            return given
        what = type(given).__name__
        if isinstance(given, tuple | list):
            if len(given) == 2:
                return MetadataUpdate(*given)
            what = f"{what} of {len(given)}"
        raise InvalidArgumentError(
            f"must be a MetadataUpdate or a pair of message id and metadata, not {what}"
        )

    def key(self, item: MetadataUpdate) -> Hashable:
        return _key(item.message_id)

    async def outcome(self, item: MetadataUpdate, job: _Job) -> UpdateOutcome:
        return await _updated(self._sender, item, job)


@attrs.frozen
class _Message:
    """An item of a transformation: the update so far, and the message if it was read.

    ``change``: what makes the new metadata of this message.
    """

    update: MetadataUpdate
    read: ConversationMessage | None
    change: Transform


class _Transformation:
    """Each item is a message, which is read, transformed, and updated if its metadata changes."""

    def __init__(
        self, sender: Sender, transform: Transform, messages_source: MessagesSource | str | None
    ) -> None:
        self._sender = sender
        self._transform = transform
        self._source = messages_source

    def item(self, given: object) -> _Message:
        if isinstance(given, str):
            return _Message(MetadataUpdate(given, None, self._source), None, self._transform)
        if isinstance(given, ConversationMessage):
            update = MetadataUpdate(given.id or "", None, self._source)
            return _Message(update, given, self._transform)
        if isinstance(given, MetadataUpdate) and isinstance(given, Change):
            return _Message(given, None, given.changed)
        what = type(given).__name__
        raise InvalidArgumentError(f"must be a message id or a ConversationMessage, not {what}")

    def key(self, item: _Message) -> Hashable:
        return _key(item.update.message_id)

    async def outcome(self, item: _Message, job: _Job) -> UpdateOutcome:
        update, message = item.update, item.read
        attempts = 0
        try:
            operation = GetMessage.of(
                self._sender.origin, self._sender.path, update.message_id, update.messages_source
            )
            if message is None:
                read = Call(operation)
                result = await job.send(read, self.key(item))
                attempts = read.attempts
                if isinstance(result, SinchError):
                    return NotUpdated(update, error=result, attempts=attempts)
                message = result
            metadata = await _changed(item.change, message)
        except InvalidArgumentError as refused:
            return NotUpdated(update, error=refused, attempts=attempts)
        there = message.metadata or ""
        if metadata is None or metadata == there:
            return Unchanged(attrs.evolve(update, metadata=there), message, attempts=attempts)
        return await _updated(
            self._sender, attrs.evolve(update, metadata=metadata), job, attempts=attempts
        )


async def _changed(change: Transform, message: ConversationMessage) -> str | None:
    """The new metadata. InvalidArgumentError is an outcome; another error ends the job."""
    try:
        metadata = change(message)
        if inspect.isawaitable(metadata):
            metadata = await metadata
    except StopAsyncIteration as error:
        # It must not look like the end of the job.
        raise RuntimeError("transform raised StopAsyncIteration") from error
    if metadata is None or isinstance(metadata, str):
        return metadata
    what = type(metadata).__name__
    raise TypeError(f"transform must return the metadata as text, or None, not {what}")


async def _updated(
    sender: Sender, update: MetadataUpdate, job: _Job, *, attempts: int = 0
) -> Updated | NotUpdated:
    """The outcome of an update, after so many attempts to read the message."""
    try:
        call = Call(sender.update(update.message_id, update.metadata, update.messages_source))
    except InvalidArgumentError as refused:
        return NotUpdated(update, error=refused, attempts=attempts)
    result = await job.send(call, _key(update.message_id))
    attempts += call.attempts
    if isinstance(result, SinchError):
        return NotUpdated(update, error=result, attempts=attempts)
    return Updated(update, message=result, attempts=attempts)


def _key(message_id: object) -> Hashable:
    """Ids have no case. What is no text is refused before its order can matter."""
    return message_id.lower() if isinstance(message_id, str) else id(message_id)


# The input


class _Input:
    """The items of an iterable or asynchronous iterable, and how many it has given."""

    def __init__(self, name: str, items: object) -> None:
        self._items: AsyncIterator[object] | Iterator[object]
        if isinstance(items, AsyncIterable):
            self._items = aiter(items)
        elif isinstance(items, Iterable):
            self._items = iter(items)
        else:
            raise InvalidArgumentError(
                f"{name} must be an iterable or asynchronous iterable, not {type(items).__name__}"
            )
        self.asks_again = bool(getattr(self._items, "asks_again", False))
        self.given = 0

    async def next(self) -> object:
        """The next item; StopAsyncIteration at the end."""
        if isinstance(self._items, AsyncIterator):
            item = await anext(self._items)
        else:
            await asyncio.sleep(
                0
            )  # so that the item before is under way before an input that blocks is asked again
            try:
                item = next(self._items)
            except StopIteration:
                raise StopAsyncIteration from None
            except StopAsyncIteration as error:
                # It must not look like the input's end. Python does the same with StopIteration in
                # a generator (PEP 479).
                raise RuntimeError("the input raised StopAsyncIteration") from error
        self.given += 1
        return item

    async def aclose(self) -> None:
        """Close a generator, or an asynchronous iterator that has ``aclose``; a file stays open."""
        items, self._items = self._items, iter(())
        if isinstance(items, Generator):
            items.close()
        elif (aclose := getattr(items, "aclose", None)) is not None:
            await aclose()


# The job


class _Probes:
    """The tasks that wait in an outage. One at a time may probe; the end of it wakes all."""

    def __init__(self, outage: Outage, error: SinchError) -> None:
        self.outage = outage
        self.error = error
        self.over = False
        self._probing = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until woken, or for so many seconds."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if not self._probing:
            self.pass_on()
        await asyncio.wait([future], timeout=timeout)
        future.cancel()  # one that is done is passed over when the turn goes on

    def pass_on(self) -> None:
        """Give the turn to the task that has waited longest."""
        self._probing = False
        while self._waiting and not self._probing:
            self._probing = _wake(self._waiting.popleft())

    def end(self) -> None:
        """Wake all: the outage is over."""
        self.over = True
        while self._waiting:
            _wake(self._waiting.popleft())


def _wake(future: asyncio.Future[None]) -> bool:
    if future.done():
        return False
    future.set_result(None)
    return True


class _Job:
    """What runs: the task that reads the input, and one task for each item that is under way.

    ``_held``: by key, the items that wait for the one under way. ``_reading``: the input has more
    to give. ``_stopped``: nothing is read any more, and nothing waits for long.
    """

    def __init__(
        self, sender: Sender, source: _Input, work: _Work, concurrency: int, max_outage: float
    ) -> None:
        self._sender = sender
        self._input = source
        self._work = work
        self._api = ApiState(max_outage)
        self._probes: _Probes | None = None
        self._places = asyncio.Semaphore(concurrency)
        self._asking = 0  # readers that wait for an outcome
        self._unreturned = 0  # outcomes taken since a reader last asked for more
        self._held: dict[Hashable, deque[Any]] = {}
        self._finished: deque[UpdateOutcome] = deque()
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client_closed: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._parked: set[asyncio.Task[None]] = set()
        self._reading = True
        self._stopped = False
        self._aborted = False
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        state = "at rest" if not self._tasks else "reading" if self._reading else "finishing"
        outage = ", outage" if self.in_outage else ""
        return f"{state}: {len(self._held)} held, {len(self._finished)} unread{outage}"

    @property
    def in_outage(self) -> bool:
        return self._probes is not None

    @property
    def outage_error(self) -> SinchError | None:
        return None if self._probes is None else self._probes.error

    # For the user's side

    async def next_outcome(self) -> UpdateOutcome:
        """The next outcome, what ended the job, or StopAsyncIteration."""
        if self._loop is None:
            self._start()
        elif self._loop is not asyncio.get_running_loop():
            raise ClientStateError("this bulk job belongs to another event loop")
        self._asking += 1
        try:
            self._free_places()
            while not self._finished:
                if not self._tasks:
                    error, self._error = self._error, None
                    raise StopAsyncIteration if error is None else error
                self._news.clear()
                await self._news.wait()
        finally:
            self._asking -= 1
        outcome = self._finished.popleft()
        self._unreturned += 1
        if self._asking:
            # Another reader waits for more already, and this one may never come back.
            self._free_places()
        return outcome

    def _free_places(self) -> None:
        """Free the places of the outcomes that readers have taken: somebody asks for more."""
        while self._unreturned:
            self._unreturned -= 1
            self._places.release()

    def stop_reading(self) -> None:
        """End the reading, and what waits for long.

        The reader is cancelled once only: a second time would cut the cleanup of the input.
        """
        if self._stopped:
            return
        self._stopped = True
        if self._reader is not None and self._reading:
            self._reader.cancel()
        self._reading = False
        for task in self._parked:
            task.cancel()

    async def aclose(self) -> None:
        """End the job, and wait until it has ended."""
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            if self._loop.is_closed():
                return  # and the tasks with it
            raise ClientStateError("this bulk job belongs to another event loop")
        closing = self._reader if self._reader in self._tasks else None
        self._abort()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        if self._reader is None:
            await self._input.aclose()
        elif closing is not None and not closing.cancelled() and (error := closing.exception()):
            self._error = None
            raise error

    def abandon(self) -> None:
        """End the job, because nobody can read it any more; in the garbage collector's thread."""
        if self._loop is not None and self._tasks:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the tasks with it
                self._loop.call_soon_threadsafe(self._abort)

    # Beginning and ending

    def _start(self) -> None:
        # First of all: this refuses if the client is closed, and gives a client of a closed loop a
        # new lifetime.
        self._sender.bound()
        self._loop = asyncio.get_running_loop()
        if self._stopped:
            return
        closed = self._client_closed = self._loop.create_future()
        # The job is one of the things that wait on the client: so closing the client ends a job
        # that waits for its input.
        self._sender.lifetime.waiting.add(closed)
        closed.add_done_callback(self._client_has_closed)
        self._reader = self._start_task(self._loop, "reader", self._read)

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
            if not self._stopped:
                # Not cancelled by the job. The input or a transform raised it, or whatever runs is
                # being cancelled.
                self._fail(asyncio.CancelledError("the bulk job was cancelled"))
        elif (error := task.exception()) is not None:
            self._fail(error)
        if not self._tasks:
            self._end()

    def _client_has_closed(self, closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            self._fail(closed.exception())

    def _fail(self, error: BaseException | None) -> None:
        """End the job with an error: what is under way still gets its outcome."""
        self._error = self._error or error
        self.stop_reading()

    def _abort(self) -> None:
        self.stop_reading()
        self._error = None
        self._finished.clear()
        if not self._aborted:
            self._aborted = True
            for task in self._tasks - {self._reader}:
                task.cancel()

    def _end(self) -> None:
        assert self._client_closed is not None  # made before the first task
        self._sender.lifetime.waiting.discard(self._client_closed)
        self._client_closed.cancel()
        self._held.clear()
        self._end_outage()
        self._news.set()

    # The task that reads, and the tasks of the items

    async def _read(self) -> None:
        """Take items from the input, and close it in the end."""
        try:
            while await self._read_one():
                pass
        except GeneratorExit:
            raise  # the event loop is closed: nothing can be waited for
        except BaseException:
            self._reading = False
            await self._input.aclose()
            raise
        self._reading = False
        await self._input.aclose()

    async def _read_one(self) -> bool:
        """Take an item as soon as there is a place for it. Whether there may be more."""
        await self._places.acquire()
        try:
            given = await self._next()
        except StopAsyncIteration:
            return False
        if self._stopped:
            return False  # the input took no notice of being cancelled
        try:
            item = self._work.item(given)
        except InvalidArgumentError as refused:
            number = self._input.given
            raise InvalidArgumentError(
                f"item {number} of the input (index {number - 1}) {refused}"
            ) from None
        key = self._work.key(item)
        if key in self._held:
            self._held[key].append(item)
        else:
            self._held[key] = deque((item,))
            self._start_task(asyncio.get_running_loop(), "item", self._work_off, key)
        return True

    async def _next(self) -> object:
        """The next thing that the input gives. A list of messages is asked again in an outage."""
        failing_since: float | None = None
        delays = probe_delays()
        while True:
            try:
                return await self._input.next()
            except SinchError as error:
                now = self._sender.now()
                failing_since = now if failing_since is None else failing_since
                lasts_too_long = now - failing_since >= self._api.max_outage
                if not self._input.asks_again or lasts_too_long or not may_pass(error):
                    raise
            await asyncio.sleep(next(delays))

    async def _work_off(self, key: Hashable) -> None:
        """Make the outcomes of all items of one key, one after the other."""
        items = self._held[key]
        while items:
            outcome = await self._work.outcome(items[0], self)
            if outcome.error is not None:
                # It was not raised at the reader, and its frames hold the job.
                outcome.error.__traceback__ = None
            self._finished.append(outcome)
            self._news.set()
            items.popleft()
        del self._held[key]

    # One call

    async def send(
        self, call: Call[ConversationMessage], key: Hashable
    ) -> ConversationMessage | SinchError:
        """The result of a call, or the error that is its outcome. Raises what ends the job."""
        trial = _Trial(call, key)
        while True:
            # 1. Wait while the API is out, or for the turn to probe it.
            probes = await self._may_send()
            # 2. Send the call, with all its retries. A probe is a single attempt.
            trial.began, trial.attempts = self._sender.now(), call.attempts
            try:
                message = await self._sender.send_round(call, single=probes is not None)
            except SinchError as caught:
                error = caught
            else:
                self._api_answers()
                self._api.succeeded(sent_at=trial.began, retries=trial.retries)
                return message
            # 3. It failed: the next probe is another update's.
            if probes is not None:
                probes.pass_on()
            # 4. Judge whether the update is at fault, or the API is out.
            evidence = self._evidence(trial, error)
            verdict = judge(evidence)
            if isinstance(verdict, AnotherRound):
                trial.rounds += 1
                await self._pause(self._sender.long_delay())
            elif isinstance(verdict, WaitForApi):
                trial.answers_before = self._api.answers
                self._api_is_out(trial, error)
            else:
                self._sender.ended(call, error)
                return self._give_up(trial, error, verdict, evidence.out_for)

    def _give_up(
        self, trial: _Trial, error: SinchError, verdict: Failed | EndJob, out_for: float
    ) -> SinchError:
        """The error that is the outcome of an update. Raises what ends the job."""
        if isinstance(verdict, EndJob):
            ending = _after_outage(error, out_for) if verdict.after_outage else error
            if not verdict.update_failed:
                raise ending
            self._fail(ending)
        elif verdict.api_answers:
            self._api_answers()
        elif verdict.api_is_out:
            self._api_is_out(trial, error)
        return error

    def _evidence(self, trial: _Trial, error: SinchError) -> Evidence:
        """What is known of an update that has just failed."""
        api, call = self._api, trial.call
        api.failing.add(trial.key)
        evidence = Evidence(
            error=error,
            failure=call.failure,
            policy=self._sender.policy,
            safe=call.operation.safe,
            attempts=call.attempts,
            latest=call.attempts - trial.attempts,
            reached=call.maybe_sent,
            rounds=trial.rounds,
            alone=len(self._held) == 1 and len(api.failing) == 1,
            others_succeed=(
                call.failed_since is not None and api.newest_success > call.failed_since
            )
            or (trial.answers_before is not None and api.answers > trial.answers_before),
            only_failing_left=not self._reading
            and not self._stopped
            and api.failing.issuperset(self._held),
            ever_answered=api.answers > 0,
            in_outage=self.in_outage,
            failed_in_a_row=len(api.failing),
            out_for=api.out_for(self._sender.now(), failing_since=trial.failing_since),
            max_outage=api.max_outage,
        )
        if evidence.answered or evidence.spent:
            return evidence
        api.retries.record(trial.retries, succeeded=False)
        return attrs.evolve(evidence, retries_help=api.retries.share)

    # Outages

    def _api_answers(self) -> None:
        self._api.answered(self._sender.now())
        self._end_outage()

    def _api_is_out(self, trial: _Trial, error: SinchError) -> None:
        outage = self._api.out(
            error,
            self._sender.now(),
            failing_since=trial.failing_since,
            max_retry_after=self._sender.policy.max_retry_after,
        )
        if self._probes is None:
            self._probes = _Probes(outage, error)
            project_id = self._sender.project_id
            self._sender.project.outages += 1
            log(
                WARNING,
                "a job waits for the API: %s",
                str(error),  # a record that is kept would keep the frames of the error too
                project_id=project_id,
                error=type(error).__name__,
            )
        self._probes.error = error

    def _end_outage(self) -> None:
        probes, self._probes = self._probes, None
        if probes is not None:
            probes.end()
            seconds = self._sender.now() - probes.outage.began
            project_id = self._sender.project_id
            self._sender.project.outages -= 1
            log(
                INFO,
                "a job no longer waits for the API, after %.0f s",
                seconds,
                project_id=project_id,
                seconds=seconds,
            )

    async def _may_send(self) -> _Probes | None:
        """Wait while the API is out. For a probe, return whom to tell its end."""
        while (probes := self._probes) is not None:
            with self._parking():
                await probes.wait()
                if not probes.over:
                    await probes.wait(probes.outage.next_probe_in(self._sender.now()))
            if not probes.over:
                return probes
        return None

    async def _pause(self, delay: float) -> None:
        with self._parking():
            await asyncio.sleep(delay)

    @contextlib.contextmanager
    def _parking(self) -> Generator[None]:
        """Where a task may wait for long: ``stop_reading`` cancels it, and it has no outcome."""
        this = asyncio.current_task()
        assert this is not None  # a coroutine of the job runs in a task of the job
        if self._stopped:
            raise asyncio.CancelledError
        self._parked.add(this)
        try:
            yield
        finally:
            self._parked.discard(this)


async def _until_closed(
    loop: asyncio.AbstractEventLoop, run: Callable[..., Coroutine[Any, Any, None]], *given: Any
) -> None:
    """Run a task of the job.

    If its event loop is closed under it, the garbage collector ends it with GeneratorExit. Whatever
    then still needs the loop, such as a queue that the input waits at, fails; nobody is there to be
    told, and Python would print it.
    """
    try:
        await run(*given)
    except BaseException:
        if not loop.is_closed():
            raise


@attrs.define(eq=False)
class _Trial:
    """One call of a job, as far as it has come.

    ``rounds``: further rounds that it was given. ``answers_before``: answers that the job had had
    when the call began to wait for the API. ``began``, ``attempts``: when its latest round began,
    and the attempts before it.
    """

    call: Call[ConversationMessage]
    key: Hashable
    rounds: int = 0
    answers_before: int | None = None
    began: float = 0.0
    attempts: int = 0

    @property
    def retries(self) -> int:
        """Attempts of the latest round, without the call's first."""
        return self.call.attempts - max(self.attempts, 1)

    @property
    def failing_since(self) -> float:
        """When the call first failed."""
        return self.began if self.call.failed_since is None else self.call.failed_since


def _after_outage(error: SinchError, seconds: float) -> SinchError:
    """What ends a job after an outage: a copy, because an outcome may have the error as well."""
    ending = copy.copy(error)
    ending.add_note(
        f"The API has taken no update for {seconds:.0f} s, so the job has ended. {TO_GO_ON}"
    )
    return ending
