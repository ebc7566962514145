"""Many updates as one job: a stream of items in, a stream of outcomes out.

The user holds a :class:`BulkUpdate`. The tasks belong to a ``Job`` (``_bulk/job.py``), which has no
reference to the :class:`BulkUpdate`. So if the user deletes the last reference to the
:class:`BulkUpdate`, Python frees it at once, and its ``__del__`` ends the job.

- A job holds ``concurrency`` items at most. A held item is in one of three states: it is under way;
  it waits behind an earlier item of the same message; or it has an outcome that was not read yet.
  When a reader asks for the next outcome, the job may read another item (``_bulk/outcomes.py``).
- One task reads the input, and one task works on each message that is under way. Items of one
  message keep their order (``_bulk/job.py``).
- Each item becomes one outcome (``_bulk/items.py``). An update is one call; a transformation is a
  read, the user's function, and perhaps an update.
- While the API may be out, the job gives up no failed call. These calls wait, and one call at a
  time probes the API (``_bulk/rounds.py``). ``judge`` in ``_bulk/outage.py`` decides what follows
  from each failure.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from ._bulk.input import Input
from ._bulk.items import Change, Messages, SendUpdates, Transform, TransformMessages, Updates
from ._bulk.job import Job
from ._bulk.rounds import TO_GO_ON
from ._core.send import Sender
from .enums import MessagesSource
from .errors import InvalidArgumentError, SinchError
from .models import UpdateOutcome

__all__ = [
    "MAX_OUTAGE",
    "TO_GO_ON",
    "BulkUpdate",
    "Change",
    "Messages",
    "Transform",
    "Updates",
    "transform_many",
    "update_many",
]

MAX_OUTAGE: Final = 900.0
"""By default, a job waits so many seconds for the end of an outage."""


class BulkUpdate:
    """The outcomes of a bulk job, one for each item of its input, in order of completion.

    It is an asynchronous iterator. It is also an asynchronous context manager: at the end of the
    block the job ends. :meth:`ConversationClient.update_many` and
    :meth:`~ConversationClient.transform_many` make it. Nothing is read or sent before the first
    outcome is requested.

    A failed update is an outcome and not an exception. An error that ends the whole job is raised
    after the last outcome: a refused key (:class:`TokenError`), a final 401
    (:class:`AuthenticationError`), a closed client (:class:`ClientStateError`), an outage longer
    than ``max_outage`` (the last error of the outage), or an exception of the input. Updates of the
    same message id keep their order. The client's ``timeout`` applies to single calls only; an
    update of a job may wait for its turn without a bound.

    The job owns its input. If the input is a generator, or has an ``aclose`` method, the job closes
    the input when it stops reading, and waits until the input is closed. Several tasks may read the
    outcomes of one job: each outcome goes to one task, and only one task gets the error that ends
    the job. If your program has no reference to a job any more, the job ends, as after
    :meth:`aclose`.
    """

    def __init__(self, job: Job) -> None:
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
        """Whether the job waits for the end of an outage."""
        return self._job.in_outage

    @property
    def outage_error(self) -> SinchError | None:
        """The last error while :attr:`in_outage`; ``None`` otherwise."""
        return self._job.outage_error

    def stop_reading(self) -> None:
        """Stop reading the input. You still get the outcomes of the updates under way.

        An update that waits for the end of an outage, or between two rounds of retries, gets no
        outcome, because that wait may be long.
        """
        self._job.stop_reading()

    async def aclose(self) -> None:
        """End the job now. Closing twice is fine.

        The job cancels the updates under way; the API may have applied some of them. The method
        returns when the input is closed. If closing the input raises an exception, the method
        raises it.
        """
        await self._job.aclose()


def update_many(
    sender: Sender,
    updates: Updates,
    *,
    concurrency: int,
    max_outage: float,
    may_send: Callable[[], bool] | None,
) -> BulkUpdate:
    """The job of :meth:`ConversationClient.update_many`; ``max_outage`` may be infinite."""
    source = Input("updates", updates)
    return BulkUpdate(Job(sender, source, SendUpdates(sender), concurrency, max_outage, may_send))


def transform_many(
    sender: Sender,
    messages: Messages,
    transform: Transform,
    *,
    messages_source: MessagesSource | str | None,
    concurrency: int,
    max_outage: float,
    may_send: Callable[[], bool] | None,
) -> BulkUpdate:
    """The job of :meth:`ConversationClient.transform_many`; ``max_outage`` may be infinite."""
    if isinstance(messages, str):
        raise InvalidArgumentError("messages must be an iterable of message ids, not one text")
    if not callable(transform):
        raise InvalidArgumentError("transform must be a function of a message")
    source = Input("messages", messages)
    work = TransformMessages(sender, transform, messages_source)
    return BulkUpdate(Job(sender, source, work, concurrency, max_outage, may_send))
