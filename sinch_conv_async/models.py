"""What the API sends and what a bulk job takes, as frozen values.

Nothing here knows JSON or HTTP: turning answers into these is ``_convert``'s business.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs

from .enums import Channel, Direction, MessagesSource, ProcessingMode
from .errors import SinchError

__all__ = [
    "ChannelIdentity",
    "ConversationMessage",
    "MetadataUpdate",
    "NotUpdated",
    "Unchanged",
    "UpdateOutcome",
    "Updated",
]


def _extra() -> Any:
    # Left out of hash (a dict has none) and of repr (app_message and contact_message are message contents).
    return attrs.field(factory=dict, hash=False, repr=False)


@attrs.frozen
class ChannelIdentity:
    """Who the recipient is on one channel.

    ``identity`` is a phone number on SMS, WhatsApp and Viber, something else elsewhere. ``app_id`` is set on
    app-scoped channels (Messenger, Instagram, LINE, WeChat). A channel that :class:`Channel` does not
    list is its text. ``extra`` holds the fields that the specification does not name.
    """

    identity: str | None = None
    channel: Channel | str | None = None
    app_id: str | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen
class ConversationMessage:
    """A message as the API answers it after an update; every field may be missing, and is ``None`` then.

    ``accept_time`` is an aware :class:`~datetime.datetime` (nanoseconds are cut to microseconds).
    ``metadata`` is at most 1,024 characters. ``direction``, ``processing_mode`` and the channel are enum
    members, or plain text where the enum does not know the word. ``sender_id`` is the recipient of a contact message, on
    channels that support it. Fields that the specification does not name (``app_message``,
    ``contact_message`` and whatever comes) are in ``extra`` as they came.

    Source: *Update message metadata*, fields of the 200 answer.
    """

    id: str | None = None
    accept_time: datetime.datetime | None = None
    channel_identity: ChannelIdentity | None = None
    contact_id: str | None = None
    conversation_id: str | None = None
    direction: Direction | str | None = None
    metadata: str | None = attrs.field(default=None, repr=False)
    injected: bool | None = None
    sender_id: str | None = None
    processing_mode: ProcessingMode | str | None = None
    extra: Mapping[str, Any] = _extra()


@attrs.frozen
class MetadataUpdate:
    """One update for :meth:`ConversationClient.update_many`.

    The values are checked when the update is sent, so that one bad row is one failed outcome.
    """

    message_id: str
    metadata: str = attrs.field(repr=False)
    messages_source: MessagesSource | str | None = None


@attrs.frozen
class Updated:
    """The outcome of an update that was applied: ``message`` as the API answers it.

    ``attempts`` counts the HTTP exchanges that it took.
    """

    update: MetadataUpdate
    message: ConversationMessage
    error: None = None
    attempts: int = 0
    ok: ClassVar[Literal[True]] = True


@attrs.frozen
class NotUpdated:
    """The outcome of an update that failed, and why: ``error``.

    ``attempts`` counts the HTTP exchanges that were made; 0 means that nothing was sent.
    """

    update: MetadataUpdate
    message: None = None
    error: SinchError = attrs.field(kw_only=True)
    attempts: int = 0
    ok: ClassVar[Literal[False]] = False


@attrs.frozen
class Unchanged:
    """The outcome of a message that was read and needed no update: ``message`` as it was read.

    ``update`` holds the metadata that the message has. ``attempts`` counts the HTTP exchanges of the read.
    """

    update: MetadataUpdate
    message: ConversationMessage
    error: None = None
    attempts: int = 0
    ok: ClassVar[Literal[True]] = True


UpdateOutcome = Updated | NotUpdated | Unchanged
"""How one update of a bulk job ended. ``outcome.ok`` tells which: type checkers narrow by it."""
