"""The HTTP that is spoken: what a request looks like, what an answer means.

Pure: builds values and reads values. Sends nothing, waits for nothing, raises nothing but :class:`InvalidArgumentError`, and never with a
credential in reach of a traceback's frames.
"""

from __future__ import annotations

import base64
import ipaddress
import math
import re
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote, quote_plus

import attrs
from yarl import URL

from ..enums import MessagesSource, Region
from ..errors import InvalidArgumentError, ResponseFormatError, TokenError, TransportError
from ..models import ConversationMessage
from . import json as _json
from . import structure as _convert
from .failure import Failure

__all__ = [
    "MAX_ANSWER",
    "VERSION",
    "Credentials",
    "Head",
    "Proxy",
    "Request",
    "Response",
    "TokenResponse",
    "basic_authorization",
    "checked_credentials",
    "checked_id",
    "checked_origin",
    "checked_proxy",
    "message_request",
    "messages_path",
    "read_answer",
    "read_token_answer",
    "regional_origin",
    "request_head",
    "request_headers",
    "retry_after",
    "serialized",
    "token_request",
]

_Words = TypeVar("_Words", Region, MessagesSource)

VERSION: Final = "0.1.0"
"""This package's version, as its User-Agent gives it. Written out: looking it up in installed metadata costs a millisecond of import."""

MAX_METADATA: Final = 1024
"""Characters. The request schema names no limit; the specification's response field says up to 1,024."""

MAX_ANSWER: Final = 1024 * 1024
"""Bytes of an answer that are read, and to which it may be decompressed. A message with its contents is a few KiB."""

DEFAULT_TOKEN_LIFETIME: Final = 600.0
"""Seconds that a token lives whose answer has no ``expires_in`` (RFC 6749, 5.1, only recommends it). Sinch's live an hour."""

# RFC 3986's unreserved characters: what needs no escaping cannot be escaped wrongly.
_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,256}")
# One or more DNS labels (RFC 1035, section 2.3.4): what is none makes the resolver raise UnicodeError.
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_DELAY_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]*)?")
# What RFC 9111, section 1.2.2, has one read for a number of seconds that is too large: 68 years.
_LONGEST_DELAY: Final = 2.0**31
# What other gateways and Sinch's own answers call it, most telling first.
_REQUEST_ID_HEADERS: Final = (
    "X-Request-Id",
    "X-Correlation-Id",
    "Request-Id",
    "X-Amzn-RequestId",
    "X-Trace-Id",
    "Traceparent",
    "CF-RAY",
)
# Statuses after which the server has not acted on the request (RFC 9110, 15.5.9; RFC 6585, 4) and those after which it may have: a gateway's
# 503 also stands for a connection that broke after the request had gone through it.
_TRY_AGAIN_NOT_APPLIED: Final = frozenset({408, 429})
_TRY_AGAIN_MAYBE_APPLIED: Final = frozenset({500, 502, 503, 504})


def _spellings(credentials: Credentials) -> tuple[str, ...]:
    """The secret as a server may echo it: plain, from the Authorization header, in a URL, in JSON, in HTML."""
    import html  # two milliseconds of entity tables that importing the package need not pay

    secret = credentials.key_secret
    basic = basic_authorization(credentials).removeprefix("Basic ").rstrip("=")
    quoted = (quote(secret, safe=""), quote(secret), quote_plus(secret))
    in_json = _json.dump_text(secret).decode()[1:-1]
    found = {basic, secret, *quoted, in_json, in_json.replace("/", r"\/"), html.escape(secret)}
    # The longest first: a secret may hold one of its own spellings.
    return tuple(sorted(found, key=len, reverse=True))


@attrs.frozen
class Credentials:
    """A project's access key. Compares by value: a rotated secret is another key."""

    key_id: str
    key_secret: str = attrs.field(repr=False)
    _spellings: tuple[str, ...] = attrs.field(
        default=attrs.Factory(_spellings, takes_self=True), init=False, repr=False, eq=False
    )

    def scrub(self, text: str) -> str:
        """The text with the usual spellings of the secret cut out of it."""
        for spelling in self._spellings:
            text = text.replace(spelling, "[redacted]")
        return text


@attrs.frozen
class TokenResponse:
    """An access token and the seconds that it lives (RFC 6749, section 5.1)."""

    access_token: str = attrs.field(repr=False)
    lifetime: float


@attrs.frozen
class Response:
    """What came back: status, headers (looked up in any case) and the body, at most as long as was read."""

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)


