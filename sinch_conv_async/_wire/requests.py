"""Requests: their values, and how they go over the wire.

``arguments`` has checked all parts of a request, so no part can end its line of the head.
"""

from __future__ import annotations

from typing import Final

from yarl import URL

__all__ = [
    "MAX_RESPONSE",
    "VERSION",
    "Head",
    "Request",
    "messages_path",
    "request_head",
    "request_headers",
    "serialized",
    "token_request",
]

VERSION: Final = "0.1.0"
"""This package's version, for the User-Agent. Written out: looking it up in the installed metadata
takes a millisecond at import."""

MAX_RESPONSE: Final = 1024 * 1024
"""Bytes that a response may have, before and after decompression. A message with its contents has a
few KiB.
"""

_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"


class Request:
    """One request, ready to be sent as often as it takes.

    ``body``: ``None`` for a request without one. ``message_id``: the message that the response must
    be about, if it is about one. ``max_response``: bytes that the response may have.

    Written out, as :class:`Head` is: one is made for each call.
    """

    __slots__ = (
        "body",
        "content_type",
        "max_response",
        "message_id",
        "method",
        "origin",
        "target",
    )

    def __init__(
        self,
        method: str,
        origin: str,
        target: str,
        body: bytes | None = None,
        content_type: str = _JSON,
        message_id: str = "",
        max_response: int = MAX_RESPONSE,
    ) -> None:
        self.method = method
        self.origin = origin
        self.target = target
        self.body = body
        self.content_type = content_type
        self.message_id = message_id
        self.max_response = max_response

    @property
    def url(self) -> URL:
        return URL(self.origin + self.target, encoded=True)


class Head:
    """The lines that the heads of all requests to one origin with one token share.

    A class of its own so that no repr shows the token. Written out, because importing the package
    must cost little, and attrs takes half a millisecond for a class.
    """

    __slots__ = ("lines",)

    def __init__(self, lines: str) -> None:
        self.lines = lines


def messages_path(project_id: str) -> str:
    """The beginning of the path of every message of a project, up to the message's id."""
    return f"/v1/projects/{project_id}/messages/"


def token_request(auth_origin: str) -> Request:
    """The request for a token by client credentials (RFC 6749, section 4.4.2).

    The key goes into its Authorization header.
    """
    return Request("POST", auth_origin, "/oauth2/token", b"grant_type=client_credentials", _FORM)


def request_headers(request: Request, authorization: str, user_agent: str) -> dict[str, str]:
    """The header fields of a request, except Host and Content-Length."""
    fields = {
        "Authorization": authorization,
        "Accept": _JSON,
        "Accept-Encoding": "identity",
        "User-Agent": user_agent,
    }
    return fields if request.body is None else {**fields, "Content-Type": request.content_type}


def request_head(request: Request, authorization: str, user_agent: str) -> Head:
    """The lines that all requests to this request's origin share (RFC 9112, sections 3 and 5)."""
    fields = {
        "Host": request.url.host_port_subcomponent,
        **request_headers(request, authorization, user_agent),
    }
    fields.pop("Content-Type", None)
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return Head(f" HTTP/1.1\r\n{lines}")


def serialized(request: Request, head: Head) -> bytes:
    """The request as it goes over the wire."""
    body = request.body
    lines = f"{request.method} {request.target}{head.lines}"
    if body is None:
        return f"{lines}\r\n".encode("ascii")
    about = f"Content-Type: {request.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"{lines}{about}".encode("ascii") + body
