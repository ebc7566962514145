"""The checks of all arguments, before a request is made.

An invalid argument raises :class:`InvalidArgumentError`, whose text does not repeat the argument:
arguments get mixed up, and this one may be a secret or a message's contents. Two arguments hold a
secret: the key and the proxy's URL. The functions that check these return the problem, because the
traceback of an exception would hold the secret in its frames.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeVar

import attrs
from yarl import URL

from ..enums import Region
from ..errors import InvalidArgumentError
from .scrub import forms, scrub

__all__ = [
    "MAX_METADATA",
    "Credentials",
    "Proxy",
    "basic_authorization",
    "checked_credentials",
    "checked_filter",
    "checked_id",
    "checked_metadata",
    "checked_moment",
    "checked_origin",
    "checked_page_size",
    "checked_proxy",
    "checked_word",
    "encodes",
    "regional_origin",
]

_Word = TypeVar("_Word", bound=StrEnum)

MAX_METADATA: Final = 1024
"""Characters. The request schema names no limit; the specification's response field says up to
1,024."""

MAX_FILTER: Final = 1024
"""Characters of a filter of the list. The API names no limit; a request's head must stay below a
few KiB."""

MAX_PAGE_SIZE: Final = 1000
"""Messages of one page of the list, at most (the API's own limit)."""

# RFC 3986's unreserved characters: a text of these needs no escaping, so no escaping can go wrong.
_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,256}")
# One or more DNS labels (RFC 1035, section 2.3.4). The resolver raises UnicodeError for other
# texts.
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


@attrs.frozen
class Credentials:
    """A project's access key. It compares by value, so a rotated secret makes another key."""

    key_id: str
    key_secret: str = attrs.field(repr=False)
    _forms: tuple[str, ...] = attrs.field(
        default=attrs.Factory(lambda self: _searched(self), takes_self=True),
        init=False,
        repr=False,
        eq=False,
    )

    def scrub(self, text: str) -> str:
        """The text without the secret in any of its encodings."""
        return scrub(text, self._forms)


def _searched(credentials: Credentials) -> tuple[str, ...]:
    basic = basic_authorization(credentials).removeprefix("Basic ").rstrip("=")
    url_safe = basic.replace("+", "-").replace("/", "_")
    return forms(credentials.key_secret, basic, url_safe)


class Proxy:
    """An HTTP proxy and the credentials that it asks for."""

    __slots__ = ("authorization", "url")

    def __init__(self, url: URL, authorization: str | None) -> None:
        self.url = url
        self.authorization = authorization

    @property
    def on_this_machine(self) -> bool:
        """Whether it is reached without a network."""
        return _is_loopback(self.url.raw_host or "")

    def headers(self) -> dict[str, str]:
        return {} if self.authorization is None else {"Proxy-Authorization": self.authorization}


# Credentials


def checked_credentials(key_id: object, key_secret: object) -> Credentials | str:
    """The credentials, or what is wrong with them."""
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


def basic_authorization(credentials: Credentials) -> str:
    """The Authorization value of HTTP Basic (RFC 7617)."""
    pair = f"{credentials.key_id}:{credentials.key_secret}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")


# Ids, metadata, words


def checked_id(name: str, value: object) -> str:
    """A project or message id that cannot reach another path, or InvalidArgumentError."""
    if type(value) is str and _ID.fullmatch(value) is not None and value not in (".", ".."):
        return value  # nearly always
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a str, not {type(value).__name__}")
    if _ID.fullmatch(value) is None or value in (".", ".."):
        at = next((at for at, character in enumerate(value) if not _ID.fullmatch(character)), None)
        fault = f"{len(value)} characters" if at is None else f"{value[at]!a} at {at}"
        raise InvalidArgumentError(
            f"{name} must be 1 to 256 letters, digits, '-', '.', '_' or '~', and not '.' or '..', "
            f"but has {fault}"
        )
    return value