@attrs.frozen
class Request:
    """One request, ready to be sent as often as it takes. ``message_id``: what the answer must be about."""

    method: str
    origin: str
    target: str
    body: bytes = attrs.field(repr=False)
    content_type: str = "application/json"
    message_id: str = ""

    @property
    def url(self) -> URL:
        return URL(self.origin + self.target, encoded=True)


@attrs.frozen
class Head:
    """What the heads of all requests to one origin with one token have in common, as bytes; it ends where the body's length belongs."""

    data: bytes = attrs.field(repr=False)


@attrs.frozen
class Proxy:
    """An HTTP proxy and what it asks for."""

    url: URL
    authorization: str | None = attrs.field(repr=False)

    @property
    def on_this_machine(self) -> bool:
        """Whether it is reached without a network."""
        return _is_loopback(self.url.raw_host or "")

    def headers(self) -> dict[str, str]:
        return {} if self.authorization is None else {"Proxy-Authorization": self.authorization}


def checked_id(name: str, value: object) -> str:
    """A project or message id that cannot reach another path, or InvalidArgumentError."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a str, not {type(value).__name__}")
    if _ID.fullmatch(value) is None or value in (".", ".."):
        # Only the character at fault is repeated: arguments get mixed up, and this one may be a secret or a message's contents.
        at = next((at for at, character in enumerate(value) if not _ID.fullmatch(character)), None)
        fault = f"{len(value)} characters" if at is None else f"{value[at]!a} at {at}"
        raise InvalidArgumentError(
            f"{name} must be 1 to 256 letters, digits, '-', '.', '_' or '~', and not '.' or '..', but has {fault}"
        )
    return value


def checked_credentials(key_id: object, key_secret: object) -> Credentials | str:
    """The credentials, or what is wrong with them. Returned, not raised: this frame holds the secret."""
    for name, value in (("key_id", key_id), ("key_secret", key_secret)):
        if not isinstance(value, str):
            return f"{name} must be a str, not {type(value).__name__}"
        if not value or not value.isprintable():
            return f"{name} must be printable text, without CR, LF or NUL"
        if not value.isascii():
            return f"{name} must be ASCII"
    if ":" in str(key_id):
        return "key_id must not contain ':' (RFC 7617, section 2)"
    return Credentials(str(key_id), str(key_secret))


def checked_origin(name: str, value: object) -> str:
    """``https://host[:port]``, or ``http`` to this machine, without a trailing slash; or InvalidArgumentError.

    The text itself is not repeated in the error: people paste URLs with passwords.
    """
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a str, not {type(value).__name__}")
    url = _http_url(value)
    if url is None or not value.isascii() or not value.isprintable():
        raise InvalidArgumentError(f"{name} must be an origin such as https://us.conversation.api.sinch.com")
    if any(sign in value for sign in "@?#") or url.raw_path not in ("", "/"):
        raise InvalidArgumentError(f"{name} must be an origin alone, without user, path, query or fragment")
    if url.scheme == "http" and not _is_loopback(url.raw_host or ""):
        raise InvalidArgumentError(
            f"{name} must be https; http is for this machine only (127.0.0.1, ::1, localhost)"
        )
    return str(url.origin())


def _http_url(value: str | URL) -> URL | None:
    """The URL, None where it is not http or https or its host is none that can be looked up."""
    if "\\" in str(value):
        return None  # some read it as a slash, and so another host than others do
    try:
        url = URL(value)
        host = url.raw_host if url.host else None  # host decodes punycode: what is none is found out here
    except ValueError:
        return None
    if url.scheme not in ("http", "https") or host is None:
        return None
    return url if _HOST.fullmatch(host) or _address(host) else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def regional_origin(region: object) -> str:
    """The API's origin for a region, or InvalidArgumentError."""
    word = _member(Region, region)
    if word is None:
        known = ", ".join(repr(str(member)) for member in Region)
        raise InvalidArgumentError(f"conversation_region must be one of {known}")
    return f"https://{word}.conversation.api.sinch.com"


def _member(words: type[_Words], value: object) -> _Words | None:
    try:
        return words(value)  # type: ignore[arg-type]  # whatever the user gave
    except ValueError:
        return None


def messages_path(project_id: str) -> str:
    """What the path of every message of a project starts with."""
    return f"/v1/projects/{project_id}/messages/"


