"""The operations of the API: requests, how to read the responses, and whether a repeat is safe.

Each class implements the protocol ``Operation`` of ``_core/seams.py``. ``of`` checks the arguments
and raises :class:`InvalidArgumentError`. A :class:`CheckedUpdate` was checked when it was made, and
makes its operations without another check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final
from urllib.parse import quote

from ..enums import Channel, Direction, MessagesSource, MessagesView
from ..errors import InvalidArgumentError
from ..models import ConversationMessage, MessagePage
from . import json as _json
from .arguments import (
    checked_filter,
    checked_id,
    checked_metadata,
    checked_moment,
    checked_page_size,
    checked_word,
)
from .failure import Failure
from .requests import Request
from .responses import Response, read_message, read_page

__all__ = ["CheckedUpdate", "GetMessage", "ListMessages", "UpdateMetadata", "checked_source"]

MAX_PAGE: Final = 16 * 1024 * 1024
"""Bytes of a page: a thousand messages with contents of some KiB each."""


class _Operation:
    """What the operations have in common."""

    __slots__ = ("request",)

    def __init__(self, request: Request) -> None:
        self.request = request


class UpdateMetadata(_Operation):
    """Set the metadata of one message.

    Repeating it is not always safe: a repeat can overwrite the change of another writer.
    """

    __slots__ = ()
    safe: ClassVar[bool] = False

    @classmethod
    def of(
        cls,
        origin: str,
        path: str,
        message_id: object,
        metadata: object,
        messages_source: object = None,
    ) -> UpdateMetadata:
        """The operation for a message under ``path`` (:func:`messages_path`)."""
        checked = checked_id("message_id", message_id)
        source = None if messages_source is None else checked_source(messages_source)
        return cls(_patch(origin, path, checked, checked_metadata(metadata), source))

    def read(
        self, response: Response, *, scrub: Callable[[str], str], reused: bool
    ) -> ConversationMessage | Failure:
        """The message after the update, or a Failure."""
        return read_message(response, self.request, scrub=scrub, reused=reused)


class GetMessage(_Operation):
    """Read one message."""

    __slots__ = ()
    safe: ClassVar[bool] = True

    @classmethod
    def of(
        cls, origin: str, path: str, message_id: object, messages_source: object = None
    ) -> GetMessage:
        """The operation for a message under ``path`` (:func:`messages_path`)."""
        checked = checked_id("message_id", message_id)
        source = None if messages_source is None else checked_source(messages_source)
        return cls(_get(origin, path, checked, source))

    def read(
        self, response: Response, *, scrub: Callable[[str], str], reused: bool
    ) -> ConversationMessage | Failure:
        """The message, or a Failure."""
        return read_message(response, self.request, scrub=scrub, reused=reused)


class ListMessages(_Operation):
    """Read one page of the messages that pass some filters, the newest first."""

    __slots__ = ()
    safe: ClassVar[bool] = True

    @classmethod
    def of(
        cls,
        origin: str,
        path: str,
        *,
        conversation_id: object = None,
        contact_id: object = None,
        app_id: object = None,
        channel_identity: object = None,
        channel: object = None,
        direction: object = None,
        start_time: object = None,
        end_time: object = None,
        only_recipient_originated: object = None,
        view: object = None,
        messages_source: object = None,
        page_size: object = 100,
    ) -> ListMessages:
        """The operation for the first page; ``path`` as for a message."""
        texts = {
            "conversation_id": conversation_id,
            "contact_id": contact_id,
            "app_id": app_id,
            "channel_identity": channel_identity,
        }
        words = {
            "channel": (Channel, channel),
            "direction": (Direction, direction),
            "view": (MessagesView, view),
            "messages_source": (MessagesSource, messages_source),
        }
        query = {
            "page_size": str(checked_page_size(page_size)),
            **{
                name: checked_filter(name, text) for name, text in texts.items() if text is not None
            },
            **{
                name: checked_word(name, known, word)
                for name, (known, word) in words.items()
                if word is not None
            },
            **_period(start_time, end_time),
        }
        if only_recipient_originated is not None:
            if type(only_recipient_originated) is not bool:
                raise InvalidArgumentError("only_recipient_originated must be True or False")
            query["only_recipient_originated"] = str(only_recipient_originated).lower()
        # Every value is escaped, so a filter cannot add another parameter.
        target = (
            path.rstrip("/")
            + "?"
            + "&".join(f"{name}={quote(text, safe='')}" for name, text in query.items())
        )
        return cls(_page_request(origin, target))

    def next(self, page_token: str) -> ListMessages:
        """The operation for the page that the ``next_page_token`` of this one names."""
        first = self.request.target.partition("&page_token=")[0]
        target = f"{first}&page_token={quote(page_token, safe='')}"
        return ListMessages(_page_request(self.request.origin, target))

    def read(
        self, response: Response, *, scrub: Callable[[str], str], reused: bool
    ) -> MessagePage | Failure:
        """The page, or a Failure."""
        return read_page(response, self.request, scrub=scrub)


def _page_request(origin: str, target: str) -> Request:
    return Request("GET", origin, target, max_response=MAX_PAGE)


class CheckedUpdate:
    """Makes the operations of an update whose values were checked when it was made.

    The reader of a job's input makes such updates (``Record``), so they are not checked again. Not
    an attrs class, because each of those costs import time.
    """

    __slots__ = ()

    message_id: str
    metadata: str | None
    messages_source: MessagesSource | str | None

    def update(self, origin: str, path: str) -> UpdateMetadata:
        """The operation that sends it."""
        assert self.metadata is not None  # it was checked
        return UpdateMetadata(
            _patch(origin, path, self.message_id, self.metadata, self.messages_source)
        )

    def read(self, origin: str, path: str) -> GetMessage:
        """The operation that reads its message."""
        return GetMessage(_get(origin, path, self.message_id, self.messages_source))


# Requests of values that were checked


def _patch(
    origin: str, path: str, message_id: str, metadata: str, messages_source: str | None
) -> Request:
    body = b'{"metadata": ' + _json.dump_text(metadata) + b"}"
    target = _message_target(path, message_id, messages_source)
    return Request("PATCH", origin, target, body, message_id=message_id)


def _get(origin: str, path: str, message_id: str, messages_source: str | None) -> Request:
    target = _message_target(path, message_id, messages_source)
    return Request("GET", origin, target, message_id=message_id)


def _message_target(path: str, message_id: str, messages_source: str | None) -> str:
    target = path + message_id
    return target if messages_source is None else f"{target}?messages_source={messages_source}"


def checked_source(value: object) -> MessagesSource:
    """The member that a word names, or InvalidArgumentError."""
    return checked_word("messages_source", MessagesSource, value)


def _period(start_time: object, end_time: object) -> dict[str, str]:
    """The query parameters of a period, as RFC 3339 in UTC."""
    given = {"start_time": start_time, "end_time": end_time}
    moments = {
        name: checked_moment(name, value) for name, value in given.items() if value is not None
    }
    if len(moments) == 2 and moments["start_time"] >= moments["end_time"]:
        raise InvalidArgumentError("start_time must be before end_time")
    return {name: moment.isoformat().replace("+00:00", "Z") for name, moment in moments.items()}
