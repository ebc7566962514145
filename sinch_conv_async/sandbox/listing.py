"""The list of messages: its query, its filters, its order and its pages.

The list is newest first by ``accept_time``; messages of one time are ordered by id, the greater
first. An ``accept_time`` without an offset counts as UTC, and a text that is no time counts as the
oldest.

A page token holds the place of the last message that was given, so a message that is added
meanwhile moves nothing and no token is ever forgotten. It also holds a checksum of the filters:
with others it gets 400.

Nothing is known of the service's own page tokens; these are of the sandbox's making, and opaque to
a client.
"""

from __future__ import annotations

import base64
import bisect
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs

import attrs

from .messages import SandboxMessage, message_fields
from .responses import Response, invalid, json_response

__all__ = ["Listing", "source_complaint"]

_MODE_OF_SOURCE: Final = {"CONVERSATION_SOURCE": "CONVERSATION", "DISPATCH_SOURCE": "DISPATCH"}
_CHANNELS: Final = (
    *("WHATSAPP", "RCS", "SMS", "MESSENGER", "VIBERBM", "MMS", "INSTAGRAM"),
    *("TELEGRAM", "KAKAOTALK", "KAKAOTALKCHAT", "LINE", "WECHAT", "APPLEBC"),
)
# "Defaults to 10 and the maximum is 1000", the published document says of page_size.
_PAGE_SIZE: Final = 10
_MAX_PAGE_SIZE: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONG_AGO: Final = -(10**18)  # microseconds: before every time that a datetime holds

# The place of a message in the list: its time in microseconds since 1970, and its id.
_Place = tuple[int, str]


@attrs.frozen
class _Token:
    """What a page token says: the list goes on after `place`, with the filters of this checksum."""

    place: _Place
    checksum: int

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(json.dumps([*self.place, self.checksum]).encode()).decode()


class _InvalidQueryError(Exception):
    def __init__(self, field: str, description: str) -> None:
        super().__init__(field, description)
        self.field = field
        self.description = description


def _once(query: str) -> dict[str, str]:
    """The parameters of a query. Raises _InvalidQueryError for one that is there twice."""
    parameters = parse_qs(query, keep_blank_values=True)
    for name, values in parameters.items():
        if len(values) > 1 and name in _PARAMETERS:
            raise _InvalidQueryError(name, "Must be there once.")
    return {name: values[0] for name, values in parameters.items()}


def _word(*words: str) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        if text not in words:
            raise _InvalidQueryError(name, f"Must be one of {', '.join(words)}.")
        return text

    return read


def _text(name: str, text: str) -> str | None:
    return text or None


def _time(name: str, text: str) -> int:
    moment = _moment(text)
    if moment is None or moment.tzinfo is None:
        raise _InvalidQueryError(name, "Must be a time as RFC 3339 writes it, with its offset.")
    return _microseconds(moment)


def _size(name: str, text: str) -> int:
    if not (
        text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _MAX_PAGE_SIZE
    ):
        raise _InvalidQueryError(name, f"Must be a number from 1 to {_MAX_PAGE_SIZE}.")
    return int(text)


def _read_token(name: str, text: str) -> _Token | None:
    if not text:
        return None
    try:
        microseconds, message_id, checksum = json.loads(
            base64.b64decode(text, altchars=b"-_", validate=True)
        )
    except (ValueError, TypeError, RecursionError):
        raise _InvalidQueryError(name, "Not a page token of this service.") from None
    if not (type(microseconds) is int and isinstance(message_id, str) and type(checksum) is int):
        raise _InvalidQueryError(name, "Not a page token of this service.")
    return _Token((microseconds, message_id), checksum)


_PARAMETERS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "conversation_id": _text,
    "contact_id": _text,
    "app_id": _text,
    "channel_identity": _text,
    "channel": _word(*_CHANNELS),
    "direction": _word("TO_APP", "TO_CONTACT"),
    "start_time": _time,
    "end_time": _time,
    "only_recipient_originated": _word("true", "false"),
    "view": _word("WITH_METADATA", "WITHOUT_METADATA"),
    "messages_source": _word(*_MODE_OF_SOURCE),
    "page_size": _size,
    "page_token": _read_token,
}


def source_complaint(query: str) -> Response | None:
    """The 400 for a ``messages_source`` that is not valid: one message takes no other parameter."""
    try:
        source = _once(query).get("messages_source")
        if source is not None:
            _PARAMETERS["messages_source"]("messages_source", source)
    except _InvalidQueryError as error:
        return invalid(error.field, error.description)
    return None


