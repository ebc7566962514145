"""Reads responses.

Each reader returns a value, or a :class:`Failure` that says what went wrong and whether a repeat
can help. Raises nothing, so no credential and no message content is ever in the frames of a
traceback.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

import attrs

from ..errors import ResponseFormatError, TokenError, TransportError
from ..models import ConversationMessage, MessagePage
from . import json as _json
from .envelope import token_error_fields
from .failure import Failure
from .requests import MAX_RESPONSE, Request
from .structure import structure_error, structure_message, structure_page

__all__ = [
    "Response",
    "TokenResponse",
    "read_message",
    "read_page",
    "read_token_response",
    "retry_after",
]

Scrub = Callable[[str], str]
"""Cuts credentials out of a text."""

_T = TypeVar("_T")

DEFAULT_TOKEN_LIFETIME: Final = 600.0
"""Seconds that a token lives if its response has no ``expires_in`` (RFC 6749, 5.1, only recommends
it). Sinch's live an hour."""

_DELAY_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]*)?")
# RFC 9111, section 1.2.2: a number of seconds that is too large is read as this one, 68 years.
_LONGEST_DELAY: Final = 2.0**31
# The names that Sinch and common gateways use, the most useful first.
_REQUEST_ID_HEADERS: Final = (
    "X-Request-Id",
    "X-Correlation-Id",
    "Request-Id",
    "X-Amzn-RequestId",
    "X-Trace-Id",
    "Traceparent",
    "CF-RAY",
)
# After these statuses the server has not acted on the request (RFC 9110, 15.5.9; RFC 6585, 4).
_TRY_AGAIN_NOT_APPLIED: Final = frozenset({408, 429})
# After these it may have acted: a gateway also answers 503 if the connection to its backend broke
# after it had passed on the request.
_TRY_AGAIN_MAYBE_APPLIED: Final = frozenset({500, 502, 503, 504})

_CODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP: Final = b"\x1f\x8b"  # how each member of a gzip body begins

MAX_CODINGS: Final = 3
"""Codings of a body, one around the other."""

MAX_MEMBERS: Final = 100
"""Members of a gzip body. A bound, because each one costs a copy of what follows it."""


class Response:
    """The server's answer.

    The status, the headers (looked up in any case) and the body, as far as it was read.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"Response(status={self.status})"


@attrs.frozen
class TokenResponse:
    """An access token and the seconds that it lives (RFC 6749, section 5.1)."""

    access_token: str = attrs.field(repr=False)
    lifetime: float


# Messages and pages


def read_message(
    response: Response, request: Request, *, scrub: Scrub, reused: bool
) -> ConversationMessage | Failure:
    """The message that was asked for, or a Failure.

    ``reused``: the connection has carried a response before.
    """
    message = _read(response, request, structure_message, "a message", scrub)
    if isinstance(message, Failure):
        return message
    # Ids are ULIDs, in which case does not matter. Protobuf-style APIs write an empty text for a
    # missing field.
    if message.id and message.id.lower() != request.message_id.lower():
        problem = "the answer is about another message than the one asked for"
        if reused:
            # The response may belong to an earlier request. Every later one on this connection
            # would be shifted too.
            return Failure(
                TransportError(problem), retryable=True, maybe_applied=True, crossed=True
            )
        return Failure(
            ResponseFormatError(problem, http_status=200), retryable=False, maybe_applied=True
        )
    return message


def read_page(response: Response, request: Request, *, scrub: Scrub) -> MessagePage | Failure:
    """One page of the list, or a Failure."""
    return _read(response, request, structure_page, "a page of messages", scrub)


def _read(
    response: Response,
    request: Request,
    structure: Callable[[bytes], _T | str],
    what: str,
    scrub: Scrub,
) -> _T | Failure:
    """The result of a 200, read by ``structure``, which returns a problem as text.

    Or a Failure for any other status.
    """
    status = response.status
    body, problem = _content(response, request.max_response)
    if status == 200:
        value = problem or structure(body)
        if not isinstance(value, str):
            return value
        problem = f"the 200 answer is not {what}: {value}"
    elif 400 <= status <= 599:
        return _api_failure(response, body, scrub)
    else:
        # Redirects are not followed: 303 would turn a PATCH into a GET, 307 would carry body and
        # token to another host.
        problem = f"the API answers 200 or an error, not {status}"
    error = ResponseFormatError(problem, http_status=status)
    return Failure(error, retryable=False, maybe_applied=status < 300)


def _api_failure(response: Response, body: bytes, scrub: Scrub) -> Failure:
    status = response.status
    error = structure_error(status, body, scrub=scrub)
    error.retry_after = retry_after(response.headers)
    error.request_id = _request_id(response.headers, error.extra, scrub)
    maybe_applied = status in _TRY_AGAIN_MAYBE_APPLIED
    return Failure(
        error,
        retryable=maybe_applied or status in _TRY_AGAIN_NOT_APPLIED,
        maybe_applied=maybe_applied,
        # Without a wait, or with a date in the past, the retry policy decides the length of the
        # wait.
        retry_after=error.retry_after or None,
    )


def _request_id(headers: Mapping[str, str], extra: Mapping[str, Any], scrub: Scrub) -> str | None:
    """The id from the headers; without one, the ``traceId`` of the body."""
    for name in _REQUEST_ID_HEADERS:
        # Of several lines of one name the first; aiohttp 4 joins them with commas.
        value = headers.get(name, "").partition(",")[0].strip()
        if value:
            return scrub(value)[:256]
    traced = extra.get("traceId")
    return traced[:256] if isinstance(traced, str) and traced else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that ``Retry-After`` asks for (RFC 9110, section 10.2.3); None if there are none.

    A date is compared with the response's own ``Date``, because one clock wrote both.
    """
    value = headers.get("Retry-After", "").strip()
    if _DELAY_SECONDS.fullmatch(value):
        return min(float(value), _LONGEST_DELAY)
    until, date = _moment(value), _moment(headers.get("Date", ""))
    if until is None or date is None:
        return None
    return min(max(0.0, (until - date).total_seconds()), _LONGEST_DELAY)