def checked_metadata(value: object) -> str:
    """Metadata that the API takes, or InvalidArgumentError."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"metadata must be a str, not {type(value).__name__}")
    if len(value) > MAX_METADATA:
        raise InvalidArgumentError(
            f"metadata must be at most {MAX_METADATA:,} characters, not {len(value):,}"
        )
    if not value.isascii() and not encodes(value):
        raise InvalidArgumentError("metadata must encode to UTF-8: it holds a lone surrogate")
    return value


def checked_word(name: str, words: type[_Word], value: object) -> _Word:
    """The member of an enum that a word names, in upper or lower case.

    Or InvalidArgumentError.
    """
    word = _member(words, value)
    if word is None:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(words)}")
    return word


def _member(words: type[_Word], value: object) -> _Word | None:
    if not isinstance(value, str):
        return None
    return next((member for member in words if member.value.lower() == value.lower()), None)


# Filters of the list


def checked_filter(name: str, value: object) -> str:
    """The text of a filter, or InvalidArgumentError."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a str, not {type(value).__name__}")
    if not 1 <= len(value) <= MAX_FILTER:
        raise InvalidArgumentError(
            f"{name} must be 1 to {MAX_FILTER:,} characters, not {len(value):,}"
        )
    if not encodes(value):
        raise InvalidArgumentError(f"{name} must encode to UTF-8: it holds a lone surrogate")
    return value


def checked_moment(name: str, value: object) -> datetime:
    """A moment in UTC, or InvalidArgumentError."""
    if not isinstance(value, datetime):
        raise InvalidArgumentError(f"{name} must be a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidArgumentError(f"{name} must be an aware datetime: it has no time zone")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidArgumentError(
            f"{name} must be a moment between the years 1 and 9999 of UTC"
        ) from None


def checked_page_size(value: object) -> int:
    """The messages of a page, or InvalidArgumentError."""
    if type(value) is not int or not 1 <= value <= MAX_PAGE_SIZE:
        raise InvalidArgumentError(f"page_size must be a whole number from 1 to {MAX_PAGE_SIZE:,}")
    return value


# Origins and proxies


def checked_origin(name: str, value: object) -> str:
    """``https://host[:port]``, or ``http`` to this machine, without a trailing slash.

    Or InvalidArgumentError.
    """
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a str, not {type(value).__name__}")
    url = _http_url(value)
    if url is None or not value.isascii() or not value.isprintable():
        raise InvalidArgumentError(
            f"{name} must be an origin such as https://us.conversation.api.sinch.com"
        )
    if any(sign in value for sign in "@?#") or url.raw_path not in ("", "/"):
        raise InvalidArgumentError(
            f"{name} must be an origin alone, without user, path, query or fragment"
        )
    if url.scheme == "http" and not _is_loopback(url.raw_host or ""):
        raise InvalidArgumentError(
            f"{name} must be https; http is for this machine only (127.0.0.1, ::1, localhost)"
        )
    return str(url.origin())


def regional_origin(region: object) -> str:
    """The API's origin for a region, in any case of its letters; or InvalidArgumentError."""
    word = _member(Region, region)
    if word is None:
        known = ", ".join(repr(str(member)) for member in Region)
        raise InvalidArgumentError(f"conversation_region must be one of {known}")
    return f"https://{word}.conversation.api.sinch.com"


def checked_proxy(value: str | URL | None) -> Proxy | str | None:
    """The proxy, or what is wrong with it."""
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
    if not encodes(pair):
        return "proxy must have a user and a password that encode to UTF-8"
    return Proxy(url.with_user(None), "Basic " + base64.b64encode(pair.encode()).decode("ascii"))


def _http_url(value: str | URL) -> URL | None:
    """The URL; None if it is not http or https, or if its host name is invalid."""
    if "\\" in str(value):
        return None  # some software reads it as a slash, and then finds another host in the URL
    try:
        url = URL(value)
        host = (
            url.raw_host if url.host else None
        )  # url.host decodes punycode, and raises if it is malformed
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


def encodes(text: str) -> bool:
    """Whether the text encodes to UTF-8: a lone surrogate does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
