"""Many updates as one job: a stream of updates in, a stream of outcomes out.

A job holds ``concurrency`` updates at most, however long its input is: under way, behind an earlier update of the same id, or finished and
not yet read. A place becomes free when whoever reads the outcomes comes back for the next one, so nothing is sent that nobody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Generator, Hashable, Iterable
from types import TracebackType
from typing import Final, Self

from ._core.retry import RetryYield
from ._core.send import Call, Sender
from .errors import (
    ApiError,
    AuthenticationError,
    ClientStateError,
    InvalidArgumentError,
    ResponseFormatError,
    SinchError,
    TokenError,
)
from .models import MetadataUpdate, NotUpdated, Updated, UpdateOutcome

__all__ = ["BulkUpdate", "Updates"]

Pair = tuple[str, str] | list[str]
"""Message id and metadata; a list, such as a CSV reader's rows are, has two items."""

Updates = Iterable[MetadataUpdate | Pair] | AsyncIterable[MetadataUpdate | Pair]
"""What :meth:`ConversationClient.update_many` takes: updates, or pairs of message id and metadata."""

MAX_OUTAGE: Final = 900.0
"""Seconds that a job waits for the API to come back, unless told otherwise."""

PROBE_DELAYS: Final = (0.5, 1.0, 2.0, 4.0, 5.0)
"""Seconds before each probe of an outage, the last one for all that follow: some 180 requests in 900 s, where a working job sends 720,000."""

TO_GO_ON: Final = "Updates that have no outcome can be given to a new job."
"""What is left to do after an outage that did not end."""

FURTHER_ROUNDS: Final = 4
"""How often an update that has used up its retries is given as many again, where those of other updates succeed."""

WORTHWHILE: Final = 0.1
"""The least share of retries that must succeed for that."""

IN_A_ROW: Final = 10
"""Updates that fail one after the other, and are not sent again: so many say that it is the API that is out."""


class _Outage:
    """A time in which nothing gets through. One update at a time probes, the others wait for their turn to, or for the end."""

    def __init__(self, began: float, ends: float) -> None:
        self.began = began
        self.ends = ends
        self.probes = 0
        self.probing = False
        self.not_before = began
        self.waiting: deque[asyncio.Future[None]] = deque()

    def delay(self, now: float) -> float:
        """Seconds until the next probe: as long as the API asks for. The last one is made when the job gives up."""
        self.probes += 1
        delay = PROBE_DELAYS[min(self.probes, len(PROBE_DELAYS)) - 1]
        return max(min(max(now + delay, self.not_before), self.ends) - now, 0.0)

    def next_probe(self) -> None:
        """Passes the turn to probe on to whoever has waited longest."""
        self.probing = False
        while self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                self.probing = True
                future.set_result(None)
                return

    def over(self) -> None:
        for future in self.waiting:
            if not future.done():
                future.set_result(None)


