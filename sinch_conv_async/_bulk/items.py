"""What a job does for each item of its input.

An update sends one call (:class:`SendUpdates`). A transformation reads the message, calls the
user's function, and sends an update if the metadata changes (:class:`TransformMessages`).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Hashable, Iterable
from typing import Any, Protocol, runtime_checkable

import attrs

from .._core.send import Call, Sender
from .._wire.operations import CheckedUpdate, GetMessage, UpdateMetadata
from ..enums import MessagesSource
from ..errors import InvalidArgumentError, SinchError
from ..models import (
    ConversationMessage,
    MetadataUpdate,
    NotUpdated,
    Unchanged,
    Updated,
    UpdateOutcome,
)

__all__ = ["Change", "Messages", "SendUpdates", "Transform", "TransformMessages", "Updates", "Work"]

Pair = tuple[str, str] | list[str]
"""Message id and metadata. A list of two is allowed, because a CSV reader gives lists."""

Updates = (
    Iterable[MetadataUpdate | Pair | ConversationMessage]
    | AsyncIterable[MetadataUpdate | Pair | ConversationMessage]
)
"""What ``update_many`` takes: updates, pairs of message id and metadata, or messages, whose
metadata is written as it is."""


@runtime_checkable
class Change(Protocol):
    """A :class:`~sinch_conv_async.MetadataUpdate` that computes its metadata from the message.

    The outcome's ``update`` is this object.
    """

    def changed(self, message: ConversationMessage) -> str | None:
        """The new metadata, or ``None`` for no change.

        Raises InvalidArgumentError if the change is impossible.
        """
        ...


Messages = (
    Iterable[str | ConversationMessage | Change] | AsyncIterable[str | ConversationMessage | Change]
)
"""What ``transform_many`` takes: message ids, or messages as they were read."""

Transform = Callable[[ConversationMessage], str | Awaitable[str | None] | None]
"""A plain or asynchronous function: the new metadata of a message, or ``None`` to leave it."""

Send = Callable[[Call[ConversationMessage], Hashable], Awaitable[ConversationMessage | SinchError]]
"""Sends a call for the item of this key: the result, or the error that is the outcome."""


class Work(Protocol):
    """What a job does for each item of its input."""

    def item(self, given: object) -> Any:
        """Make an item of an object of the input, or raise InvalidArgumentError."""
        ...

    def key(self, item: Any) -> Hashable:
        """Items with one key are for one message, and keep their order."""
        ...

    async def outcome(self, item: Any, send: Send) -> UpdateOutcome:
        """Do the work for the item, and return its outcome."""
        ...


class SendUpdates:
    """Each item is an update, which is sent."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def item(self, given: object) -> MetadataUpdate:
        if isinstance(given, MetadataUpdate):
            return given
        if isinstance(given, ConversationMessage):
            return MetadataUpdate(given.id or "", given.metadata)
        what = type(given).__name__
        if isinstance(given, tuple | list):
            if len(given) == 2:
                return MetadataUpdate(*given)
            what = f"{what} of {len(given)}"
        raise InvalidArgumentError(
            "must be a MetadataUpdate, a pair of message id and metadata, or a "
            f"ConversationMessage, not {what}"
        )

    def key(self, item: MetadataUpdate) -> Hashable:
        return _key(item.message_id)

    async def outcome(self, item: MetadataUpdate, send: Send) -> UpdateOutcome:
        return await _updated(self._sender, item, send)


@attrs.frozen
class _Message:
    """An item of a transformation: the update so far, and the message if it was read.

    ``change``: the function that computes the new metadata of this message.
    """

    update: MetadataUpdate
    read: ConversationMessage | None
    change: Transform


class TransformMessages:
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

    async def outcome(self, item: _Message, send: Send) -> UpdateOutcome:
        update, message = item.update, item.read
        attempts = 0
        try:
            operation = _read(self._sender, update)
            if message is None:
                read = Call(operation)
                result = await send(read, self.key(item))
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
        update = attrs.evolve(update, metadata=metadata)
        return await _updated(self._sender, update, send, attempts=attempts)


async def _changed(change: Transform, message: ConversationMessage) -> str | None:
    """The new metadata. InvalidArgumentError is an outcome; another error ends the job."""
    try:
        metadata = change(message)
        if inspect.isawaitable(metadata):
            metadata = await metadata
    except StopAsyncIteration as error:
        # This must not look like the end of the job.
        raise RuntimeError("transform raised StopAsyncIteration") from error
    if metadata is None or isinstance(metadata, str):
        return metadata
    what = type(metadata).__name__
    raise TypeError(f"transform must return the metadata as text, or None, not {what}")


async def _updated(
    sender: Sender, update: MetadataUpdate, send: Send, *, attempts: int = 0
) -> Updated | NotUpdated:
    """The outcome of an update, after so many attempts to read the message."""
    try:
        call = Call(_update(sender, update))
    except InvalidArgumentError as refused:
        return NotUpdated(update, error=refused, attempts=attempts)
    result = await send(call, _key(update.message_id))
    attempts += call.attempts
    if isinstance(result, SinchError):
        return NotUpdated(update, error=result, attempts=attempts)
    return Updated(update, message=result, attempts=attempts)


def _read(sender: Sender, update: MetadataUpdate) -> GetMessage:
    """The operation that reads the message of an update, or InvalidArgumentError."""
    origin, path = sender.origin, sender.path
    if isinstance(update, CheckedUpdate):
        return update.read(origin, path)
    return GetMessage.of(origin, path, update.message_id, update.messages_source)


def _update(sender: Sender, update: MetadataUpdate) -> UpdateMetadata:
    """The operation that sends an update, or InvalidArgumentError."""
    if isinstance(update, CheckedUpdate):
        return update.update(sender.origin, sender.path)
    return sender.update(update.message_id, update.metadata, update.messages_source)


def _key(message_id: object) -> Hashable:
    """Upper and lower case of an id mean the same.

    An id that is not text is refused when it is sent.
    """
    return message_id.lower() if isinstance(message_id, str) else id(message_id)
