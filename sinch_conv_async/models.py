"""What the API sends and what a bulk job takes, as frozen values.

Nothing here knows JSON or HTTP: turning answers into these is ``_convert``'s business.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import attrs

from .enums import Channel, Direction, MessagesSource, ProcessingMode
from .errors import SinchError

__all__ = ["ChannelIdentity", "ConversationMessage", "MetadataUpdate", "UpdateOutcome"]


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
class UpdateOutcome:
    """How one update of a bulk job ended: ``message`` when it was applied, ``error`` when not.

    ``attempts`` counts the HTTP exchanges that it took; 0 means that nothing was sent.
    """

    update: MetadataUpdate
    message: ConversationMessage | None = None
    error: SinchError | None = None
    attempts: int = 0

    @property
    def ok(self) -> bool:
        """Whether the update was applied."""
        return self.error is None
