"""Responses of the sandbox as values, with the forms of errors, and their bytes on the wire.

Everything here is pure: it knows neither the messages nor the connections.
"""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, Literal

import attrs

__all__ = [
    "INVALID_CREDENTIALS",
    "JSON",
    "NO_SUCH_MESSAGE",
    "NO_SUCH_PATH",
    "UNAUTHENTICATED",
    "ErrorBody",
    "Response",
    "encode",
    "envelope",
    "expired",
    "invalid",
    "is_unicode",
    "json_response",
    "media_type",
    "oauth_error",
    "retry_after_header",
    "scripted",
    "timestamp",
]

ErrorBody = Literal["envelope", "flat", "problem", "html", "text", "empty", "string"]
"""The known forms of errors: the documented ``{"error": {...}}``, the same without ``error``, an
RFC 9457 problem document, a gateway's HTML page or line of text, no body, and
``{"error": "text"}``.
"""

JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

# google.rpc.Code as HTTP, https://cloud.google.com/apis/design/errors#handling_errors
_STATUS_WORDS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@attrs.frozen
class Response:
    """One response before it is encoded. Its body may hold a token, so no repr shows it."""

    status: int
    body: bytes = attrs.field(default=b"", repr=False)
    content_type: str | None = JSON
    headers: tuple[tuple[str, str], ...] = ()


def json_response(fields: Any) -> Response:
    """A 200 with these fields."""
    return Response(200, json.dumps(fields).encode())


def encode(response: Response, request_id: str, *, now: float, close: bool) -> tuple[bytes, bytes]:
    """The head and the body of a response as HTTP/1.1 writes them."""
    status, body = response.status, response.body
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\nDate: {_http_date(int(now))}\r\n"
    )
    if status not in (204, 304):  # Neither has a body, nor its length (RFC 9110, section 8.6).
        head += f"Content-Length: {len(body)}\r\n"
        if response.content_type is not None:
            head += f"Content-Type: {response.content_type}\r\n"
    else:
        body = b""
    for name, value in response.headers:
        head += f"{name}: {value}\r\n"
    if close:
        head += "Connection: close\r\n"
    return f"{head}x-request-id: {request_id}\r\n\r\n".encode(), body


@functools.lru_cache(maxsize=1)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def envelope(
    status: int,
    text: str,
    *details: dict[str, Any],
    headers: tuple[tuple[str, str], ...] = (),
) -> Response:
    """The documented error: ``{"error": {"code", "message", "status", "details"}}``."""
    error = _error_fields(status, text, *details)
    return Response(status, json.dumps({"error": error}).encode(), headers=headers)


def _error_fields(status: int, text: str, *details: dict[str, Any]) -> dict[str, Any]:
    word = _STATUS_WORDS.get(status, "UNKNOWN")
    return {"code": status, "message": text, "status": word, "details": list(details)}


def invalid(field: str, description: str) -> Response:
    """A 400 whose details name the field."""
    violation = {"field": field, "description": description}
    detail = {"type": "type.googleapis.com/google.rpc.BadRequest", "field_violations": [violation]}
    return envelope(400, "The request is not valid.", detail)


def expired(at: float) -> Response:
    """The 401 of a token that expired at this time, in seconds since the epoch."""
    when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    challenge = f'Bearer error="invalid_token", error_description="Jwt expired at {when}"'
    return Response(401, b'{"error": "token expired"}', headers=(("WWW-Authenticate", challenge),))


def oauth_error(error: str) -> bytes:
    """The body of an error of the token endpoint (RFC 6749, section 5.2)."""
    return json.dumps(
        {"error": error, "error_description": "Scripted or refused by the sandbox."}
    ).encode()


def scripted(
    status: int,
    body: ErrorBody | bytes,
    content_type: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> Response:
    """A response that a test asks for, usually an error.

    Raises ValueError for a status that ends no exchange, and for a shape that is not an
    :data:`ErrorBody`.
    """
    if not 200 <= status <= 599:
        raise ValueError(f"status must be that of a final answer, 200 to 599, not {status}")
    content, own_type = (body, JSON) if isinstance(body, bytes) else _shaped(status, body)
    return Response(status, content, own_type if content_type is None else content_type, headers)


def _shaped(status: int, shape: ErrorBody) -> tuple[bytes, str | None]:
    """The body of an error in this shape, and the content type that belongs to it."""
    phrase = _REASONS.get(status, "Unknown")
    detail = {"type_url": "type.googleapis.com/google.rpc.DebugInfo", "value": "c2NyaXB0ZWQ="}
    fields = _error_fields(status, f"{phrase} (scripted).", detail)
    problem = {"type": "about:blank", "title": phrase, "status": status, "detail": "Scripted."}
    title = f"<title>{status} {phrase}</title>"
    page = f"<html>\r\n<head>{title}</head>\r\n<body><h1>{phrase}</h1></body>\r\n</html>\r\n"
    line = "upstream connect error or disconnect/reset before headers"
    shapes: dict[str, tuple[bytes, str | None]] = {
        "envelope": (json.dumps({"error": fields}).encode(), JSON),
        "flat": (json.dumps(fields).encode(), JSON),
        "problem": (json.dumps(problem).encode(), _PROBLEM),
        "html": (page.encode(), "text/html"),
        "text": (line.encode(), "text/plain"),
        "empty": (b"", None),
        "string": (json.dumps({"error": phrase.lower()}).encode(), JSON),
    }
    if shape not in shapes:
        raise ValueError(f"no such shape of an error's body: {shape!r}")
    return shapes[shape]


def retry_after_header(retry_after: float | str | None) -> tuple[tuple[str, str], ...]:
    """The header Retry-After with these seconds or this text; no header for None."""
    if retry_after is None:
        return ()
    if isinstance(retry_after, float) and retry_after.is_integer():
        retry_after = int(retry_after)
    return (("Retry-After", str(retry_after)),)


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as the API writes a time (RFC 3339, UTC)."""
    when = datetime.fromtimestamp(seconds, UTC)
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


def media_type(content_type: str | None) -> str:
    """The media type of a Content-Type header, in lower case, without parameters."""
    return (content_type or "").partition(";")[0].strip().lower()


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: JSON's escapes can spell half of a surrogate pair."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


NO_SUCH_PATH: Final = envelope(404, "There is nothing at this path.")
NO_SUCH_MESSAGE: Final = envelope(
    404,
    "There is no such message.",
    {"@type": "type.googleapis.com/google.rpc.ResourceInfo", "resource_type": "message"},
)
UNAUTHENTICATED: Final = envelope(
    401, "The request needs credentials.", headers=(("WWW-Authenticate", "Bearer"),)
)
INVALID_CREDENTIALS: Final = Response(
    401,
    json.dumps(
        {
            "type": "about:blank",
            "title": "Unauthorized",
            "status": 401,
            "detail": "These credentials do not hold.",
        }
    ).encode(),
    _PROBLEM,
    (("WWW-Authenticate", 'Basic realm="Realm"'),),
)
