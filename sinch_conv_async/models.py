"""The API's answers and the items of a bulk job, as frozen values.

This file knows neither JSON nor HTTP: ``_wire/structure.py`` makes the models of the API's answers.
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
    "MessagePage",
    "MetadataUpdate",
    "NotUpdated",
    "Unchanged",
    "UpdateOutcome",
    "Updated",
]


def _extra() -> Any:
    # Not part of the hash (a dict has none) nor of the repr (app_message and contact_message are
    # message contents).
    return attrs.field(factory=dict, hash=False, repr=False)


@attrs.frozen
class ChannelIdentity:
    """The recipient on one channel.

    ``identity`` is a phone number on SMS, WhatsApp and Viber, and another id on other channels.
    ``app_id`` is set on app-scoped channels (Messenger, Instagram, LINE, WeChat). ``channel`` is
    plain text if :class:`Channel` does not list it. ``extra`` holds the fields that the
    specification does not name.
    """

    identity: str | None = None
    channel: Channel | str | None = None
    app_id: str | None = None
    extra: Mapping[str, Any] = _extra()


class _TimeText:
    """Keeps the text that ``accept_time`` was read from, for ``to_dict``.

    It is not part of the value.
    """

    __slots__ = ("accept_time_text",)


@attrs.frozen
class ConversationMessage(_TimeText):
    """A message as the API answers it. The attribute of a missing field is ``None``.

    ``accept_time`` is an aware :class:`~datetime.datetime`. It is ``None`` if the API's text is
    empty or not a timestamp. ``extra["accept_time"]`` has the text if it is not a timestamp, or if
    it is finer than microseconds. ``metadata`` has at most 1,024 characters. ``direction``,
    ``processing_mode`` and the channel are enum members, or plain text if the enum does not list
    the word. ``sender_id`` is the recipient of a contact message, on channels that support it.
    Fields that the specification does not name (``app_message``, ``contact_message``, new ones) are
    unchanged in ``extra``.

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

    # attrs would copy only the fields, and a copy would lose the text of accept_time.
    def __getstate__(self) -> dict[str, Any]:
        names = [field.name for field in attrs.fields(ConversationMessage)]
        return {
            name: getattr(self, name)
            for name in (*names, "accept_time_text")
            if hasattr(self, name)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)


@attrs.frozen
class MessagePage:
    """One page of the list.

    ``next_page_token`` names the next page; ``None`` or empty on the last page.
    """

    messages: tuple[ConversationMessage, ...] = ()
    next_page_token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen
class MetadataUpdate:
    """One update for :meth:`ConversationClient.update_many`.

    The values are checked when the update is sent, so that one bad row is one failed outcome.
    ``metadata`` is ``None`` only in an outcome of ``transform_many`` whose message could not be
    read.
    """

    message_id: str
    metadata: str | None = attrs.field(repr=False)
    messages_source: MessagesSource | str | None = None


@attrs.frozen
class _Done:
    """The attributes of the outcomes that are ``ok``."""

    update: MetadataUpdate
    message: ConversationMessage
    error: None = None
    attempts: int = 0
    ok: ClassVar[Literal[True]] = True


class Updated(_Done):
    """The outcome of an update that was applied: ``message`` as the API answers it.

    ``attempts`` counts the HTTP exchanges that it took.
    """

    __slots__ = ()


@attrs.frozen
class NotUpdated:
    """The outcome of a failed update: ``error`` says why.

    ``attempts`` counts the HTTP exchanges that were made; 0 means that nothing was sent.
    """

    update: MetadataUpdate
    message: None = None
    error: SinchError = attrs.field(kw_only=True)
    attempts: int = 0
    ok: ClassVar[Literal[False]] = False


class Unchanged(_Done):
    """The outcome of a message that was read and needed no update: ``message`` as it was read.

    ``update`` holds the metadata that the message has. ``attempts`` counts the HTTP exchanges of
    the read.
    """

    __slots__ = ()


UpdateOutcome = Updated | NotUpdated | Unchanged
"""How one update of a bulk job ended. ``outcome.ok`` tells which: type checkers narrow by it."""
