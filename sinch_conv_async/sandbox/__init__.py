"""A stand-in for the Conversation API's metadata update and its OAuth2 token endpoint, on one loopback port.

It is for tests and demonstrations: it answers as the API does, keeps a record of what arrived, and misbehaves
on request. It imports nothing of this package, so that it cannot share the client's mistakes, and it speaks
JSON and HTTP/1.1 as text: what goes over the wire is written here by hand.

It refuses to know what a client ought to do about an answer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import os
import re
import secrets
import socket
import ssl as tls
import struct
import time
import warnings
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar, cast, get_args
from urllib.parse import parse_qs, unquote

import attrs
from aiohttp import web

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "ClientOptions",
    "DropPoint",
    "ErrorBody",
    "Sandbox",
    "SandboxMessage",
    "SandboxRequest",
    "SandboxTokenRequest",
    "TokenRefusal",
]

ErrorBody = Literal["envelope", "flat", "problem", "html", "text", "empty", "string"]
"""The shapes in which errors have been seen: the documented ``{"error": {...}}``, the same without ``error``,
an RFC 9457 problem document, a gateway's HTML page or line of text, no body, and ``{"error": "text"}``."""

DropPoint = Literal["before_answer", "mid_headers", "mid_body", "after_answer"]
"""How far an answer gets before the connection is closed."""

TokenRefusal = Literal["expired", "revoked"]
"""The two forms of a 401: with ``Jwt expired at ...`` in a Bearer challenge, or as a problem document."""

# "Up to 1024 characters long", the specification says of the response's field.
_MAX_METADATA: Final = 1024
_MESSAGES_SOURCES: Final = frozenset({"CONVERSATION_SOURCE", "DISPATCH_SOURCE"})
_MESSAGE_PATH: Final = re.compile(r"/v1/projects/([^/]+)/messages(?:/([^/]+))?")
_OAUTH2_PATH: Final = "/oauth2/token"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
_LOOPBACK_OF: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where to reach a server that listens on all addresses
_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"
# Enough for a cold burst of thousands of connections; the kernel cuts it to its own limit.
_BACKLOG: Final = 4096

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

_T = TypeVar("_T")


def _quotes_no_request(record: logging.LogRecord) -> bool:
    # aiohttp logs a malformed request with the line it stumbled over, which may be the one with the credentials.
    # (Told by their module, so that `aiohttp.web` is all that is imported here.)
    return not record.exc_info or type(record.exc_info[1]).__module__ != "aiohttp.http_exceptions"


_log: Final = logging.getLogger(__name__)
_log.addFilter(_quotes_no_request)


class ClientOptions(TypedDict):
    """What ``ConversationClient(**options)`` takes to speak to a sandbox instead of the real service."""

    project_id: str
    key_id: str
    key_secret: str
    conversation_origin: str
    auth_origin: str


@attrs.define(eq=False, kw_only=True)
class SandboxMessage:
    """A message that the sandbox knows; change its attributes at will, the next answer shows them.

    The attributes are the fields of the API's answer. ``direction`` decides whether the answer carries an
    ``app_message`` (``TO_CONTACT``) or a ``contact_message`` (anything else), with ``text`` in it.

    ``extra`` is laid over the answer's fields as it is, to add some or to give them odd values;
    the fields named in ``omit`` are left out. ``updates`` counts how often the metadata was written.
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


@attrs.define(eq=False)
class SandboxRequest:
    """One request to the API as it arrived, and what became of it.

    ``time`` is the arrival in seconds of the sandbox's monotonic clock. ``metadata`` is None where the body held
    none that is text. ``status`` is None until the request is answered, and stays None where it never is
    (a dropped connection, a cut answer). ``applied`` tells whether the message was changed, answered or not.
    ``headers`` (names in lower case) are kept only by ``Sandbox(keep_headers=True)``.
    """

    number: int
    time: float
    method: str
    project_id: str | None
    message_id: str | None
    query: str = attrs.field(repr=False)
    metadata: str | None = attrs.field(repr=False)
    headers: dict[str, str] | None = attrs.field(repr=False)
    # Only where it is not the usual path of the two ids: one string less for each of a million records.
    _path: str | None = attrs.field(repr=False, alias="path")
    status: int | None = None
    applied: bool = False

    @property
    def path(self) -> str:
        """The path of the request's target, percent-encoded as it came, without the query."""
        return self._path or f"/v1/projects/{self.project_id}/messages/{self.message_id}"

    @property
    def messages_source(self) -> str | None:
        """The query parameter ``messages_source``, or None where the request has none."""
        sources = _messages_sources(self.query)
        return sources[0] if sources else None


@attrs.define(eq=False)
class SandboxTokenRequest:
    """One request to the token endpoint as it arrived.

    ``key_id`` is the user name of its Basic credentials, or None without any; ``status`` is None until it is
    answered, and stays None where it never is.
    """

    number: int
    time: float
    key_id: str | None
    status: int | None = None


@attrs.frozen
class _Answer:
    status: int
    body: bytes = b""
    content_type: str | None = _JSON
    headers: tuple[tuple[str, str], ...] = ()


@attrs.define(eq=False)
class _Key:
    id: str
    secret: str = attrs.field(repr=False)
    projects: set[str] = attrs.field(factory=set[str], repr=False)


@attrs.define(eq=False)
class _Project:
    id: str
    key: _Key
    rate_limit: int | None
    arrivals: deque[float] = attrs.field(factory=deque[float], repr=False)

    def admits(self, now: float) -> bool:
        """Count an arrival, unless the second before it already holds as many as the limit allows."""
        if self.rate_limit is None:
            return True
        arrivals = self.arrivals
        while arrivals and arrivals[0] <= now - 1.0:
            arrivals.popleft()
        if len(arrivals) >= self.rate_limit:
            return False
        arrivals.append(now)
        return True


@attrs.define(eq=False)
class _Token:
    key: _Key
    expires_at: float
    revoked: bool = False


@attrs.define(eq=False, kw_only=True)
class _Script:
    """What is to happen to the next requests. Without `answer`, `raw`, `drop` or `swap` they are served as usual."""

    remaining: int
    message_id: str | None = None
    applied: bool = False
    order: int = 0
    answer: _Answer | None = None
    raw: bytes | None = None
    close: bool = False
    drop: DropPoint | None = None
    reset: bool = False
    swap: bool = False
    delay: float = 0.0
    seconds_per_byte: float | None = None
    unsolicited: Callable[[str | None], bytes] | None = None
    after: float = 0.0

    @property
    def replaces(self) -> bool:
        """Whether the answer is scripted, so that credentials and pace do not matter."""
        return (
            self.answer is not None
            or self.raw is not None
            or self.swap
            or self.drop not in (None, "after_answer")
        )