@attrs.frozen(kw_only=True)
class _Query:
    """What a list asks for. None leaves a filter out."""

    conversation_id: str | None = None
    contact_id: str | None = None
    app_id: str | None = None
    channel_identity: str | None = None
    channel: str | None = None
    direction: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    only_recipient_originated: str = "false"
    view: str = "WITH_METADATA"
    messages_source: str = "CONVERSATION_SOURCE"
    page_size: int = _PAGE_SIZE
    page_token: _Token | None = None

    @classmethod
    def read(cls, query: str) -> _Query:
        given = _once(query)
        # Each reader gives its own parameter's type, which a mapping of all of them cannot say.
        fields: dict[str, Any] = {
            name: read(name, given[name]) for name, read in _PARAMETERS.items() if name in given
        }
        found = cls(**fields)
        start, end = found.start_time, found.end_time
        if start is not None and end is not None and start >= end:
            raise _InvalidQueryError("start_time", "Must be before end_time.")
        if found.page_token is not None and found.page_token.checksum != found.checksum:
            raise _InvalidQueryError("page_token", "It belongs to a list with other filters.")
        return found

    @property
    def checksum(self) -> int:
        """A checksum of the filters. The page size may change from page to page."""
        filters = attrs.evolve(self, page_size=_PAGE_SIZE, page_token=None)
        return zlib.crc32(repr(filters).encode())

    def asks_for(self, message: SandboxMessage, microseconds: int) -> bool:
        return (
            all(wanted in (None, found) for wanted, found in self._equal(message))
            and (self.start_time is None or microseconds > self.start_time)
            and (self.end_time is None or microseconds < self.end_time)
        )

    def _equal(self, message: SandboxMessage) -> tuple[tuple[str | None, str], ...]:
        originator = "TO_APP" if self.only_recipient_originated == "true" else None
        return (
            (_MODE_OF_SOURCE[self.messages_source], message.processing_mode),
            (originator, message.direction),
            (self.conversation_id, message.conversation_id),
            (self.contact_id, message.contact_id),
            (self.app_id, message.app_id),
            (self.channel_identity, message.identity),
            (self.channel, message.channel),
            (self.direction, message.direction),
        )


class Listing:
    """Answers lists of messages, and remembers their order from one page to the next.

    The messages and their attributes may change at any time; the order is made anew if they did.
    """

    def __init__(self) -> None:
        self._known: list[SandboxMessage] = []
        self._times: list[str] = []
        self._places: list[_Place] = []
        self._ordered: list[SandboxMessage] = []

    def answer(self, messages: Iterable[SandboxMessage], project_id: str, query: str) -> Response:
        """One page of a project's messages, or the 400 for a query that is not valid."""
        try:
            wanted = _Query.read(query)
        except _InvalidQueryError as error:
            return invalid(error.field, error.description)
        self._sort(list(messages))
        page: list[tuple[_Place, SandboxMessage]] = []
        for place, message in self._after(wanted.page_token):
            if message.project_id == project_id and wanted.asks_for(message, place[0]):
                if len(page) == wanted.page_size:
                    return _page(page, wanted.view, str(_Token(page[-1][0], wanted.checksum)))
                page.append((place, message))
        return _page(page, wanted.view, "")

    def _after(self, token: _Token | None) -> Iterator[tuple[_Place, SandboxMessage]]:
        """The messages after the token's place, newest first."""
        first = (
            len(self._places) if token is None else bisect.bisect_left(self._places, token.place)
        )
        for index in range(first - 1, -1, -1):
            yield self._places[index], self._ordered[index]

    def _sort(self, known: list[SandboxMessage]) -> None:
        times = [message.accept_time for message in known]
        if known == self._known and times == self._times:
            return
        order = sorted((_place(message), number) for number, message in enumerate(known))
        self._places = [place for place, _ in order]
        self._ordered = [known[number] for _, number in order]
        self._known, self._times = known, times


def _page(page: list[tuple[_Place, SandboxMessage]], view: str, next_page_token: str) -> Response:
    hidden = view == "WITHOUT_METADATA"
    messages = [
        message_fields(message, None if hidden else message.metadata) for _, message in page
    ]
    fields = {"messages": messages, "next_page_token": next_page_token}
    return json_response(fields)


def _place(message: SandboxMessage) -> _Place:
    moment = _moment(message.accept_time)
    return (_LONG_AGO if moment is None else _microseconds(moment)), message.id


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError):  # TypeError: a test may have put there what is no text
        return None


def _microseconds(moment: datetime) -> int:
    passed = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds
