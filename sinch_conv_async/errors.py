"""The errors of this package, as one tree.

::

    SinchError                              attempts
    ├── InvalidArgumentError (ValueError)   refused before anything was sent
    ├── ClientStateError (RuntimeError)     closed; another event loop, thread or forked process
    ├── TransportError                      no usable HTTP answer; sent
    │   └── CallTimeoutError (TimeoutError) attempt_timeout or timeout passed; last
    ├── TokenError                          no access token could be had
    ├── ResponseFormatError                 an answer that is not what the API promises; http_status
    └── ApiError                            the API answered with an error
        ├── BadRequestError 400   ├── AuthenticationError 401   ├── PermissionDeniedError 403
        ├── NotFoundError 404     ├── RateLimitedError 429      └── ServerError 5xx

Errors carry data as attributes, compare by identity, copy and pickle with every field, and never
carry a credential. They do not depend on JSON or HTTP libraries.
"""

# Each class is slots=False: a slotted class cannot also inherit TimeoutError's layout, and copy and
# pickle keep __dict__. Fields are positional and have defaults: BaseException.__reduce__ rebuilds
# an error from its args.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import attrs

__all__ = [
    "ApiError",
    "AuthenticationError",
    "BadRequestError",
    "CallTimeoutError",
    "ClientStateError",
    "ErrorDetail",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitedError",
    "ResponseFormatError",
    "ServerError",
    "SinchError",
    "TokenError",
    "TransportError",
]


_SHOWN: Final = 500  # characters


def _shortened(text: str) -> str:
    """A server's text may have a mebibyte, which is too much for a log line."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _shown(text: str) -> str:
    """Server text for a line of a log or a terminal: no line breaks, escapes or lone surrogates."""
    text = _shortened(text)
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def _repr(text: str | None) -> str:
    return repr(text and _shortened(text))


@attrs.define(slots=False, eq=False, repr=False)
class SinchError(Exception):
    """The root of every error that this package raises.

    ``attempts`` is the number of HTTP exchanges with the API that the call made before it gave up;
    ``str`` shows it if there were more than one. ``given_up`` says why the call was not tried again
    although it could have been, ``None`` where nothing kept it from that.
    """

    message: str = attrs.field(default="", repr=_repr)
    attempts: int = 0
    given_up: ClassVar[str | None] = None

    def __repr__(self) -> str:
        # One for all classes: attrs takes a fifth of a millisecond to make another.
        fields = (
            (field.name, getattr(self, field.name), field.repr)
            for field in attrs.fields(type(self))
            if field.repr
        )
        shown = (
            f"{name}={show(value) if callable(show) else repr(value)}"
            for name, value, show in fields
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def give_up(self, reason: str) -> None:
        """Record why the call is not tried again.

        It is not an argument of the class, but copies and pickles keep it.
        """
        self.__dict__["given_up"] = reason

    def __str__(self) -> str:
        attempts = f" (after {self.attempts} attempts)" if self.attempts > 1 else ""
        given_up = f"; not tried again: {self.given_up}" if self.given_up else ""
        return f"{self.summary()}{attempts}{given_up}"

    def summary(self) -> str:
        """What went wrong, on one line, without the number of attempts."""
        return _shown(self.message)


class InvalidArgumentError(SinchError, ValueError):
    """An argument is invalid; nothing was sent."""


class ClientStateError(SinchError, RuntimeError):
    """The client is closed, or belongs to another event loop, thread or process."""


@attrs.define(slots=False, eq=False, repr=False)
class TransportError(SinchError):
    """No usable HTTP answer came.

    ``sent`` is ``"no"`` if no request of this call can have reached the server. Otherwise it is
    ``"maybe"``: the update may have been applied.
    """

    sent: Literal["no", "maybe"] = "maybe"


@attrs.define(slots=False, eq=False, repr=False)
class CallTimeoutError(TransportError, TimeoutError):
    """``attempt_timeout`` or ``timeout`` passed, or will pass before the call can be sent.

    ``last`` is the error of the attempt before, or the reason for the missing access token, if
    there is one; ``str`` ends with it.
    """

    last: SinchError | None = None

    def __str__(self) -> str:
        last = f"; last failure: {self.last.summary()}" if self.last else ""
        return f"{super().__str__()}{last}"


@attrs.define(slots=False, eq=False, repr=False)
class TokenError(SinchError):
    """No access token could be had.

    ``error`` is the OAuth 2.0 error code of the token endpoint, such as ``invalid_client`` (RFC
    6749, section 5.2), or ``None``. ``http_status`` is the endpoint's last HTTP status, ``None`` if
    it gave no answer. ``extra`` holds all other fields of its answer, such as ``error_description``
    and ``error_hint``.
    """

    error: str | None = None
    http_status: int | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict, repr=False)

    @property
    def refused(self) -> bool:
        """Whether the endpoint refused the key, so that asking again is useless."""
        status = self.http_status
        return status is not None and 400 <= status < 500 and status not in (408, 429)


@attrs.define(slots=False, eq=False, repr=False)
class ResponseFormatError(SinchError):
    """An answer differs from the API's documentation.

    The text says where: ``... @ $.channel_identity.channel``. ``http_status`` 200 means that the
    update was applied.
    """

    http_status: int | None = None


@attrs.frozen
class ErrorDetail:
    """One entry of an error's ``details``: a ``type_url`` and, where one came, its ``value``.

    The API uses three names for the type (``type_url``, ``@type``, ``type``); ``type_url`` has it
    in each case. All other fields, such as ``field_violations`` or a problem document's
    ``pointer``, are in ``extra``.
    """

    type_url: str | None = attrs.field(default=None, repr=_repr)
    value: str | None = attrs.field(default=None, repr=_repr)
    extra: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=False)


@attrs.define(slots=False, eq=False, repr=False)
class ApiError(SinchError):
    """The API answered with an error.

    ``code``, ``message``, ``status`` and ``details`` are the wire's fields (``error`` object of the
    specification's 400, 403, 500 and 501 answers), ``None`` or empty where the answer had none.
    ``http_status`` is the status of the HTTP answer, and may differ from ``code``. ``retry_after``
    is in seconds, ``None`` if the server gave none. ``request_id`` is the id from the answer's
    headers, for Sinch's support. ``body`` is the answer's first 2 KiB as text; it never shows in
    ``str``, ``repr`` or logs. ``str`` and ``repr`` show at most 500 characters of ``message``, and
    escape characters that do not belong into a log line.
    """

    code: int | None = None
    status: str | None = attrs.field(default=None, repr=_repr)
    details: tuple[ErrorDetail, ...] = ()
    http_status: int = 0
    retry_after: float | None = None
    request_id: str | None = None
    body: str = attrs.field(default="", repr=False)
    extra: Mapping[str, Any] = attrs.field(factory=dict, repr=False)

    def summary(self) -> str:
        """Status, message and request id, on one line."""
        status = f" {_shown(self.status)}" if self.status else ""
        message = f": {_shown(self.message)}" if self.message else ""
        request_id = f" (request id {_shown(self.request_id)})" if self.request_id else ""
        return f"{self.http_status}{status}{message}{request_id}"


class BadRequestError(ApiError):
    """400: the API does not accept the request."""


class AuthenticationError(ApiError):
    """401: the API refused the credentials, also after one renewal of the access token."""


class PermissionDeniedError(ApiError):
    """403: the key may not do this in this project."""


class NotFoundError(ApiError):
    """404: the message does not exist in this project and region."""


class RateLimitedError(ApiError):
    """429: the project's limit was exceeded.

    The server asks for a longer wait than the retry policy allows, or the project received only
    429s for a minute.
    """


class ServerError(ApiError):
    """5xx: the API or a gateway before it failed."""