class BulkUpdate:
    """The outcomes of a bulk job, one for each update, in order of completion.

    An asynchronous iterator, and an asynchronous context manager that leaves nothing running. Made by
    :meth:`ConversationClient.update_many`; nothing is read or sent before the first outcome is asked for.

    An update that fails is an outcome. What ends the whole job is raised, after the outcomes that were finished: a refused key
    (:class:`TokenError`), a final 401 (:class:`AuthenticationError`), a closed client (:class:`ClientStateError`), an outage longer than
    ``max_outage`` (its last error), and whatever the input raises. Two updates of one id keep their order. The client's ``timeout`` is for
    single calls: an update of a job waits for its turn as long as that takes.
    """

    def __init__(
        self,
        member: Sender,
        updates: Updates,
        *,
        concurrency: int,
        max_outage: float,
    ) -> None:
        self._member = member
        self._input: AsyncIterator[MetadataUpdate | Pair]
        if isinstance(updates, AsyncIterable):
            self._input = aiter(updates)
        elif isinstance(updates, Iterable):
            self._input = _OneByOne(updates)
        else:
            raise InvalidArgumentError(
                f"updates must be an iterable or asynchronous iterable, not {type(updates).__name__}"
            )
        self._concurrency = concurrency
        self._max_outage = max_outage
        self._workers: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(concurrency)
        self._owed = 0  # places of outcomes that were handed out, free when their reader comes back
        self._reading = asyncio.Lock()
        self._readers = 0  # workers that want the next update
        # Workers that may be cancelled without an update getting lost.
        self._parked: set[asyncio.Task[None]] = set()
        self._behind: dict[Hashable, deque[MetadataUpdate]] = {}  # by id: what waits for an earlier update
        self._finished: deque[UpdateOutcome] = deque()
        self._news = asyncio.Event()
        self._no_more = False  # nothing is read any more
        self._stopped = False  # nor is an outage waited out
        self._error: BaseException | None = None
        self._client_closed: asyncio.Future[None] | None = None
        self._answers = 0
        self._answered_at = -math.inf
        self._newest_success = -math.inf  # when the newest of the updates that were applied set out
        self._failing: set[Hashable] = set()  # ids that failed since the last success
        self._outage: _Outage | None = None
        self._yield = RetryYield()  # whether retries help

    def __repr__(self) -> str:
        state = (
            "reading" if self._workers and not self._no_more else "finishing" if self._workers else "at rest"
        )
        outage = ", outage" if self._outage is not None else ""
        return f"<BulkUpdate {state}: {len(self._behind)} held, {len(self._finished)} unread{outage}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> UpdateOutcome:
        if self._client_closed is None:
            self._start()
        elif self._client_closed.get_loop() is not asyncio.get_running_loop():
            raise ClientStateError("this bulk job belongs to another event loop")
        for _ in range(self._owed):
            self._places.release()
        self._owed = 0
        while not self._finished:
            if not self._workers:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._owed += 1
        return self._finished.popleft()

    @property
    def in_outage(self) -> bool:
        """Whether the job waits for the API to come back."""
        return self._outage is not None

    def stop_reading(self) -> None:
        """Takes no more of the input. The outcomes of what is under way still come, then the iteration ends.

        An update that waits for the end of an outage, or between two rounds of retries, gets no outcome: it would take as long.
        """
        self._no_more = self._stopped = True
        for worker in self._parked:
            worker.cancel()

    async def aclose(self) -> None:
        """Ends the job now: what is under way is cancelled, and may or may not have been applied. Closing twice is fine."""
        self._no_more = self._stopped = True
        self._error = None
        self._finished.clear()
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)
        self._end()

    def _start(self) -> None:
        closed = self._client_closed = asyncio.get_running_loop().create_future()
        if self._no_more:
            return
        self._member.bound()  # first: a member that comes to another event loop gets calls of its own there
        lifetime = self._member.lifetime
        # Entered among what the client's calls wait for, so that closing the client ends a job that waits for its input too.
        lifetime.waiting.add(closed)
        closed.add_done_callback(self._client_has_closed)
        self._hire()

    def _client_has_closed(self, closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            self._fail(closed.exception())

    def _end(self) -> None:
        if self._client_closed is not None:
            self._member.lifetime.waiting.discard(self._client_closed)
            self._client_closed.cancel()
        self._behind.clear()
        self._outage = None
        # An input that nobody else holds is closed by this, as far as it can be; one that somebody does is theirs.
        self._input = _OneByOne(())
        self._news.set()

    def _fail(self, error: BaseException | None) -> None:
        """Ends the job with an error: what is under way still gets its outcome."""
        self._error = self._error or error
        self.stop_reading()

    def _hire(self) -> None:
        worker = asyncio.get_running_loop().create_task(self._work(), name="sinch_conv_async bulk worker")
        self._workers.add(worker)
        worker.add_done_callback(self._retire)

    def _retire(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        self._parked.discard(worker)
        if not worker.cancelled():
            if worker.exception() is not None:
                self._fail(worker.exception())
        elif not self._stopped:
            # Not by us: the input raised it, which must not look like the input's end, or whatever runs is being cancelled.
            self._fail(asyncio.CancelledError("the bulk job was cancelled"))
        if not self._workers:
            self._end()

    async def _work(self) -> None:
        """One worker: reads an update, sends it, hands in the outcome, and goes on while there are any."""
        while (update := await self._read()) is not None:
            key = _key(update)
            while True:
                outcome = await self._outcome(update)
                if outcome.error is not None:
                    # Nobody raised it at the reader, and its frames hold the job.
                    outcome.error.__traceback__ = None
                self._finished.append(outcome)
                self._news.set()
                waiting = self._behind[key]
                if not waiting:
                    break
                update = waiting.popleft()
            del self._behind[key]

    async def _read(self) -> MetadataUpdate | None:
        """The next update that need not wait for an earlier one, once there is a place for it."""
        this = asyncio.current_task()
        assert this is not None  # workers are tasks
        self._parked.add(this)
        self._readers += 1
        try:
            async with self._reading:
                update = await self._next()
        finally:
            self._parked.discard(this)
            self._readers -= 1
        # Only now, and not when this worker ends with an error or is cancelled: nobody would wait for the new one then. And in a turn of its
        # own: an eager task would read, and hire the next, before it is known to be there.
        if not self._readers:
            asyncio.get_running_loop().call_soon(self._hire_another)
        return update

    def _hire_another(self) -> None:
        if not self._readers and not self._no_more and len(self._workers) < self._concurrency:
            self._hire()

    async def _next(self) -> MetadataUpdate | None:
        while not self._no_more:
            await self._places.acquire()
            try:
                update = _as_update(await anext(self._input))
            except StopAsyncIteration:
                break
            except BaseException:
                self._no_more = True  # before the next worker's turn to read
                raise
            if self._no_more:
                break  # the input took no notice of being cancelled
            waiting = self._behind.get(_key(update))
            if waiting is None:
                self._behind[_key(update)] = deque()
                return update
            waiting.append(update)
        self._no_more = True
        return None

    async def _outcome(self, update: MetadataUpdate) -> UpdateOutcome:
        """Sends one update. Waits out an outage, raises what ends the job, and returns all else."""
        member, policy = self._member, self._member.policy
        try:
            request = member.request(update.message_id, update.metadata, update.messages_source)
        except InvalidArgumentError as refused:
            return NotUpdated(update, error=refused)
        call = Call(request)
        rounds = 0
        parked_at: int | None = None
        error: SinchError
        while True:
            probing = False
            while self._outage is not None and not probing:
                probing = await self._wait_out(self._outage)
            # A probe is one exchange: whether there is another is decided here.
            call.retries = policy.max_retries if probing else 0
            call.replayed = False
            attempts = call.attempts
            outage = self._outage
            began = member.now()
            try:
                message = await member.send(call, timeout=None)
            except SinchError as caught:
                error = caught
            else:
                self._newest_success = max(self._newest_success, began)
                self._got_through()
                self._yield.record(call.attempts - max(attempts, 1), succeeded=True)
                return Updated(update, message=message, attempts=call.attempts)
            if _ends_job(error):
                raise error
            if probing and outage is not None:
                outage.next_probe()
            # What was not sent, for want of a token or of the server's leave, may be sent at any time.
            unsent = call.attempts == attempts or isinstance(error, TokenError)
            failure = call.failure
            may_pass = failure is not None and failure.retryable
            if not may_pass and not unsent and isinstance(error, ApiError | ResponseFormatError):
                self._got_through()
                return NotUpdated(update, error=error, attempts=call.attempts)
            self._failing.add(_key(update))
            failing_since = began if call.failed_since is None else call.failed_since
            again = failure is not None and policy.allows(failure) and policy.max_retries > 0
            if not unsent and not again:
                # It is not sent again. That others are not spent in the same way is for the outage to see to.
                out = self._outage is not None or len(self._failing) >= IN_A_ROW
                if out and self._lasted_too_long(error, failing_since):
                    self._fail(self._outage_error(error))
                return NotUpdated(update, error=error, attempts=call.attempts)
            self._yield.record(call.attempts - max(attempts, 1), succeeded=False)
            alone = len(self._behind) == 1 and len(self._failing) == 1
            # Not so when the project's retry budget was used up: then it has had less than its share. Nor is an update at fault that never got
            # as far as the API, for want of a connection.
            tried = call.attempts > policy.max_retries and (call.maybe_sent or alone)
            # An update that set out after this one had failed, or while this one waited for it, was applied.
            others_get_through = (
                call.failed_since is not None and self._newest_success > call.failed_since
            ) or (parked_at is not None and self._answers > parked_at)
            # In an outage nobody is given up, but where nobody is left who could end it, or who has had all rounds: such hold the places
            # of those who could.
            worn_out = call.attempts > FURTHER_ROUNDS * (1 + policy.max_retries)
            if (
                (self._outage is None or self._only_failing or worn_out)
                and tried
                and (alone or others_get_through)
            ):
                if worn_out or rounds == FURTHER_ROUNDS or self._yield.share < WORTHWHILE:
                    return NotUpdated(update, error=error, attempts=call.attempts)
                # Some of the service is out, and this update has met no other part of it.
                rounds += 1
                await self._pause(member.long_delay())
                continue
            # Whether it is this update or the API, the next one that gets through will tell; until then they wait for one.
            parked_at = self._answers
            if self._lasted_too_long(error, failing_since):
                if self._only_failing and self._answers:
                    # All that is left of a job that had answers are updates that fail: it may well be these that are at fault.
                    return NotUpdated(update, error=error, attempts=call.attempts)
                raise self._outage_error(error)

    # Outages

    @property
    def _only_failing(self) -> bool:
        """Whether the input has been read to its end, and all that is left has failed since the last that got through.

        Not so of a job that was stopped: what it leaves has no outcome.
        """
        return self._no_more and not self._stopped and self._failing.issuperset(self._behind)

    def _got_through(self) -> None:
        """The API answered: whatever outage there was is over."""
        self._answers += 1
        self._answered_at = self._member.now()
        self._failing.clear()
        outage, self._outage = self._outage, None
        if outage is not None:
            self._yield.outage_over()
            outage.over()

    def _lasted_too_long(self, error: SinchError, failing_since: float) -> bool:
        """The API is out: from now on one update at a time probes. Whether it has been so for longer than the job waits."""
        now = self._member.now()
        if self._outage is None:
            # It began when this update first failed, if not when the last answer came.
            began = max(failing_since, self._answered_at)
            self._outage = _Outage(began, began + self._max_outage)
        if now >= self._outage.ends:
            return True
        if isinstance(error, ApiError) and error.retry_after is not None:
            # A server that sends everybody away for a day may have changed its mind.
            self._outage.not_before = now + min(error.retry_after, self._member.policy.max_retry_after)
        return False

    def _outage_error(self, error: SinchError) -> SinchError:
        """What ends the job: another than an outcome's, which says nothing about the job."""
        assert self._outage is not None  # it has lasted too long
        lasted = self._member.now() - self._outage.began
        ending = copy.copy(error)
        ending.add_note(f"The API has taken no update for {lasted:.0f} s, so the job has ended. {TO_GO_ON}")
        return ending

    async def _wait_out(self, outage: _Outage) -> bool:
        """Waits until the outage is over (False), or for the turn to probe it (True)."""
        loop = asyncio.get_running_loop()
        with self._parking():
            turn = loop.create_future()
            outage.waiting.append(turn)
            if not outage.probing:
                outage.next_probe()
            await turn
            if self._outage is outage:
                # Also woken when a straggler gets through meanwhile.
                outage.waiting.append(pause := loop.create_future())
                await asyncio.wait([pause], timeout=outage.delay(self._member.now()))
                pause.cancel()  # done, it is passed over when the turn goes on
            return self._outage is outage

    async def _pause(self, delay: float) -> None:
        with self._parking():
            await asyncio.sleep(delay)

    @contextlib.contextmanager
    def _parking(self) -> Generator[None]:
        """Where a worker may wait for long: once the job is stopped it waits no more, and its update has no outcome."""
        this = asyncio.current_task()
        assert this is not None  # workers are tasks
        self._parked.add(this)
        try:
            if self._stopped:
                raise asyncio.CancelledError  # as those were cancelled who waited here at the time
            yield
        finally:
            self._parked.discard(this)


class _OneByOne(AsyncIterator[MetadataUpdate | Pair]):
    """A plain iterable as an asynchronous one; a generator would leave its own tidying up to the event loop."""

    def __init__(self, updates: Iterable[MetadataUpdate | Pair]) -> None:
        self._updates = iter(updates)

    async def __anext__(self) -> MetadataUpdate | Pair:
        try:
            return next(self._updates)
        except StopIteration:
            raise StopAsyncIteration from None
        except StopAsyncIteration as error:
            # It must not look like the input's end. Python does the same with StopIteration in a generator (PEP 479).
            raise RuntimeError("the input raised StopAsyncIteration") from error


def _as_update(item: object) -> MetadataUpdate:
    if isinstance(item, MetadataUpdate):
        return item
    what = type(item).__name__
    if isinstance(item, tuple | list):
        if len(item) == 2:
            return MetadataUpdate(*item)
        what = f"{what} of {len(item)}"
    raise InvalidArgumentError(
        f"an update is a MetadataUpdate or a pair of message id and metadata, not {what}"
    )


def _key(update: MetadataUpdate) -> Hashable:
    """What keeps updates of one message in order; an id that is no text is refused before it can matter."""
    return update.message_id if isinstance(update.message_id, str) else id(update)


def _ends_job(error: SinchError) -> bool:
    """Whether the next update would fail in the same way."""
    if isinstance(error, TokenError):
        return error.refused
    return isinstance(error, AuthenticationError | ClientStateError)