def message_request(
    origin: str,
    path: str,
    message_id: str,
    metadata: str,
    messages_source: MessagesSource | str | None = None,
) -> Request:
    """The request for one update of a message under ``path``, or InvalidArgumentError."""
    if type(message_id) is not str or _ID.fullmatch(message_id) is None or message_id in (".", ".."):
        message_id = checked_id("message_id", message_id)
    if not isinstance(metadata, str):
        raise InvalidArgumentError(f"metadata must be a str, not {type(metadata).__name__}")
    if len(metadata) > MAX_METADATA:
        raise InvalidArgumentError(
            f"metadata must be at most {MAX_METADATA:,} characters, not {len(metadata):,}"
        )
    if not metadata.isascii() and not _encodes(metadata):
        raise InvalidArgumentError("metadata must encode to UTF-8: it holds a lone surrogate")
    target = path + message_id
    if messages_source is not None:
        source = _member(MessagesSource, messages_source)
        if source is None:
            raise InvalidArgumentError(f"messages_source must be one of {', '.join(MessagesSource)}")
        target += f"?messages_source={source}"
    body = b'{"metadata": ' + _json.dump_text(metadata) + b"}"
    return Request("PATCH", origin, target, body, message_id=message_id)


def token_request(auth_origin: str) -> Request:
    """The request for a token by client credentials (RFC 6749, section 4.4.2); the key goes into the Authorization header."""
    content_type = "application/x-www-form-urlencoded"
    return Request(
        "POST", auth_origin, "/oauth2/token", b"grant_type=client_credentials", content_type=content_type
    )


def request_headers(request: Request, authorization: str, user_agent: str) -> dict[str, str]:
    """The header fields of a request, but for Host and Content-Length."""
    return {
        "Authorization": authorization,
        "Content-Type": request.content_type,
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": user_agent,
    }


def request_head(request: Request, authorization: str, user_agent: str) -> Head:
    """The part of the request's head that stays the same (RFC 9112, sections 3 and 5), to be made once a token.

    Each value has been checked where it came in, so none can end its line: ids are unreserved characters, tokens printable ASCII.
    """
    fields = {
        "Host": request.url.host_port_subcomponent,
        **request_headers(request, authorization, user_agent),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return Head(f" HTTP/1.1\r\n{lines}Content-Length: ".encode("ascii"))


def serialized(request: Request, head: Head) -> bytes:
    """The request as it goes over the wire."""
    return b"%b %b%b%d\r\n\r\n%b" % (
        request.method.encode("ascii"),
        request.target.encode("ascii"),
        head.data,
        len(request.body),
        request.body,
    )


def checked_proxy(value: str | URL | None) -> Proxy | str | None:
    """The proxy, or what is wrong with it. Returned, not raised: the URL may hold a password."""
    if value is None:
        return None
    if not isinstance(value, str | URL):
        return f"proxy must be a str or yarl.URL, not {type(value).__name__}"
    url = _http_url(value)
    if url is None:
        return "proxy must be a URL such as http://user:password@proxy.example:3128"
    if url.user is None and url.password is None:
        return Proxy(url, None)
    pair = f"{url.user or ''}:{url.password or ''}"
    if not _encodes(pair):
        return "proxy must have a user and a password that encode to UTF-8"
    return Proxy(url.with_user(None), "Basic " + base64.b64encode(pair.encode()).decode("ascii"))


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def basic_authorization(credentials: Credentials) -> str:
    """The Authorization value of HTTP Basic (RFC 7617)."""
    pair = f"{credentials.key_id}:{credentials.key_secret}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that ``Retry-After`` asks for (RFC 9110, section 10.2.3), None where it gives none that make sense.

    A date is held against the answer's own ``Date``: the two come from one clock, ours may be off.
    """
    value = headers.get("Retry-After", "").strip()
    if _DELAY_SECONDS.fullmatch(value):
        return min(float(value), _LONGEST_DELAY)
    until, date = _moment(value), _moment(headers.get("Date", ""))
    if until is None or date is None:
        return None
    return min(max(0.0, (until - date).total_seconds()), _LONGEST_DELAY)


def _moment(text: str) -> datetime | None:
    """An HTTP date in any of its three forms; the oldest of them, asctime's, names no time zone and means UTC (RFC 9110, section 5.6.7)."""
    try:
        moment = parsedate_to_datetime(text)
    except (
        ValueError,
        TypeError,
        OverflowError,
        IndexError,
    ):  # the parser is for mail, and not for the hostile
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


_CODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})


