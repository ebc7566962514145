"""The messages that the sandbox knows, and their JSON; what an update may hold."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final, cast

import attrs

from .responses import JSON, Response, invalid, is_unicode, media_type

__all__ = ["SandboxMessage", "message_fields", "read_metadata"]

# "Up to 1024 characters long", the specification says of the response's field.
_MAX_METADATA: Final = 1024


@attrs.define(eq=False, kw_only=True)
class SandboxMessage:
    """A message that the sandbox knows; change its attributes at will, the next answer shows them.

    The attributes are the fields of the API's answer. ``direction`` decides whether the answer carries an
    ``app_message`` (``TO_CONTACT``) or a ``contact_message`` (anything else), with ``text`` in it.

    ``extra`` is laid over the answer's fields as it is, to add some or to give them odd values;
    the fields named in ``omit`` are left out. ``updates`` counts how often the metadata was written.
    """

    id: str
    metadata: str = attrs.field(default="", repr=False)
    project_id: str
    accept_time: str
    channel: str = "SMS"
    identity: str = attrs.field(default="12025550123", repr=False)
    app_id: str = attrs.field(default="", repr=False)
    contact_id: str = attrs.field(default="01SANDBOXCONTACT0000000001", repr=False)
    conversation_id: str = attrs.field(default="01SANDBOXCONVERSATION00001", repr=False)
    direction: str = "TO_CONTACT"
    injected: bool = attrs.field(default=False, repr=False)
    sender_id: str = attrs.field(default="", repr=False)
    processing_mode: str = "CONVERSATION"
    text: str = attrs.field(default="Your parcel is on its way.", repr=False)
    extra: dict[str, Any] = attrs.field(factory=dict[str, Any], repr=False)
    omit: Collection[str] = attrs.field(default=(), repr=False)
    updates: int = 0


def message_fields(message: SandboxMessage, metadata: str | None) -> dict[str, Any]:
    """A message as the API answers with it. Metadata of None is left out."""
    kind = "app_message" if message.direction == "TO_CONTACT" else "contact_message"
    fields: dict[str, Any] = {
        "id": message.id,
        "accept_time": message.accept_time,
        "channel_identity": {
            "identity": message.identity,
            "channel": message.channel,
            "app_id": message.app_id,
        },
        "contact_id": message.contact_id,
        "conversation_id": message.conversation_id,
        "direction": message.direction,
        "metadata": metadata,
        "injected": message.injected,
        "sender_id": message.sender_id,
        "processing_mode": message.processing_mode,
        kind: {"text_message": {"text": message.text}},
    }
    if message.extra:
        fields.update(message.extra)
    if metadata is None:
        fields.pop("metadata")
    for name in message.omit:
        fields.pop(name, None)
    return fields


def read_metadata(content_type: str | None, body: bytes) -> tuple[str | None, Response | None]:
    """The metadata in an update's body, if it holds text of that name, and the 400 for a body that is not valid."""
    if content_type != JSON and media_type(content_type) != JSON:
        return None, invalid("body", "Content-Type must be application/json.")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None, invalid("body", "Not JSON.")
    metadata: Any = cast("dict[str, Any]", fields).get("metadata") if isinstance(fields, dict) else None
    if not isinstance(metadata, str):
        return None, invalid("metadata", "Field is required, and is text.")
    if len(metadata) > _MAX_METADATA:
        return metadata, invalid("metadata", f"At most {_MAX_METADATA} characters.")
    if not is_unicode(metadata):
        return metadata, invalid("metadata", "Not Unicode text.")
    return metadata, None
