"""The parts of aiohttp that this package uses without a promise of aiohttp's documentation.

The fast route needs all of ``FAST_ROUTE``. Before the first request :func:`differences` checks that
each part exists and accepts the arguments. If anything differs, requests go by aiohttp's session,
the public route. aiohttp's version number does not matter: a new release without such a change
keeps the fast route.

The public route needs ``PUBLIC_ROUTE``, which is not checked. ``nox -s next`` runs all tests with
aiohttp's main branch and with its pre-releases.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Final, NamedTuple

import aiohttp
import aiohttp.http

__all__ = ["FAST_ROUTE", "PUBLIC_ROUTE", "Part", "differences"]


class Part(NamedTuple):
    """A class's attribute or method.

    ``arguments``: the names of the arguments of a call, with ``=`` after keyword arguments;
    ``None`` if it is not called.
    """

    path: str
    reason: str
    arguments: tuple[str, ...] | None = None
    awaited: bool = False

    @property
    def name(self) -> str:
        """The class and its attribute, without the module."""
        return ".".join(self.path.split(".")[-2:])


FAST_ROUTE: Final = (
    Part(
        "ClientRequest.__init__",
        "tells where to connect to; aiohttp's session makes one for each request",
        ("self", "method", "url", "loop="),
    ),
    Part(
        "TCPConnector._create_connection",
        "opens and secures a connection that is kept outside of aiohttp's pool",
        ("self", "req", "traces", "timeout"),
        awaited=True,
    ),
    Part("client_proto.ResponseHandler.transport", "is written to, watched and closed"),
    Part(
        "client_proto.ResponseHandler.should_close",
        "says that a connection was closed, or has received something, while it was opened",
    ),
    Part("client_proto.ResponseHandler.close", "ends such a connection", ("self",)),
    Part(
        "http.HttpResponseParser.__init__",
        "makes a parser for the next answer, which belongs to none of aiohttp's connections",
        ("self", "protocol", "loop", "limit", "read_until_eof=", "auto_decompress="),
    ),
    Part(
        "http.HttpResponseParser.feed_data",
        "gives the heads that are complete, and their bodies' streams",
        ("self", "data"),
    ),
    Part(
        "http.HttpResponseParser.feed_eof",
        "completes a body that ends with its connection",
        ("self",),
    ),
    Part("http_parser.RawResponseMessage.code", "the status of what was parsed"),
    Part("http_parser.RawResponseMessage.headers", "the header fields of what was parsed"),
    Part(
        "http_parser.RawResponseMessage.should_close",
        "says that the server does not keep the connection",
    ),
)

PUBLIC_ROUTE: Final = (
    Part(
        "TCPConnector.connect",
        "is where aiohttp's session asks for a connection, which is looked at before it is used",
        ("self", "req", "traces=", "timeout="),
        awaited=True,
    ),
    Part("connector.Connection.transport", "puts a watch between the transport and aiohttp"),
    Part("connector.Connection.protocol", "is what the watch passes everything on to"),
    Part("connector.Connection.close", "ends a connection that cannot be used again", ("self",)),
    Part(
        "connector.Connection.add_callback",
        "tells the watch when the connection goes back into the pool",
        ("self", "callback"),
    ),
    Part(
        "client_proto.ResponseHandler.should_close", "says that the server has ended the connection"
    ),
    Part(
        "TCPConnector.__del__",
        "is kept from closing a parent's connections in a forked child",
        ("self", "_warnings"),
    ),
    Part(
        "tracing.Trace.send_connection_create_end",
        "is run once the connection is held, or a hook that raises would lose it",
        ("self",),
        awaited=True,
    ),
    Part(
        "tracing.Trace.send_connection_reuseconn",
        "is run once the connection is held, or a hook that raises would lose it",
        ("self",),
        awaited=True,
    ),
    Part("http.HttpProcessingError", "is raised by the parser where the answer is not HTTP"),
)


_SAMPLE: Final = b"HTTP/1.1 200 OK\r\nX-Sample: yes\r\nContent-Length: 2\r\n\r\n{}"


def differences() -> list[str]:
    """The differences from what the fast route needs; empty if the fast route can be used."""
    found = (_difference(part, _looked_up(part.path)) for part in FAST_ROUTE)
    named = [f"{part.name} {what}" for part, what in zip(FAST_ROUTE, found, strict=True) if what]
    if named:
        return named
    problem = _reading_problem(aiohttp.http.HttpResponseParser)
    return [] if problem is None else [f"HttpResponseParser reads a sample otherwise ({problem})"]


class _Stream:
    """A replacement for the connection of a parser."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, **_options: bool) -> None: ...


@functools.cache
def _reading_problem(parser_class: Any) -> str | None:
    """What is wrong with the parser's result for a sample.

    A parser in C cannot be inspected otherwise.
    """
    try:
        parser = parser_class(
            _Stream(), object(), len(_SAMPLE), read_until_eof=True, auto_decompress=False
        )
        ((message, body),), _, _ = parser.feed_data(_SAMPLE)
        found = (
            message.code,
            message.headers.get("x-sample"),
            message.should_close,
            body.read_nowait(),
            body.is_eof(),
        )
    except Exception as error:  # noqa: BLE001  # any error of a changed parser
        return f"{type(error).__name__}: {error}"
    return None if found == (200, "yes", False, b"{}", True) else f"got {found}"


def _looked_up(path: str) -> Any:
    """The object at this path in aiohttp; ``None`` if a part of the path is missing."""
    found: Any = aiohttp
    for word in path.split("."):
        if found is not None:  # None has attributes, too, so test for it
            found = inspect.getattr_static(found, word, None)
    return found


@functools.cache  # cached: a signature takes 0.1 ms, and a manager may bind to many event loops
def _difference(part: Part, value: Any) -> str | None:
    if value is None:
        return "is gone"
    if part.arguments is None:
        return None
    try:
        by_name = {name.removesuffix("="): None for name in part.arguments if name.endswith("=")}
        in_order = [name for name in part.arguments if not name.endswith("=")]
        inspect.signature(value).bind(*in_order, **by_name)
    except (TypeError, ValueError) as error:
        return f"takes other arguments ({error})"
    if part.awaited and not inspect.iscoroutinefunction(value):
        return "is not awaited any more"
    return None