def _content(answer: Response) -> tuple[bytes, str | None]:
    """The answer's body with its Content-Encoding undone (RFC 9110, section 8.4), as far as that can be done, and what is wrong with it.

    None was asked for, so one that this cannot undo is the server's mistake, and comes again with a repeat.
    """
    coding = answer.headers.get("Content-Encoding")
    if coding is None:
        return answer.body, None
    codings = [name for part in coding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if not codings:
        return answer.body, None
    if len(codings) > 1 or codings[0] not in _CODINGS:
        return b"", "its Content-Encoding is none that was asked for"
    # 32: gzip or zlib, by what it begins with. Some send "deflate" without zlib's two bytes around it.
    for bits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        inflate = zlib.decompressobj(bits)
        try:
            body = inflate.decompress(answer.body, MAX_ANSWER + 1)
        except zlib.error:
            continue
        if len(body) > MAX_ANSWER:
            return body, f"it is longer than {MAX_ANSWER:,} bytes"
        return body, None if inflate.eof else "its compressed content has no end"
    return b"", "its content is not compressed as its Content-Encoding says"


def read_answer(
    answer: Response, request: Request, *, scrub: Callable[[str], str], reused: bool = True
) -> ConversationMessage | Failure:
    """The message that was asked for, or a Failure. ``reused``: the connection has carried an answer before."""
    body, problem = _content(answer)
    if answer.status == 200:
        message = problem or _convert.structure_message(body)
        if isinstance(message, str):
            problem = f"the 200 answer is not a message: {message}"
            return Failure(ResponseFormatError(problem, http_status=200), retryable=False, maybe_applied=True)
        # Ids are ULIDs, which have no case. An empty text is how Protobuf-style APIs write what is missing.
        if message.id and message.id.lower() != request.message_id.lower():
            problem = "the answer is about another message than the one asked for"
            if reused:
                # The answer may belong to an earlier request. Every later answer on this connection would be shifted too.
                return Failure(TransportError(problem), retryable=True, maybe_applied=True, crossed=True)
            return Failure(ResponseFormatError(problem, http_status=200), retryable=False, maybe_applied=True)
        return message
    if not 400 <= answer.status <= 599:
        # A redirect is not followed: 303 would turn the PATCH into a GET, 307 would carry body and token to another host.
        problem = f"the API answers 200 or an error, not {answer.status}"
        return Failure(
            ResponseFormatError(problem, http_status=answer.status),
            retryable=False,
            maybe_applied=answer.status < 300,
        )
    error = _convert.structure_error(answer.status, body, scrub=scrub)
    error.retry_after = retry_after(answer.headers)
    error.request_id = _request_id(answer.headers, scrub)
    maybe_applied = answer.status in _TRY_AGAIN_MAYBE_APPLIED
    return Failure(
        error,
        retryable=maybe_applied or answer.status in _TRY_AGAIN_NOT_APPLIED,
        maybe_applied=maybe_applied,
        # No wait, or a date that has passed: how long is left to us.
        retry_after=error.retry_after or None,
    )


def _request_id(headers: Mapping[str, str], scrub: Callable[[str], str]) -> str | None:
    for name in _REQUEST_ID_HEADERS:
        value = headers.get(name)
        if value:
            return scrub(value)[:256]
    return None


def read_token_answer(answer: Response, *, scrub: Callable[[str], str]) -> TokenResponse | Failure:
    """The token that an answer of the token endpoint grants (RFC 6749, section 5), or why there is none."""
    try:
        value = _json.loads(_content(answer)[0])
    except ValueError:
        value = None
    fields: dict[str, Any] = value if type(value) is dict else {}
    if answer.status == 200:
        return _grant(fields)
    code = fields.get("error")
    code = scrub(code)[:64] if isinstance(code, str) else None
    said = fields.get("error_description")
    said = f": {scrub(said)[:256]}" if isinstance(said, str) else ""
    error = TokenError(
        f"the token endpoint answered {answer.status}" + (f" {code}{said}" if code else ""),
        error=code,
        http_status=answer.status,
    )
    helps = answer.status in _TRY_AGAIN_NOT_APPLIED or answer.status >= 500
    return Failure(error, retryable=helps, retry_after=retry_after(answer.headers) or None)


def _grant(fields: dict[str, Any]) -> TokenResponse | Failure:
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
    return Failure(TokenError(f"the token endpoint's answer {problem}", http_status=200), retryable=False)


def _seconds(value: object) -> float | None:
    """A positive, finite number of seconds, the default where none is given; numeric strings are read too, since some gateways send those."""
    if value is None:
        return DEFAULT_TOKEN_LIFETIME
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < math.inf else None