@attrs.define(eq=False, kw_only=True)
class _TokenScript:
    remaining: int
    answer: _Answer | None = None
    fields: Mapping[str, Any] | None = None
    drop: bool = False
    delay: float = 0.0


class _Tally:
    """Counts events, and wakes those who wait for the n-th."""

    def __init__(self) -> None:
        self.count = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def add(self) -> None:
        self.count += 1
        for number, future in self._waiters:
            if number <= self.count and not future.done():
                future.set_result(None)

    async def reaches(self, number: int) -> None:
        if self.count >= number:
            return
        waiter = (number, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiters.remove(waiter)


class _Written(web.StreamResponse):
    """Tells aiohttp that the answer has been written already, and whether the connection lives on."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._lives = keep_alive

    @property
    def keep_alive(self) -> bool:
        return self._lives

    async def prepare(self, request: web.BaseRequest) -> None:
        pass

    async def write_eof(self, data: bytes = b"") -> None:
        pass


_KEPT: Final = _Written(keep_alive=True)
_CLOSED: Final = _Written(keep_alive=False)


class _Server(web.Server):
    """aiohttp's low-level server, which also knows the transports of its connections."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(handler, access_log=None, logger=_log)
        self.transports: dict[web.RequestHandler, asyncio.Transport] = {}
        self.peak = 0
        self.closing = False

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.transports[handler] = transport
        self.peak = max(self.peak, len(self.transports))
        if self.closing:
            # Accepted just before the listening socket was closed.
            transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.transports.pop(handler, None)


class Sandbox:
    """A Conversation API of one's own for tests: ``async with Sandbox() as sandbox``.

    It serves, on one port, ``PATCH`` and ``GET /v1/projects/{project_id}/messages/{message_id}``, the list at ``GET
    /v1/projects/{project_id}/messages`` with its filters and page tokens, and ``POST /oauth2/token``.

    :param project_id: the project it starts with; :meth:`add_project` adds others.
    :param key_id: the access key of that project, made up unless given.
    :param key_secret: the key's secret, likewise.
    :param rate_limit: requests that the project may send in any window of one second, counted as they arrive;
        beyond it they get 429 without Retry-After, and are not counted. None (default): no limit.
        The real service allows 800.
    :param token_lifetime: seconds a token is good for, by a monotonic clock.
    :param token_burst: requests that the token endpoint allows at once,
    :param token_rate: and a second from then on; beyond it they get 429 without Retry-After. None: no limit.
    :param latency: seconds added before each answer of the API. May be changed at any time.
    :param host: the address to listen on.
    :param port: the port to listen on; 0 (default) takes a free one.
    :param ssl: a server's context, to speak https.
    :param auto_create: answer for any message id, as though the message had been there.
    :param keep_requests: how many of the latest requests to remember in ``requests`` and
        ``token_requests``; None (default): all.
    :param keep_headers: remember the headers of API requests too, credentials included.
    :param clock: what arrivals, rate limits and lifetimes are measured with, in seconds.

    Its attributes, besides ``latency``:

    ``messages``
        The messages it knows (:class:`SandboxMessage`), by id.
    ``requests``, ``token_requests``
        What arrived at the API (:class:`SandboxRequest`) and at the token endpoint
        (:class:`SandboxTokenRequest`), oldest first. Plain lists: clear them at will, the numbering goes on.
    ``next_token``
        The text of the next token to be issued, used once. None: a random one.
    ``updates_applied``, ``peak_in_flight``
        How many updates changed a message, and how many API requests waited for their answer at most.

    A request is dealt with in this order:

    1. It is recorded once it has arrived in full. What is due with every so many requests (:meth:`every`) is done.
       The oldest script that fits it (``fail_next`` and its like) is taken: each request takes one at most, and
       takes it on arrival.
    2. If no script replaces the answer: an unknown path gets 404 and another method 405; bad credentials get 401,
       those of another project 403; what is then too fast gets 429. Only requests that come this far, and are not
       refused here, count against ``rate_limit``.
    3. It waits while answers are held (:meth:`hold`), and for ``latency`` and its script's delay. Credentials are
       looked at again after a wait, so that a token which expires meanwhile gets 401.
    4. The body and the query are checked (400), the message is looked up (404), changed, and answered (200).
       A caller who has gone by then does not keep the message from being changed, as with any server.

    The sandbox belongs to the event loop that started it. Closing it resets its connections; started again, it
    listens on the same port, so that the two together make an outage. All else is kept over the pause.
    """

    def __init__(
        self,
        *,
        project_id: str = "sandbox-project",
        key_id: str = "sandbox-key-id",
        key_secret: str = "sandbox-key-secret",  # noqa: S107 - made up, and good for nothing else
        rate_limit: int | None = None,
        token_lifetime: float = 3600,
        token_burst: int = 30,
        token_rate: float | None = 10,
        latency: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl: tls.SSLContext | None = None,
        auto_create: bool = False,
        keep_requests: int | None = None,
        keep_headers: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.latency = latency
        self.messages: dict[str, SandboxMessage] = {}
        self.requests: list[SandboxRequest] = []
        self.token_requests: list[SandboxTokenRequest] = []
        self.next_token: str | None = None
        self.updates_applied = 0
        self.peak_in_flight = 0

        self._host = host
        self._port = port
        self._ssl = ssl
        self._auto_create = auto_create
        self._keep_requests = keep_requests
        self._keep_headers = keep_headers
        self._clock = clock
        self._started_at = time.time()

        self._listener: asyncio.Server | None = None
        self._server: _Server | None = None
        self._peak_connections = 0
        self._busy: set[asyncio.Transport | None] = set()
        self._waiting: set[asyncio.Task[Any]] = set()
        self._in_flight = 0
        self._arrived = _Tally()
        self._token_requests_arrived = _Tally()
        self._unsolicited = _Tally()
        self._gate: asyncio.Event | None = None
        self._token_gate: asyncio.Event | None = None
        self._date = (0, "")
        self._listings = _Listings()

        self._orders = itertools.count()
        self._recurring: list[tuple[int, Callable[[], None]]] = []
        self._scripts: deque[_Script] = deque()
        self._scripts_of: dict[str, deque[_Script]] = {}
        self._token_scripts: deque[_TokenScript] = deque()

        self._keys: dict[str, _Key] = {}
        self._projects: dict[str, _Project] = {}
        self._tokens: dict[str, _Token] = {}
        self._refusal: TokenRefusal | None = None
        self._token_lifetime = token_lifetime
        self._token_burst = token_burst
        self._token_rate = token_rate
        self._token_credit = float(token_burst)
        self._token_credit_at = clock()

        self._default_project_id = project_id
        self.add_project(project_id, key_id=key_id, key_secret=key_secret, rate_limit=rate_limit)

    def __repr__(self) -> str:
        state = self.origin if self._listener is not None else "closed"
        return (
            f"<Sandbox {state} messages={len(self.messages)} requests={self._arrived.count} "
            f"applied={self.updates_applied} in_flight={self._in_flight} scripted={self.pending_faults}>"
        )

    def __del__(self) -> None:
        if getattr(self, "_listener", None) is not None:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    # Its life.

    async def start(self) -> None:
        """Listen. Does nothing where it does already; after :meth:`close`, takes the same port again.

        Raises OSError where the port is taken.
        """
        if self._listener is not None:
            return
        server = _Server(self._serve)
        listener = await asyncio.get_running_loop().create_server(
            server, self._host, self._port, ssl=self._ssl, backlog=_BACKLOG
        )
        self._port = listener.sockets[0].getsockname()[1]
        self._server = server
        self._listener = listener

    async def close(self) -> None:
        """Stop listening and abort every connection, at once. Closing twice is fine."""
        listener, self._listener = self._listener, None
        server, self._server = self._server, None
        if listener is None or server is None:
            return
        self._peak_connections = max(self._peak_connections, server.peak)
        server.closing = True
        # A connection that the loop has accepted takes two turns to get its transport, and asyncio loses it where
        # its server is closed in between. So accept no more, then let those arrive. (Windows' loop has no readers.)
        with contextlib.suppress(NotImplementedError):
            for listening in listener.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        listener.close()
        for task in tuple(self._waiting):
            task.cancel()
        for transport in tuple(server.transports.values()):
            transport.abort()
        # aiohttp forgets a connection when its task has ended, a few turns of the loop after the abort, and has
        # no event to tell of it.
        while server.connections:  # noqa: ASYNC110  # closing sockets call back nobody
            await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        """Start, serve until cancelled, and close: a program's main coroutine."""
        await self.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def port(self) -> int:
        """The port it listens on, or did before it was closed. Raises RuntimeError before the first start."""
        if not self._port:
            raise RuntimeError("the sandbox has no port before it is started")
        return self._port

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as ``http://127.0.0.1:40123``. Of one that listens on all addresses, the loopback's."""
        scheme = "http" if self._ssl is None else "https"
        host = _LOOPBACK_OF.get(self._host, self._host)
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{self.port}"

    @property
    def conversation_origin(self) -> str:
        """The origin of the Conversation API: :attr:`origin`."""
        return self.origin

    @property
    def auth_origin(self) -> str:
        """The origin of the token endpoint: :attr:`origin`."""
        return self.origin

    def client_options(self, project_id: str | None = None) -> ClientOptions:
        """The keyword arguments that make a ``ConversationClient`` speak to this sandbox, the secret included.

        For the project it was made with, unless another is named. Raises KeyError where it does not exist.
        """
        project = self._projects[self._default_project_id if project_id is None else project_id]
        return {
            "project_id": project.id,
            "key_id": project.key.id,
            "key_secret": project.key.secret,
            "conversation_origin": self.conversation_origin,
            "auth_origin": self.auth_origin,
        }

    # What it knows.

    def add_project(
        self, project_id: str, *, key_id: str, key_secret: str, rate_limit: int | None = None
    ) -> None:
        """Add a project with its access key and its rate limit, in requests a second.

        A key that is known already opens this project too. Raises ValueError where the project exists, or the
        key has another secret.
        """
        if project_id in self._projects:
            raise ValueError(f"project {project_id!r} exists already")
        key = self._keys.get(key_id)
        if key is None:
            key = self._keys[key_id] = _Key(key_id, key_secret)
        elif key.secret != key_secret:
            raise ValueError(f"key {key_id!r} exists already and has another secret")
        self._projects[project_id] = _Project(project_id, key, rate_limit)
        key.projects.add(project_id)

    def rotate_secret(self, key_id: str, new_secret: str) -> None:
        """Give a key another secret; the old one gets ``invalid_client`` from now on.

        Tokens that were issued stay good; :meth:`revoke_tokens` ends them. Raises KeyError for an unknown key.
        """
        self._keys[key_id].secret = new_secret

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
    ) -> SandboxMessage:
        """Add a message to a project (the first one, unless another is named), and return it.

        Its other fields are attributes of what is returned. ``accept_time`` is now unless given. A message of the
        same id is replaced. Raises KeyError where the project does not exist.
        """
        project = self._projects[self._default_project_id if project_id is None else project_id]
        message = self.messages[message_id] = SandboxMessage(
            id=message_id,
            metadata=metadata,
            project_id=project.id,
            accept_time=_timestamp(time.time()) if accept_time is None else accept_time,
            channel=channel,
            direction=direction,
            processing_mode=processing_mode,
            extra=dict(extra or {}),
            omit=omit,
        )
        return message

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return 0 if self._server is None else len(self._server.transports)

    @property
    def peak_connections(self) -> int:
        """How many connections were open at the same time, at most."""
        return max(self._peak_connections, 0 if self._server is None else self._server.peak)

    @property
    def in_flight(self) -> int:
        """How many API requests have arrived and wait for their answer now."""
        return self._in_flight

    @property
    def pending_faults(self) -> int:
        """How many requests the scripts that are left will still hit, the token endpoint's included."""
        scripts = itertools.chain(self._scripts, *self._scripts_of.values())
        return sum(script.remaining for script in scripts) + sum(s.remaining for s in self._token_scripts)

    async def wait_for_requests(self, number: int) -> None:
        """Return as soon as so many API requests have arrived since the sandbox was made."""
        await self._arrived.reaches(number)

    async def wait_for_token_requests(self, number: int) -> None:
        """Return as soon as so many token requests have arrived since the sandbox was made."""
        await self._token_requests_arrived.reaches(number)

    async def wait_for_unsolicited(self, number: int) -> None:
        """Return as soon as so many unsolicited answers have been written since the sandbox was made."""
        await self._unsolicited.reaches(number)

    # Holding answers back.

    def hold(self) -> None:
        """Let API requests arrive, and answer none of them until :meth:`release`."""
        if self._gate is None:
            self._gate = asyncio.Event()

    def release(self) -> None:
        """Answer what was held, in the order of arrival, and hold nothing more."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    @contextlib.asynccontextmanager
    async def holding(self) -> AsyncGenerator[None, None]:
        """:meth:`hold` on entry, :meth:`release` on exit."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def hold_tokens(self) -> None:
        """Let token requests arrive, and answer none of them until :meth:`release_tokens`."""
        if self._token_gate is None:
            self._token_gate = asyncio.Event()

    def release_tokens(self) -> None:
        """Answer the token requests that were held, and hold nothing more."""
        gate, self._token_gate = self._token_gate, None
        if gate is not None:
            gate.set()

    # Scripts for the API. In all of them `times` is the number of requests they hit, `message_id` restricts them to
    # requests for that message, and `applied` changes the message whatever the answer looks like.

    def fail_next(
        self,
        status: int,
        *,
        times: int = 1,
        retry_after: float | str | None = None,
        body: ErrorBody | bytes = "envelope",
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        applied: bool = False,
    ) -> None:
        """Answer the next requests with this status, whatever they ask.

        As in every script: it hits ``times`` requests, which are those for ``message_id`` where that is given.
        Raises ValueError where ``times`` is less than 1, the status is not that of a final answer, or ``body`` names no shape.

        :param retry_after: the header's seconds, or its text as it is to be sent (an HTTP date, garbage).
        :param body: one of the shapes of :data:`ErrorBody`, or the bytes to send.
        :param content_type: instead of the shape's own; bytes are ``application/json`` otherwise.
        :param headers: more headers.
        :param applied: change the message all the same, as a gateway's error after the fact does.
        """
        more = [] if headers is None else list(headers.items())
        if retry_after is not None:
            more.append(("Retry-After", _seconds(retry_after)))
        answer = _error(status, body, content_type, tuple(more))
        self._script(_Script(remaining=times, message_id=message_id, applied=applied, answer=answer))

    def redirect_next(
        self,
        status: int,
        location: str,
        *,
        times: int = 1,
        message_id: str | None = None,
        applied: bool = False,
    ) -> None:
        """Answer the next requests with a redirect to ``location``, which is sent as it is."""
        answer = _error(status, "empty", None, (("Location", location),))
        self._script(_Script(remaining=times, message_id=message_id, applied=applied, answer=answer))

    def drop_next(
        self,
        *,
        times: int = 1,
        when: DropPoint = "before_answer",
        reset: bool = False,
        message_id: str | None = None,
        applied: bool = False,
    ) -> None:
        """Close the connection of the next requests.

        :param when: before a byte of the answer, halfway through its headers or its body (which promise a 200
            for a request in order), or ``after_answer``: served as usual, with the headers of a connection that
            is kept alive.
        :param reset: with a TCP reset instead of an orderly close.
        :param applied: change the message all the same; ``after_answer`` does what the answer says.
        """
        _check_word("when", when, get_args(DropPoint))
        self._script(_Script(remaining=times, message_id=message_id, applied=applied, drop=when, reset=reset))

    def delay_next(
        self, seconds: float, *, times: int = 1, message_id: str | None = None, applied: bool = False
    ) -> None:
        """Serve the next requests as usual, but only after so many seconds.

        :param applied: change the message before the wait rather than after it.
        """
        self._script(_Script(remaining=times, message_id=message_id, applied=applied, delay=seconds))

    def trickle_next(self, seconds_per_byte: float, *, times: int = 1, message_id: str | None = None) -> None:
        """Serve the next requests as usual, but send the answer's body byte by byte with this pause after each."""
        self._script(_Script(remaining=times, message_id=message_id, seconds_per_byte=seconds_per_byte))

    def answer_next(
        self,
        raw: bytes,
        *,
        times: int = 1,
        close: bool = False,
        message_id: str | None = None,
        applied: bool = False,
    ) -> None:
        """Answer the next requests with exactly these bytes, status line and all.

        :param close: close the connection after them.
        """
        self._script(_Script(remaining=times, message_id=message_id, applied=applied, raw=raw, close=close))

    def swap_next(self, *, times: int = 1, message_id: str | None = None, applied: bool = False) -> None:
        """Answer the next requests with a 200 that belongs to another message, one that was not asked for."""
        self._script(_Script(remaining=times, message_id=message_id, applied=applied, swap=True))

    def unsolicited_next(
        self,
        raw: bytes | None = None,
        *,
        status: int = 200,
        times: int = 1,
        after: float = 0.01,
        message_id: str | None = None,
    ) -> None:
        """Serve the next requests as usual, then write a second, complete answer that nobody asked for.

        :param raw: the second answer's bytes; without them it has this ``status``, and for 200 it is
            one more answer for the same message.
        :param after: seconds between the two, so that the connection is idle by then; with 0 they leave together.
            :meth:`wait_for_unsolicited` tells when the second has been written. (If the connection is closed
            by then, it is lost.)
        """

        def second(about: str | None) -> bytes:
            return self._unasked(status, about) if raw is None else raw

        self._script(_Script(remaining=times, message_id=message_id, unsolicited=second, after=after))

    def send_unsolicited(self, raw: bytes | None = None, *, status: int = 200) -> int:
        """Write an answer that nobody asked for on every idle connection now, and return their number."""
        idle = self._idle_transports()
        for transport in idle:
            self._write_unsolicited(transport, self._unasked(status, None) if raw is None else raw)
        return len(idle)

    def close_idle(self) -> int:
        """Close every idle connection now, in order, as a server does at its keep-alive timeout; return their number."""
        idle = self._idle_transports()
        for transport in idle:
            transport.close()
        return len(idle)

    def every(self, number: int, fault: Callable[[], None]) -> None:
        """Call ``fault`` with every so many requests to the API, before anything else is done with that request.

        ``sandbox.every(100, lambda: sandbox.fail_next(503))`` answers every hundredth request with 503, ``sandbox.every(1000,
        sandbox.expire_tokens)`` lets a token serve for 999.
        """
        if number < 1:
            raise ValueError("number must be 1 or more")
        self._recurring.append((number, fault))

    def clear_faults(self) -> None:
        """Forget every script that has not been used up or comes again, the token endpoint's included; accept tokens again."""
        self._recurring.clear()
        self._scripts.clear()
        self._scripts_of.clear()
        self._token_scripts.clear()
        self._refusal = None

    # Tokens.

    def expire_tokens(self) -> None:
        """Let every token issued so far be expired: 401 with ``Bearer error="invalid_token"``."""
        now = self._clock()
        for token in self._tokens.values():
            token.expires_at = min(token.expires_at, now)

    def revoke_tokens(self) -> None:
        """Withdraw every token issued so far: 401 as a problem document, its challenge ``Basic realm="Realm"``."""
        for token in self._tokens.values():
            token.revoked = True

    def refuse_tokens(self, form: TokenRefusal | None = "revoked") -> None:
        """Answer 401 in this form to every token, fresh ones too, until called with None."""
        if form is not None:
            _check_word("form", form, get_args(TokenRefusal))
        self._refusal = form

    def fail_next_token(
        self,
        status: int,
        *,
        times: int = 1,
        error: str | None = None,
        retry_after: float | str | None = None,
        body: str | bytes | None = None,
        content_type: str | None = None,
    ) -> None:
        """Answer the next token requests with this status.

        :param error: an OAuth error code (RFC 6749, section 5.2), such as ``invalid_client``, in a JSON body.
        :param retry_after: the header's seconds, or its text as it is to be sent.
        :param body: the body to send instead; without it and ``error`` there is none.
        """
        headers = () if retry_after is None else (("Retry-After", _seconds(retry_after)),)
        if body is not None:
            content = body.encode() if isinstance(body, str) else body
            answer = _error(status, content, content_type, headers)
        elif error is not None:
            answer = _error(status, _oauth_error(error), content_type, headers)
        else:
            answer = _error(status, "empty", content_type, headers)
        self._token_script(_TokenScript(remaining=times, answer=answer))

    def drop_next_token(self, *, times: int = 1) -> None:
        """Close the connection of the next token requests before a byte of the answer."""
        self._token_script(_TokenScript(remaining=times, drop=True))

    def delay_next_token(self, seconds: float, *, times: int = 1) -> None:
        """Serve the next token requests as usual, but only after so many seconds."""
        self._token_script(_TokenScript(remaining=times, delay=seconds))

    def answer_next_token(self, fields: Mapping[str, Any], *, times: int = 1) -> None:
        """Answer the next good token requests with 200 and just these fields.

        An ``access_token`` among them that is text is accepted afterwards, for ``token_lifetime``,
        whatever ``expires_in`` says. Floats that JSON does not have are sent as Python writes them (``NaN``).
        """
        self._token_script(_TokenScript(remaining=times, fields=dict(fields)))

    def redirect_next_token(self, status: int, location: str, *, times: int = 1) -> None:
        """Answer the next token requests with a redirect to ``location``, which is sent as it is."""
        answer = _error(status, "empty", None, (("Location", location),))
        self._token_script(_TokenScript(remaining=times, answer=answer))

    # What follows serves requests.

    def _idle_transports(self) -> list[asyncio.Transport]:
        transports = () if self._server is None else self._server.transports.values()
        return [transport for transport in transports if transport not in self._busy]

    def _script(self, script: _Script) -> None:
        _check_times(script.remaining)
        script.order = next(self._orders)
        if script.message_id is None:
            self._scripts.append(script)
        else:
            self._scripts_of.setdefault(script.message_id, deque()).append(script)

    def _token_script(self, script: _TokenScript) -> None:
        _check_times(script.remaining)
        self._token_scripts.append(script)

    def _take_script(self, message_id: str | None) -> _Script | None:
        """The oldest script that fits, found without a look at those for other messages."""
        anyone = self._scripts
        own = self._scripts_of.get(message_id) if message_id is not None else None
        if own and not (anyone and anyone[0].order < own[0].order):
            script = _take(own)
            if not own and message_id is not None:
                del self._scripts_of[message_id]
            return script
        return _take(anyone) if anyone else None

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await request.content.read() if request.body_exists else b""
        except (web.RequestPayloadError, ConnectionError):
            return _CLOSED  # It never arrived in full: the caller broke off, or sent what is no HTTP.
        transport = request.transport
        self._busy.add(transport)
        try:
            path, _, query = request.raw_path.partition("?")
            if path == _OAUTH2_PATH:
                return await self._serve_token(request, body)
            return await self._serve_api(request, path, query, body)
        finally:
            self._busy.discard(transport)

    async def _serve_api(
        self, request: web.BaseRequest, path: str, query: str, body: bytes
    ) -> web.StreamResponse:
        now = self._clock()
        headers = request.headers
        project_id, message_id = self._route(path)
        metadata, complaint = None, None
        if request.method != "GET":
            metadata, complaint = _read_body(headers.get("Content-Type"), body)
        if query and complaint is None:
            complaint = _query_complaint(query)
        usual = message_id is not None and "%" not in path
        record = SandboxRequest(
            self._arrived.count + 1,
            now,
            request.method,
            project_id,
            message_id,
            query,
            metadata,
            {name.lower(): value for name, value in headers.items()} if self._keep_headers else None,
            None if usual else path,
        )
        self._remember(self.requests, record)
        for number, fault in self._recurring:
            if record.number % number == 0:
                fault()
        script = self._take_script(message_id) if self._scripts or self._scripts_of else None

        refusal: _Answer | None = None
        authorization = headers.get("Authorization")
        if script is None or not script.replaces:
            refusal = self._refuse(record, authorization) or self._throttle(record)

        self._in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        self._arrived.add()
        try:
            answer: _Answer | None = None
            delay = self.latency + (0.0 if script is None else script.delay)
            if self._gate is not None:
                await self._suspended(self._gate.wait())
                refusal = refusal or self._refuse(record, authorization)
            if delay > 0:
                if script is not None and script.delay and script.applied:
                    answer = refusal or self._usual(record, complaint, store=True)
                await self._suspended(asyncio.sleep(delay))
                refusal = refusal or self._refuse(record, authorization)
            if script is not None and script.replaces:
                return await self._misbehave(request, record, complaint, script)
            answer = answer or refusal or self._usual(record, complaint, store=True)
            return await self._give(request, record, answer, script)
        finally:
            self._in_flight -= 1

    def _route(self, path: str) -> tuple[str | None, str | None]:
        match = _MESSAGE_PATH.fullmatch(path)
        if match is None:
            return None, None
        project_id, message_id = match.groups()
        if "%" in path:
            project_id, message_id = unquote(project_id), message_id and unquote(message_id)
        # The strings that are kept anyhow serve for the record too.
        project = self._projects.get(project_id)
        message = self.messages.get(message_id)
        return (
            project_id if project is None else project.id,
            message_id if message is None else message.id,
        )

    def _refuse(self, record: SandboxRequest, authorization: str | None) -> _Answer | None:
        if record.project_id is None:
            return _envelope(404, "There is nothing at this path.")
        allowed = _allowed(record)
        if record.method not in allowed:
            words = ", ".join(allowed)
            return _envelope(405, f"Served here: {words}.", headers=(("Allow", words),))
        key, refusal = self._authenticate(authorization)
        if key is None:
            return refusal
        if record.project_id not in key.projects:
            return _envelope(403, "The access key does not open this project.")
        return None

    def _throttle(self, record: SandboxRequest) -> _Answer | None:
        assert record.project_id is not None
        if self._projects[record.project_id].admits(record.time):
            return None
        return _envelope(429, "The project sends too many requests.")

    def _authenticate(self, authorization: str | None) -> tuple[_Key | None, _Answer | None]:
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() == "basic":
            key, _name = self._basic_key(credentials)
            return (key, None) if key is not None else (None, _INVALID_CREDENTIALS)
        token = self._tokens.get(credentials) if scheme.lower() == "bearer" else None
        now = self._clock()
        if self._refusal == "expired":
            return None, _expired(time.time())
        if self._refusal == "revoked":
            return None, _INVALID_CREDENTIALS
        if token is None:
            return None, _UNAUTHENTICATED
        if token.revoked:
            return None, _INVALID_CREDENTIALS
        if token.expires_at <= now:
            return None, _expired(time.time() - (now - token.expires_at))
        return token.key, None

    def _basic_key(self, credentials: str) -> tuple[_Key | None, str | None]:
        """The key that these Basic credentials open, and the user name in them (RFC 7617)."""
        try:
            name, colon, secret = base64.b64decode(credentials, validate=True).decode().partition(":")
        except ValueError:
            return None, None
        key = self._keys.get(name)
        return (key if colon and key is not None and key.secret == secret else None), name

    def _usual(self, record: SandboxRequest, complaint: _Answer | None, *, store: bool) -> _Answer:
        """Do what the request asks, or with `store` off only look as if."""
        if complaint is not None:
            return complaint
        if record.message_id is None:
            return self._list(record)
        message = self.messages.get(record.message_id)
        if message is None and self._auto_create and record.project_id in self._projects:
            message = self.add_message(record.message_id, project_id=record.project_id)
        if message is None or message.project_id != record.project_id:
            detail = {"@type": "type.googleapis.com/google.rpc.ResourceInfo", "resource_type": "message"}
            return _envelope(404, "There is no such message.", detail)
        if record.method == "GET":
            return _Answer(200, _message_body(message, message.metadata))
        metadata = record.metadata
        assert metadata is not None  # else there was a complaint
        if store:
            message.metadata = metadata
            message.updates += 1
            self.updates_applied += 1
            record.applied = True
        return _Answer(200, _message_body(message, metadata))

    def _list(self, record: SandboxRequest) -> _Answer:
        """One page of a project's messages, newest first."""
        query = parse_qs(record.query, keep_blank_values=True)
        try:
            wanted = _ListQuery.of(query)
            listing, offset = self._listings.find(wanted)
        except ValueError as error:
            field, _, description = str(error).partition(": ")
            return _invalid(field, description)
        if listing is None:
            project_id = record.project_id
            found = [
                message
                for message in self.messages.values()
                if message.project_id == project_id and wanted.fits(message)
            ]
            # Of messages of one time, the one that was added last comes first.
            found.reverse()
            found.sort(key=_accepted, reverse=True)
            listing = self._listings.keep(wanted, found)
        page = listing.messages[offset : offset + wanted.page_size]
        following = offset + len(page)
        fields = [_message_fields(message, message.metadata) for message in page]
        if wanted.view == "WITHOUT_METADATA":
            for each in fields:
                each.pop("metadata", None)
        token = listing.token(following) if following < len(listing.messages) else ""
        return _Answer(200, json.dumps({"messages": fields, "next_page_token": token}).encode())

    async def _misbehave(
        self,
        request: web.BaseRequest,
        record: SandboxRequest,
        complaint: _Answer | None,
        script: _Script,
    ) -> web.StreamResponse:
        """Give the answer that the script puts in the place of the usual one."""
        if record.project_id is None or record.method not in _allowed(record):
            usual = _envelope(404, "There is nothing at this path.")
        else:
            usual = self._usual(record, complaint, store=script.applied)
        if script.answer is not None:
            return await self._give(request, record, script.answer, script)
        if script.swap:
            return await self._give(request, record, self._another(record.message_id), script)
        transport = request.transport
        if script.raw is not None:
            status = _STATUS_LINE.match(script.raw)
            record.status = None if status is None else int(status[1])
            _write(transport, script.raw)
            return _CLOSED if script.close else _KEPT
        head, body = self._encode(usual, f"{record.number:032x}", close=False)
        if script.drop == "mid_headers":
            _write(transport, head[: len(head) // 2])
        elif script.drop == "mid_body":
            _write(transport, head + body[: len(body) // 2])
        if script.reset:
            _reset(transport)
        return _CLOSED

    async def _give(
        self, request: web.BaseRequest, record: SandboxRequest, answer: _Answer, script: _Script | None
    ) -> web.StreamResponse:
        transport = request.transport
        keep_alive = request.keep_alive
        head, body = self._encode(answer, f"{record.number:032x}", close=not keep_alive)
        if request.method == "HEAD":
            body = b""
        record.status = answer.status
        if script is None:
            _write(transport, head + body)
            return _KEPT if keep_alive else _CLOSED
        if script.seconds_per_byte is not None:
            _write(transport, head)
            await self._suspended(_trickle(transport, body, script.seconds_per_byte))
        elif script.unsolicited is not None and script.after <= 0:
            second = script.unsolicited(record.message_id)
            self._write_unsolicited(transport, head + body + second)
        else:
            _write(transport, head + body)
            if script.unsolicited is not None:
                second = script.unsolicited(record.message_id)
                asyncio.get_running_loop().call_later(
                    script.after, self._write_unsolicited, transport, second
                )
        if script.drop is not None:
            if script.reset:
                _reset(transport)
            return _CLOSED
        return _KEPT if keep_alive else _CLOSED

    def _another(self, message_id: str | None) -> _Answer:
        """A 200 for any message but this one."""
        for message in itertools.islice(self.messages.values(), 2):
            if message.id != message_id:
                return _Answer(200, _message_body(message, message.metadata))
        return _Answer(200, _message_body(self._stranger("01SANDBOXANOTHERMESSAGE001"), ""))

    def _unasked(self, status: int, about: str | None) -> bytes:
        if status == 200:
            name = about or "01SANDBOXUNSOLICITED000001"
            message = self.messages.get(name) or self._stranger(name)
            answer = _Answer(200, _message_body(message, "unsolicited"))
        else:
            answer = _error(status, "envelope", None, ())
        return b"".join(self._encode(answer, secrets.token_hex(16), close=False))

    def _stranger(self, message_id: str) -> SandboxMessage:
        return SandboxMessage(
            id=message_id, project_id=self._default_project_id, accept_time=_timestamp(self._started_at)
        )

    def _write_unsolicited(self, transport: asyncio.Transport | None, data: bytes) -> None:
        _write(transport, data)
        self._unsolicited.add()

    async def _serve_token(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        key, name = self._basic_key(credentials) if scheme.lower() == "basic" else (None, None)
        record = SandboxTokenRequest(self._token_requests_arrived.count + 1, self._clock(), name)
        self._remember(self.token_requests, record)
        script = _take(self._token_scripts) if self._token_scripts else None
        replaced = script is not None and (script.answer is not None or script.drop)
        admitted = replaced or self._admits_token_request(record.time)
        self._token_requests_arrived.add()

        if self._token_gate is not None:
            await self._suspended(self._token_gate.wait())
        if script is not None and script.delay > 0:
            await self._suspended(asyncio.sleep(script.delay))

        if script is not None and script.drop:
            return _CLOSED
        if script is not None and script.answer is not None:
            answer = script.answer
        elif not admitted:
            answer = _error(429, _oauth_error("too_many_requests"), None, ())
        else:
            answer = self._issue(request, body, key, None if script is None else script.fields)
        record.status = answer.status
        head, content = self._encode(answer, f"{record.number:032x}", close=not request.keep_alive)
        _write(request.transport, head + (b"" if request.method == "HEAD" else content))
        return _KEPT if request.keep_alive else _CLOSED

    def _admits_token_request(self, now: float) -> bool:
        if self._token_rate is None:
            return True
        credit = self._token_credit + (now - self._token_credit_at) * self._token_rate
        self._token_credit = min(credit, float(self._token_burst))
        self._token_credit_at = now
        if self._token_credit < 1.0:
            return False
        self._token_credit -= 1.0
        return True

    def _issue(
        self, request: web.BaseRequest, body: bytes, key: _Key | None, fields: Mapping[str, Any] | None
    ) -> _Answer:
        """Answer a token request as RFC 6749, sections 4.4 and 5, has it."""
        if request.method != "POST":
            return _error(405, _oauth_error("invalid_request"), None, (("Allow", "POST"),))
        if _media_type(request.headers.get("Content-Type")) != "application/x-www-form-urlencoded":
            return _error(400, _oauth_error("invalid_request"), None, ())
        grant_types = parse_qs(body.decode("latin-1")).get("grant_type", [])
        if len(grant_types) != 1:
            return _error(400, _oauth_error("invalid_request"), None, ())
        if grant_types[0] != "client_credentials":
            return _error(400, _oauth_error("unsupported_grant_type"), None, ())
        if key is None:
            challenge = ("WWW-Authenticate", 'Basic realm="Realm"')
            return _error(401, _oauth_error("invalid_client"), None, (challenge,))
        if fields is None:
            text, self.next_token = self.next_token, None
            lifetime = self._token_lifetime
            fields = {
                "access_token": secrets.token_urlsafe(48) if text is None else text,
                "expires_in": int(lifetime) if float(lifetime).is_integer() else lifetime,
                "scope": "",
                "token_type": "bearer",
            }
        access_token = fields.get("access_token")
        if isinstance(access_token, str):
            self._tokens[access_token] = _Token(key, self._clock() + self._token_lifetime)
        no_store = (("Cache-Control", "no-store"), ("Pragma", "no-cache"))
        return _Answer(200, json.dumps(dict(fields)).encode(), headers=no_store)

    def _remember(self, records: list[_T], record: _T) -> None:
        if self._keep_requests == 0:
            return
        records.append(record)
        if self._keep_requests is not None and len(records) > self._keep_requests:
            del records[0]

    async def _suspended(self, wait: Awaitable[Any]) -> None:
        """Wait in a way that closing the sandbox ends at once."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            await wait
        finally:
            self._waiting.discard(task)

    def _encode(self, answer: _Answer, request_id: str, *, close: bool) -> tuple[bytes, bytes]:
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True))
        status, body = answer.status, answer.body
        head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\nDate: {self._date[1]}\r\n"
        if status not in (204, 304):  # Neither has a body, nor its length (RFC 9110, section 8.6).
            head += f"Content-Length: {len(body)}\r\n"
            if answer.content_type is not None:
                head += f"Content-Type: {answer.content_type}\r\n"
        else:
            body = b""
        for name, value in answer.headers:
            head += f"{name}: {value}\r\n"
        if close:
            head += "Connection: close\r\n"
        return f"{head}x-request-id: {request_id}\r\n\r\n".encode(), body


def _take(scripts: deque[_AnyScript]) -> _AnyScript:
    script = scripts[0]
    script.remaining -= 1
    if script.remaining == 0:
        scripts.popleft()
    return script


_AnyScript = TypeVar("_AnyScript", _Script, _TokenScript)


def _check_word(name: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, not {word!r}")


def _check_times(times: int) -> None:
    if times < 1:
        raise ValueError(f"times must be at least 1, not {times}")


def _write(transport: asyncio.Transport | None, data: bytes) -> None:
    # A caller who has gone gets nothing; asyncio would warn about writing to it.
    if transport is not None and not transport.is_closing():
        transport.write(data)


async def _trickle(transport: asyncio.Transport | None, body: bytes, seconds_per_byte: float) -> None:
    for position in range(len(body)):
        if transport is None or transport.is_closing():
            return
        transport.write(body[position : position + 1])
        await asyncio.sleep(seconds_per_byte)


def _reset(transport: asyncio.Transport | None) -> None:
    if transport is None:
        return
    # Lingering for no time at all makes the kernel answer with RST instead of FIN; Windows' struct is shorter.
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _seconds(retry_after: float | str) -> str:
    if isinstance(retry_after, float) and retry_after.is_integer():
        return str(int(retry_after))
    return str(retry_after)


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _messages_sources(query: str) -> list[str]:
    return parse_qs(query, keep_blank_values=True).get("messages_source", [])


def _allowed(record: SandboxRequest) -> tuple[str, ...]:
    return ("GET",) if record.message_id is None else ("GET", "PATCH")


def _accepted(message: SandboxMessage) -> datetime:
    """When the message was accepted; one whose time is no timestamp counts as the oldest."""
    try:
        moment = datetime.fromisoformat(message.accept_time)
    except (TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@attrs.frozen
class _ListQuery:
    """The filters of a list request, as the published document names them. A parameter of another name is ignored."""

    page_size: int
    page_token: str
    view: str
    source: str
    same: Mapping[str, str]
    start: datetime | None
    end: datetime | None
    recipient_originated: bool

    @classmethod
    def of(cls, query: Mapping[str, list[str]]) -> Self:
        """Raises ValueError with the name of the field and what is wrong with it."""
        given: dict[str, str] = {}
        for name, values in query.items():
            if len(values) > 1:
                raise ValueError(f"{name}: Only once.")
            given[name] = values[0]
        size = given.get("page_size", str(_PAGE_SIZE))
        if not size.isascii() or not size.isdigit() or not 1 <= int(size) <= _LARGEST_PAGE:
            raise ValueError(f"page_size: A number from 1 to {_LARGEST_PAGE}.")
        start, end = (_query_time(name, given.get(name)) for name in ("start_time", "end_time"))
        if start is not None and end is not None and start >= end:
            raise ValueError("start_time: Must be before end_time.")
        for name, words in _QUERY_WORDS.items():
            if name in given and given[name] not in words:
                raise ValueError(f"{name}: One of {', '.join(sorted(words))}.")
        return cls(
            int(size),
            given.get("page_token", ""),
            given.get("view", "WITH_METADATA"),
            given.get("messages_source", "CONVERSATION_SOURCE"),
            {name: given[name] for name in _FILTERS if given.get(name)},
            start,
            end,
            given.get("only_recipient_originated") == "true",
        )

    def without_paging(self) -> Self:
        return attrs.evolve(self, page_token="", page_size=_PAGE_SIZE)

    def fits(self, message: SandboxMessage) -> bool:
        """Whether the message passes every filter."""
        if f"{message.processing_mode}_SOURCE" != self.source:
            return False
        if self.recipient_originated and message.direction != "TO_APP":
            return False
        if any(getattr(message, _FILTERS[name]) != wanted for name, wanted in self.same.items()):
            return False
        if self.start is None and self.end is None:
            return True
        accepted = _accepted(message)
        return (self.start is None or accepted > self.start) and (self.end is None or accepted < self.end)


_PAGE_SIZE: Final = 10
_LARGEST_PAGE: Final = 1000

# Name of the query parameter: attribute of the message.
_FILTERS: Final = {
    "conversation_id": "conversation_id",
    "contact_id": "contact_id",
    "app_id": "app_id",
    "channel_identity": "identity",
    "channel": "channel",
    "direction": "direction",
}
_QUERY_WORDS: Final = {
    "direction": {"TO_APP", "TO_CONTACT"},
    "view": {"WITH_METADATA", "WITHOUT_METADATA"},
    "only_recipient_originated": {"true", "false"},
}


def _query_time(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"{name}: An RFC 3339 timestamp.")
    return moment


@attrs.frozen
class _Listing:
    """What a list request found. All its pages are of the same moment, and a page that is asked for again is the same."""

    number: str
    query: _ListQuery
    messages: list[SandboxMessage]

    def token(self, offset: int) -> str:
        return base64.urlsafe_b64encode(f"{self.number}.{offset}".encode()).decode().rstrip("=")


class _Listings:
    """The latest listings, for the tokens of their pages."""

    KEPT = 64

    def __init__(self) -> None:
        self._kept: dict[str, _Listing] = {}

    def keep(self, query: _ListQuery, messages: list[SandboxMessage]) -> _Listing:
        listing = _Listing(secrets.token_hex(8), query, messages)
        self._kept[listing.number] = listing
        if len(self._kept) > self.KEPT:
            del self._kept[next(iter(self._kept))]
        return listing

    def find(self, query: _ListQuery) -> tuple[_Listing | None, int]:
        """The listing and the offset that a page token names; None where the request has no token."""
        token = query.page_token
        if not token:
            return None, 0
        try:
            number, _, offset = (
                base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode().partition(".")
            )
            listing = self._kept[number]
            begins = int(offset)
        except (ValueError, KeyError):
            raise ValueError("page_token: Not one that was given.") from None
        if query.without_paging() != listing.query.without_paging():
            raise ValueError("page_token: It belongs to a list with other filters.")
        return listing, begins


def _query_complaint(query: str) -> _Answer | None:
    sources = _messages_sources(query)
    if len(sources) > 1 or not _MESSAGES_SOURCES.issuperset(sources):
        return _invalid("messages_source", "Must be CONVERSATION_SOURCE or DISPATCH_SOURCE, once.")
    return None


def _read_body(content_type: str | None, body: bytes) -> tuple[str | None, _Answer | None]:
    """The metadata in a request's body, if it holds text of that name, and what the API has against it."""
    if content_type != _JSON and _media_type(content_type) != _JSON:
        return None, _invalid("body", "Content-Type must be application/json.")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None, _invalid("body", "Not JSON.")
    metadata: Any = cast("dict[str, Any]", fields).get("metadata") if isinstance(fields, dict) else None
    if not isinstance(metadata, str):
        return None, _invalid("metadata", "Field is required, and is text.")
    if len(metadata) > _MAX_METADATA:
        return metadata, _invalid("metadata", f"At most {_MAX_METADATA} characters.")
    if not _is_unicode(metadata):
        return metadata, _invalid("metadata", "Not Unicode text.")
    return metadata, None


def _is_unicode(text: str) -> bool:
    # JSON's escapes can spell half of a surrogate pair, which no UTF-8 text holds.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


def _message_body(message: SandboxMessage, metadata: str) -> bytes:
    return json.dumps(_message_fields(message, metadata)).encode()


def _message_fields(message: SandboxMessage, metadata: str) -> dict[str, Any]:
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
    for name in message.omit:
        fields.pop(name, None)
    return fields


def _envelope(
    status: int,
    text: str,
    *details: dict[str, Any],
    headers: tuple[tuple[str, str], ...] = (),
) -> _Answer:
    error = _error_fields(status, text, *details)
    return _Answer(status, json.dumps({"error": error}).encode(), headers=headers)


def _error_fields(status: int, text: str, *details: dict[str, Any]) -> dict[str, Any]:
    word = _STATUS_WORDS.get(status, "UNKNOWN")
    return {"code": status, "message": text, "status": word, "details": list(details)}


def _invalid(field: str, description: str) -> _Answer:
    violation = {"field": field, "description": description}
    detail = {"type": "type.googleapis.com/google.rpc.BadRequest", "field_violations": [violation]}
    return _envelope(400, "The request is not valid.", detail)


def _error(
    status: int,
    body: ErrorBody | bytes,
    content_type: str | None,
    headers: tuple[tuple[str, str], ...],
) -> _Answer:
    """A scripted answer: an error as a rule, though 200 with a gateway's page has been seen too."""
    if not 200 <= status <= 599:
        raise ValueError(f"status must be that of a final answer, 200 to 599, not {status}")
    phrase = _REASONS.get(status, "Unknown")
    own_type: str | None
    if isinstance(body, bytes):
        content, own_type = body, _JSON
    elif body in ("envelope", "flat"):
        detail = {"type_url": "type.googleapis.com/google.rpc.DebugInfo", "value": "c2NyaXB0ZWQ="}
        fields = _error_fields(status, f"{phrase} (scripted).", detail)
        content = json.dumps({"error": fields} if body == "envelope" else fields).encode()
        own_type = _JSON
    elif body == "problem":
        problem = {"type": "about:blank", "title": phrase, "status": status, "detail": "Scripted."}
        content, own_type = json.dumps(problem).encode(), _PROBLEM
    elif body == "html":
        page = f"<html>\r\n<head><title>{status} {phrase}</title></head>\r\n<body><h1>{phrase}</h1></body>\r\n</html>\r\n"
        content, own_type = page.encode(), "text/html"
    elif body == "text":
        content, own_type = b"upstream connect error or disconnect/reset before headers", "text/plain"
    elif body == "string":
        content, own_type = json.dumps({"error": phrase.lower()}).encode(), _JSON
    elif body == "empty":
        content, own_type = b"", None
    else:
        raise ValueError(f"no such shape of an error's body: {body!r}")
    return _Answer(status, content, own_type if content_type is None else content_type, headers)


def _oauth_error(error: str) -> bytes:
    return json.dumps({"error": error, "error_description": "Scripted or refused by the sandbox."}).encode()


def _expired(at: float) -> _Answer:
    when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    challenge = f'Bearer error="invalid_token", error_description="Jwt expired at {when}"'
    return _Answer(401, b'{"error": "token expired"}', headers=(("WWW-Authenticate", challenge),))


_UNAUTHENTICATED: Final = _envelope(
    401, "The request needs credentials.", headers=(("WWW-Authenticate", "Bearer"),)
)
_INVALID_CREDENTIALS: Final = _Answer(
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