def _moment(text: str) -> datetime | None:
    """An HTTP date in any of its three forms.

    The oldest, asctime's, names no time zone and means UTC (RFC 9110, section 5.6.7).
    """
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        # This parser of mail dates raises all of these for malformed dates.
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


# Content codings


def _content(response: Response, limit: int) -> tuple[bytes, str | None]:
    """The decoded body (RFC 9110, section 8.4), and what is wrong with it.

    The request asks for no coding. A coding that cannot be decoded is the server's mistake, and a
    repeat would not help.
    """
    body, problem = response.body, None
    if "Content-Encoding" not in response.headers:
        return body, None  # nearly always
    codings = _codings(response.headers)
    if len(codings) > MAX_CODINGS or not _CODINGS.issuperset(codings):
        return b"", "its Content-Encoding is not one that can be undone"
    for undone, _ in enumerate(codings):
        inflated = _inflated(body, limit)
        if inflated is not None:
            body, problem = inflated
        elif not undone:
            return b"", "its content is not compressed as its Content-Encoding says"
        # Otherwise a gateway has repeated the header line, and the content was compressed once.
        if problem or inflated is None:
            break
    return body, problem


def _codings(headers: Mapping[str, str]) -> list[str]:
    """The codings of the body.

    Several Content-Encoding lines mean the same as one with commas (RFC 9110, section 5.3).
    """
    # Headers with several lines of one name have `getall`; a plain mapping can have only one line.
    getall = getattr(headers, "getall", None)
    lines = [headers["Content-Encoding"]] if getall is None else getall("Content-Encoding")
    names = [part.strip().lower() for line in lines for part in line.split(",")]
    return [name for name in names if name not in ("", "identity")]


def _inflated(data: bytes, limit: int) -> tuple[bytes, str | None] | None:
    """The decompressed data and what is wrong with it; None if it is not compressed."""
    # 32: gzip or zlib, whichever it begins with. Some servers send "deflate" without zlib's two
    # bytes around it.
    for bits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        try:
            return _members(data, bits, limit)
        except zlib.error:
            continue
    return None


def _members(data: bytes, bits: int, limit: int) -> tuple[bytes, str | None]:
    """A gzip body may have several members, one after the other.

    Its content is theirs, joined (RFC 1952, section 2.2).
    """
    body = b""
    for _ in range(MAX_MEMBERS):
        inflate = zlib.decompressobj(bits)
        body += inflate.decompress(data, limit + 1 - len(body))
        if len(body) > limit:
            return body, f"it is longer than {limit:,} bytes"
        if not inflate.eof:
            return body, "its compressed content has no end"
        data = inflate.unused_data
        if not data.startswith(_GZIP):
            return body, None  # the rest is padding, which gzip ignores too
    return body, f"its compressed content has more than {MAX_MEMBERS} members"


# Tokens


def read_token_response(response: Response, *, scrub: Scrub) -> TokenResponse | Failure:
    """The token that the token endpoint granted (RFC 6749, section 5), or a Failure."""
    try:
        value = _json.loads(_content(response, MAX_RESPONSE)[0])
    except ValueError:
        value = None
    fields: dict[str, Any] = value if type(value) is dict else {}
    if response.status == 200:
        return _granted(fields)
    said = token_error_fields(fields, scrub)
    code = said.pop("error") if isinstance(said.get("error"), str) else None
    described = said.get("error_description")
    text = f"the token endpoint answered {response.status}"
    if code:
        text += f" {code[:64]}" + (f": {described[:256]}" if isinstance(described, str) else "")
    error = TokenError(
        text, error=None if code is None else code[:64], http_status=response.status, extra=said
    )
    helps = response.status in _TRY_AGAIN_NOT_APPLIED or response.status >= 500
    return Failure(error, retryable=helps, retry_after=retry_after(response.headers) or None)


def _granted(fields: dict[str, Any]) -> TokenResponse | Failure:
    token = fields.get("access_token")
    lifetime = _seconds(fields.get("expires_in"))
    if not isinstance(token, str) or not token:
        problem = "has no access_token"
    elif not token.isascii() or not token.isprintable():
        problem = "has an access_token that no header can carry"
    elif lifetime is None:
        problem = "has an expires_in that is not a positive number of seconds"
    else:
        return TokenResponse(token, lifetime)
    return Failure(
        TokenError(f"the token endpoint's answer {problem}", http_status=200), retryable=False
    )


def _seconds(value: object) -> float | None:
    """A positive, finite number of seconds.

    The default if none is given. Some gateways send the number as text.
    """
    if value is None:
        return DEFAULT_TOKEN_LIFETIME
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < math.inf else None
