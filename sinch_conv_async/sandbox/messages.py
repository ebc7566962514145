"""The messages that the sandbox knows, their JSON, a file of them, and what an update may hold."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack, cast

import attrs

from .responses import JSON, Response, invalid, is_unicode, media_type, timestamp
from .thread import on_its_loop
from .tokens import Access

__all__ = [
    "MessageAttributes",
    "Messages",
    "SandboxMessage",
    "attributes_of",
    "message_fields",
    "read_metadata",
]

# "Up to 1024 characters long", the specification says of the response's field.
_MAX_METADATA: Final = 1024


@attrs.define(eq=False, kw_only=True)
class SandboxMessage:
    """A message that the sandbox knows. You may change its attributes; the next answer shows them.

    The attributes are the fields of the API's answer. ``direction`` decides whether the answer
    carries an ``app_message`` (``TO_CONTACT``) or a ``contact_message`` (anything else), with
    ``text`` in it.

    ``extra`` is merged into the answer's fields, to add fields or to give them odd values. The
    fields named in ``omit`` are left out. ``updates`` counts how often the metadata was written.
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


class MessageAttributes(TypedDict, total=False):
    """Attributes of a message that seldom matter."""

    identity: str
    app_id: str
    contact_id: str
    conversation_id: str
    injected: bool
    sender_id: str
    text: str


class Messages(Access):
    """The part of the sandbox that knows messages."""

    messages: dict[str, SandboxMessage]

    def add_message(
        self,
        message_id: str,
        *,
        metadata: str = "",
        project_id: str | None = None,
        accept_time: str | None = None,
        channel: str = "SMS",
        direction: str = "TO_CONTACT",
        processing_mode: str = "CONVERSATION",
        extra: Mapping[str, Any] | None = None,
        omit: Collection[str] = (),
        **attributes: Unpack[MessageAttributes],
    ) -> SandboxMessage:
        """Add a message to a project (the first one, unless another is named), and return it.

        ``accept_time`` is now unless given. ``attributes``: the other attributes of
        :class:`SandboxMessage`, such as ``conversation_id``. A message of the same id is replaced.
        Raises KeyError for an unknown project.
        """
        project = self._project(project_id)
        message = self.messages[message_id] = SandboxMessage(
            id=message_id,
            metadata=metadata,
            project_id=project.id,
            accept_time=timestamp(time.time()) if accept_time is None else accept_time,
            channel=channel,
            direction=direction,
            processing_mode=processing_mode,
            extra=dict(extra or {}),
            omit=omit,
            **attributes,
        )
        return message

    @on_its_loop
    def add_messages(self, messages: Iterable[Mapping[str, Any]]) -> int:
        """Add messages, each a mapping of :class:`SandboxMessage` attributes; return their number.

        ``project_id`` is the first project unless given, ``accept_time`` now. Raises KeyError for
        an unknown project; then none is added.
        """
        now = timestamp(time.time())
        usual: dict[str, Any] = {"project_id": self._project(None).id, "accept_time": now}
        found = [SandboxMessage(**{**usual, **attributes}) for attributes in messages]
        for message in found:
            if message.project_id not in self._projects:
                raise KeyError(f"there is no project {message.project_id!r}")
        self.messages.update((message.id, message) for message in found)
        return len(found)

    def load_messages(self, path: str | Path) -> int:
        """Add the messages of a file, and return their number.

        The file's ending says what it is: ``.jsonl`` and ``.ndjson`` hold one JSON object a line,
        ``.json`` a list of them, everything else is CSV, whose first line names the columns. The
        names are attributes of :class:`SandboxMessage` (``message_id`` may stand for ``id``), or
        the fields that the API answers with.

        Raises ValueError with the number of the record that is not valid, KeyError for an unknown
        project, and OSError if the file cannot be read. Then no message is added.
        """
        return self.add_messages(read_file(path))


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
    """The metadata in an update's body, None without any, and the 400 for an invalid body."""
    if content_type != JSON and media_type(content_type) != JSON:
        return None, invalid("body", "Content-Type must be application/json.")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None, invalid("body", "Not JSON.")
    metadata: Any = (
        cast("dict[str, Any]", fields).get("metadata") if isinstance(fields, dict) else None
    )
    if not isinstance(metadata, str):
        return None, invalid("metadata", "Field is required, and is text.")
    if len(metadata) > _MAX_METADATA:
        return metadata, invalid("metadata", f"At most {_MAX_METADATA} characters.")
    if not is_unicode(metadata):
        return metadata, invalid("metadata", "Not Unicode text.")
    return metadata, None


# Attributes of a message that are text, under their own names.
_TEXTS: Final = frozenset(
    {
        *(
            "id",
            "metadata",
            "project_id",
            "accept_time",
            "channel",
            "identity",
            "app_id",
            "contact_id",
        ),
        *("conversation_id", "direction", "sender_id", "processing_mode", "text"),
    }
)


def attributes_of(fields: object) -> dict[str, Any]:
    """The attributes of a :class:`SandboxMessage` in a JSON object.

    It holds attributes under their own names, or what the API answers: then ``channel_identity`` is
    taken apart, and ``app_message`` or ``contact_message`` becomes part of ``extra``.
    ``message_id`` may stand for ``id``. Raises ValueError for anything else: a name that no message
    has is likely a slip.
    """
    _check(isinstance(fields, dict), "a message is a JSON object")
    given = dict(cast("dict[str, Any]", fields))
    if "message_id" in given:
        given["id"] = given.pop("message_id")
    identity = given.pop("channel_identity", {})
    _check(isinstance(identity, dict), "channel_identity must be an object")
    given = cast("dict[str, Any]", identity) | given
    bodies = {name: given.pop(name) for name in ("app_message", "contact_message") if name in given}
    extra = given.pop("extra", {})
    omit = given.pop("omit", [])
    injected = given.pop("injected", False)
    for name, value in given.items():
        _check(name in _TEXTS, f"a message has no attribute {name!r}")
        _check(isinstance(value, str), f"{name} must be text")
    _check(bool(given.get("id")), "a message needs an id")
    _check(isinstance(extra, dict), "extra must be an object")
    _check(
        isinstance(omit, list) and all(isinstance(each, str) for each in omit),
        "omit must be a list of texts",
    )
    _check(isinstance(injected, bool), "injected must be true or false")
    return given | {
        "extra": cast("dict[str, Any]", extra) | bodies,
        "omit": omit,
        "injected": injected,
    }


def _check(fits: bool, complaint: str) -> None:
    if not fits:
        raise ValueError(complaint)


def read_file(path: str | Path) -> Iterator[dict[str, Any]]:
    """The attributes of the messages in a file.

    It is JSON Lines (``.jsonl``, ``.ndjson``), a JSON array (``.json``) or CSV, whose first line
    names the columns. Raises ValueError with the number of the record that is
    not valid.
    """
    path = Path(path)
    number = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        records: Iterator[Mapping[str, Any] | Any]
        if path.suffix in (".jsonl", ".ndjson"):
            records = (json.loads(line) for line in file if not line.isspace())
        elif path.suffix == ".json":
            document: object = json.load(file)
            if not isinstance(document, list):
                raise ValueError("a .json file must hold a list of messages")
            records = iter(document)
        else:
            records = csv.DictReader(file, strict=True)
        while True:
            number += 1
            try:
                fields = next(records)
                yield attributes_of(fields)
            except StopIteration:
                return
            except (ValueError, TypeError, csv.Error) as error:
                raise ValueError(f"record {number}: {error}") from None
