"""The sandbox itself: what a user makes, starts and asks, and how it serves a request.

`faults.py` holds what a test has scripted, `tokens.py` who may do what, `messages.py` and
`listing.py` what is answered, `connections.py` how bytes leave. This file puts them together in the
order that :class:`Sandbox` promises.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import ssl as tls
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import attrs
from aiohttp import web

from .connections import CLOSED, KEPT, Listener, reset, trickle, write
from .control import CONTROL_PATH, control
from .faults import Faults, Script, TokenScript, Unsolicited, check_seconds
from .listing import Listing, source_complaint
from .messages import SandboxMessage, message_fields, read_file, read_metadata
from .records import ClientOptions, SandboxRequest, SandboxTokenRequest, Tally, remember
from .responses import (
    NO_SUCH_MESSAGE,
    NO_SUCH_PATH,
    Response,
    encode,
    envelope,
    json_response,
    oauth_error,
    scripted,
    timestamp,
)
from .thread import on_its_loop
from .tokens import Access

__all__ = ["Sandbox"]

_log: Final = logging.getLogger("sinch_conv_async.sandbox")

_PATH: Final = re.compile(r"/v1/projects/([^/]+)/messages(?:/([^/]+))?")
_OAUTH2_PATH: Final = "/oauth2/token"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
# How to reach a server that listens on all addresses of the machine.
_LOOPBACK_OF: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not listened on


class Sandbox(Faults, Access):
    """A Conversation API of one's own for tests: ``async with Sandbox() as sandbox``.

    It serves, on one port, ``PATCH`` and ``GET /v1/projects/{project_id}/messages/{message_id}``,
    the list at ``GET /v1/projects/{project_id}/messages`` with its filters and page tokens, and
    ``POST /oauth2/token``.

    :param project_id: the project it starts with; :meth:`add_project` adds others.
    :param key_id: the access key of that project, made up unless given.
    :param key_secret: the key's secret, likewise.
    :param rate_limit: requests that the project may send in any window of one second, from all
        connections together, counted as they arrive; beyond it they get 429 without Retry-After,
        and are not counted. None (default): no limit. The real service allows 800.
    :param rate_burst: makes the rate limit a token bucket: so many requests at once, and
        ``rate_limit`` a second from then on. None (default): a window of one second.
    :param token_lifetime: seconds a token is good for, by a monotonic clock.
    :param token_burst: requests that the token endpoint allows at once,
    :param token_rate: and a second from then on; beyond it they get 429 without Retry-After. None:
        no limit.
    :param latency: seconds added before each answer of the API. May be changed at any time.
    :param host: the address to listen on.
    :param port: the port to listen on; 0 (default) takes a free one.
    :param ssl: a server's context, to speak https.
    :param auto_create: answer for any message id, as though the message had been there.
    :param keep_requests: how many of the latest requests to remember in ``requests`` and
        ``token_requests``; None (default): all.
    :param keep_headers: remember the headers of API requests too, credentials included.
    :param clock: what arrivals, rate limits and lifetimes are measured with, in seconds.
    :param on_request: called with each :class:`SandboxRequest` and :class:`SandboxTokenRequest`
        when it is over.

    Raises ValueError for an argument that makes no sense, such as a negative latency.

    Its attributes, besides ``latency``:

    ``messages``
        The messages it knows (:class:`SandboxMessage`), by id.
    ``requests``, ``token_requests``
        What arrived at the API (:class:`SandboxRequest`) and at the token endpoint
        (:class:`SandboxTokenRequest`), oldest first. Plain lists: clear them at will, the numbering
        goes on.
    ``next_token``
        The text of the next token to be issued, used once. None: a random one.
    ``updates_applied``, ``peak_in_flight``
        How many updates changed a message, and how many API requests waited for their answer at
        most.

    A request is dealt with in this order:

    1. It is recorded once it has arrived in full. What is due with it (:meth:`every`,
       :meth:`at_random`) is done. The oldest script that fits it (``fail_next`` and its like) is
       taken: each request takes one at most, and takes it on arrival.
    2. If no script replaces the answer: an unknown path gets 404 and another method 405; bad
       credentials get 401, those of another project 403; what is then too fast gets 429. Only
       requests that come this far, and are not refused here, count against ``rate_limit``.
    3. It waits while answers are held (:meth:`hold`), and for ``latency`` and its script's delay.
       Credentials are looked at again after a wait, so that a token which expires meanwhile gets
       401.
    4. The body and the query are checked (400), the message is looked up (404), changed, and
       answered (200). A caller who has gone by then does not keep the message from being changed,
       as with any server.

    ``async with`` starts it on the event loop that runs. A plain ``with`` starts it in a thread of
    its own, for synchronous code; all methods may be called from other threads then, and
    :meth:`run` waits for the ones that are coroutines. Closing it resets its connections; started
    again, it listens on the same port, so that the two together make an outage. All else is kept
    over the pause.
    """

    def __init__(
        self,
        *,
        project_id: str = "sandbox-project",
        key_id: str = "sandbox-key-id",
        key_secret: str = "sandbox-key-secret",  # noqa: S107 - made up, and good for nothing else
        rate_limit: int | None = None,
        rate_burst: int | None = None,
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
        on_request: Callable[[SandboxRequest | SandboxTokenRequest], None] | None = None,
    ) -> None:
        _check_numbers(port, keep_requests)
        Faults.__init__(self)
        Access.__init__(
            self,
            token_lifetime=token_lifetime,
            token_burst=token_burst,
            token_rate=token_rate,
            clock=clock,
        )
        self.latency = latency
        self.messages: dict[str, SandboxMessage] = {}
        self.requests: list[SandboxRequest] = []
        self.token_requests: list[SandboxTokenRequest] = []
        self.updates_applied = 0
        self.peak_in_flight = 0

        self._auto_create = auto_create
        self._keep_requests = keep_requests
        self._keep_headers = keep_headers
        self._on_request = on_request
        self._started_at = time.time()
        self._listener = Listener(self._serve, host=host, port=port, ssl=ssl)
        self._listing = Listing()
        self._in_flight = 0
        self._arrived = Tally()
        self._token_requests_arrived = Tally()
        self._unsolicited = Tally()
        self._default_project_id = project_id
        self.add_project(
            project_id,
            key_id=key_id,
            key_secret=key_secret,
            rate_limit=rate_limit,
            rate_burst=rate_burst,
        )

    def __repr__(self) -> str:
        state = self.origin if self._listener.is_open else "closed"
        return (
            f"<Sandbox {state} messages={len(self.messages)} requests={self._arrived.count} "
            f"applied={self.updates_applied} in_flight={self._in_flight} "
            f"scripted={self.pending_faults}>"
        )

    def __del__(self) -> None:
        listener = getattr(self, "_listener", None)  # None if the arguments were refused
        if listener is not None and listener.is_open:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    @property
    def latency(self) -> float:
        """Seconds added before each answer of the API. Less than 0 raises ValueError."""
        return self._latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        check_seconds("latency", seconds)
        self._latency = seconds

    # Its life.

    async def start(self) -> None:
        """Listen. Does nothing if it listens already.

        After :meth:`close` it takes the same port again. Raises OSError if the port is taken.
        """
        await self._listener.open()

    async def close(self) -> None:
        """Stop listening and abort every connection, at once. Closing twice is fine."""
        await self._listener.close()

    @property
    def is_running(self) -> bool:
        """Whether it listens."""
        return self._listener.is_open

    async def serve_forever(self) -> None:
        """Start, serve until cancelled, and close: a program's main coroutine."""
        await self.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.close()

    @property
    def port(self) -> int:
        """The port it listens on, or did before its close. RuntimeError before the first start."""
        if not self._listener.port:
            raise RuntimeError("the sandbox has no port before it is started")
        return self._listener.port

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as ``http://127.0.0.1:40123``.

        The host is the loopback's if the sandbox listens on all addresses.
        """
        scheme = "http" if self._listener.ssl is None else "https"
        host = _LOOPBACK_OF.get(self._listener.host, self._listener.host)
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
        """The keyword arguments that make a ``ConversationClient`` speak to this sandbox.

        The secret is one of them.         For the project it was made with, unless another is
        named. Raises KeyError for an unknown project.
        """
        project = self._projects[self._default_project_id if project_id is None else project_id]
        return {
            "project_id": project.id,
            "key_id": project.key.id,
            "key_secret": project.key.secret,
            "conversation_origin": self.conversation_origin,
            "auth_origin": self.auth_origin,
        }

    def environment(self, project_id: str | None = None) -> dict[str, str]:
        """The environment variables that lead to this sandbox.

        ``ConversationClient.from_env()`` and the commands read them. They hold what
        :meth:`client_options` holds, under the names ``SINCH_PROJECT_ID`` and so on.
        """
        options = self.client_options(project_id)
        return {f"SINCH_{name.upper()}": str(value) for name, value in options.items()}

    # What it knows.

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

        Its other fields are attributes of what is returned. ``accept_time`` is now unless given. A
        message of the same id is replaced. Raises KeyError for an unknown project.
        """
        project = self._projects[self._default_project_id if project_id is None else project_id]
        message = self.messages[message_id] = SandboxMessage(
            id=message_id,
            metadata=metadata,
            project_id=project.id,
            accept_time=timestamp(time.time()) if accept_time is None else accept_time,
            channel=channel,
            direction=direction,
            processing_mode=processing_mode,
            extra=dict(extra or {}),
            omit=omit,
        )
        return message

    @on_its_loop
    def add_messages(self, messages: Iterable[Mapping[str, Any]]) -> int:
        """Add messages, each a mapping of :class:`SandboxMessage` attributes; return their number.

        ``project_id`` is the first project unless given, ``accept_time`` now. Raises KeyError for
        an unknown project; then none is added.
        """
        now = timestamp(time.time())
        usual: dict[str, Any] = {"project_id": self._default_project_id, "accept_time": now}
        found = [SandboxMessage(**{**usual, **attributes}) for attributes in messages]
        for message in found:
            if message.project_id not in self._projects:
                raise KeyError(f"there is no project {message.project_id!r}")
        self.messages.update((message.id, message) for message in found)
        return len(found)

    def load_messages(self, path: str | Path) -> int:
        """Add the messages of a file, and return their number.

        The file's ending says what it is: ``.jsonl`` and ``.ndjson`` hold one JSON object a line,
        ``.json`` a list of them, everything else is CSV, whose first line names the columns. The
        names are attributes of :class:`SandboxMessage` (``message_id`` may stand for ``id``), or
        the fields that the API answers with.

        Raises ValueError with the number of the record that is not valid, KeyError for an unknown
        project, and OSError if the file cannot be read. Then no message is added.
        """
        return self.add_messages(read_file(path))

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return self._listener.connections

    @property
    def peak_connections(self) -> int:
        """How many connections were open at the same time, at most."""
        return self._listener.peak

    @property
    def in_flight(self) -> int:
        """How many API requests have arrived and wait for their answer now."""
        return self._in_flight

    async def wait_for_requests(self, number: int) -> None:
        """Return as soon as so many API requests have arrived since the sandbox was made."""
        await self._there(self._arrived.reaches(number))

    async def wait_for_token_requests(self, number: int) -> None:
        """Return as soon as so many token requests have arrived since the sandbox was made."""
        await self._there(self._token_requests_arrived.reaches(number))

    async def wait_for_unsolicited(self, number: int) -> None:
        """Return as soon as so many unsolicited answers have been written in all."""
        await self._there(self._unsolicited.reaches(number))

    # What it does at once.

    @on_its_loop
    def send_unsolicited(self, raw: bytes | None = None, *, status: int = 200) -> int:
        """Write an answer that nobody asked for on every idle connection; return their number."""
        idle = self._listener.idle()
        for transport in idle:
            self._write_unsolicited(transport, self._unasked(Unsolicited(raw, status, 0), None))
        return len(idle)

    @on_its_loop
    def close_idle(self) -> int:
        """Close every idle connection now, in order, as a server does at its keep-alive timeout.

        Return their number.
        """
        idle = self._listener.idle()
        for transport in idle:
            transport.close()
        return len(idle)

    @on_its_loop
    def clear_faults(self) -> None:
        """Forget every script, also those that come again and the token endpoint's.

        Tokens are accepted again after :meth:`refuse_tokens`.
        """
        super().clear_faults()
        self.refuse_tokens(None)

    # What follows serves requests.

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await request.content.read() if request.body_exists else b""
        except (web.RequestPayloadError, ConnectionError):
            return (
                CLOSED  # It never arrived in full: the caller broke off, or sent what is no HTTP.
            )
        path, _, query = request.raw_path.partition("?")
        if path == _OAUTH2_PATH:
            return await self._serve_token(request, body)
        if path.startswith(CONTROL_PATH):
            rest = path.removeprefix(CONTROL_PATH)
            content_type = request.headers.get("Content-Type")
            return _write_plainly(
                request, control(self, request.method, rest, query, content_type, body)
            )
        return await self._serve_api(request, path, query, body)

    async def _serve_api(
        self, request: web.BaseRequest, path: str, query: str, body: bytes
    ) -> web.StreamResponse:
        exchange = self._arrive(request, path, query, body)
        script = exchange.script
        self._in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        self._arrived.add()
        try:
            await self._wait(exchange)
            if script is not None and script.replaces:
                return await self._misbehave(exchange, script)
            response = exchange.response or exchange.refusal or self._usual(exchange, store=True)
            return await self._give(exchange, response)
        finally:
            self._in_flight -= 1
            self._tell(exchange.record)

    def _arrive(self, request: web.BaseRequest, path: str, query: str, body: bytes) -> _Exchange:
        """Record a request, let due faults happen, and decide whether it is refused."""
        headers = request.headers
        project_id, message_id = self._route(path)
        metadata, complaint = None, None
        if request.method != "GET":
            metadata, complaint = read_metadata(headers.get("Content-Type"), body)
        if query and complaint is None and message_id is not None:
            complaint = source_complaint(query)
        record = SandboxRequest(
            self._arrived.count + 1,
            self._clock(),
            request.method,
            project_id,
            message_id,
            query,
            metadata,
            {name.lower(): value for name, value in headers.items()}
            if self._keep_headers
            else None,
            None if message_id is not None and "%" not in path else path,
        )
        remember(self.requests, record, keep=self._keep_requests)
        self._recur(record.number)
        exchange = _Exchange(
            request, record, complaint, self._take_script(message_id, request.method)
        )
        if exchange.script is None or not exchange.script.replaces:
            exchange.refusal = self._refuse(exchange) or self._throttle(record)
        return exchange

    def _route(self, path: str) -> tuple[str | None, str | None]:
        """The project and the message that a path names, or None. A list names no message."""
        match = _PATH.fullmatch(path)
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

    def _refuse(self, exchange: _Exchange) -> Response | None:
        """The response to a request that the API does not serve, or not for these credentials."""
        record = exchange.record
        unserved = _unserved(record)
        if unserved is not None:
            return unserved
        key, refusal = self._authenticate(exchange.request.headers.get("Authorization"))
        if key is None:
            return refusal
        if record.project_id not in key.projects:
            return envelope(403, "The access key does not open this project.")
        return None

    def _throttle(self, record: SandboxRequest) -> Response | None:
        assert record.project_id is not None
        if self._projects[record.project_id].limit.admits(record.time):
            return None
        return envelope(429, "The project sends too many requests.")

    async def _wait(self, exchange: _Exchange) -> None:
        """Hold a request back as long as the sandbox or its script says."""
        script = exchange.script
        if self._gate.is_shut:
            await self._listener.suspended(self._gate.passed())
            exchange.refusal = exchange.refusal or self._refuse(exchange)
        delay = self._latency + (0.0 if script is None else script.delay)
        if delay > 0:
            if script is not None and script.delay and script.applied:
                exchange.response = exchange.refusal or self._usual(exchange, store=True)
            await self._listener.suspended(asyncio.sleep(delay))
            exchange.refusal = exchange.refusal or self._refuse(exchange)

    def _usual(self, exchange: _Exchange, *, store: bool) -> Response:
        """Do what the request asks, or with `store` off only answer as if it were done."""
        record = exchange.record
        unserved = _unserved(record) or exchange.complaint
        if unserved is not None:
            return unserved
        project_id, message_id = record.project_id, record.message_id
        assert project_id is not None
        if message_id is None:
            return self._listing.answer(self.messages.values(), project_id, record.query)
        message = self.messages.get(message_id)
        if message is None and self._auto_create and project_id in self._projects:
            message = self.add_message(message_id, project_id=project_id)
        if message is None or message.project_id != project_id:
            return NO_SUCH_MESSAGE
        if record.method == "GET":
            return json_response(message_fields(message, message.metadata))
        metadata = record.metadata
        assert metadata is not None  # otherwise there was a complaint
        if store:
            message.metadata = metadata
            message.updates += 1
            self.updates_applied += 1
            record.applied = True
        return json_response(message_fields(message, metadata))

    async def _misbehave(self, exchange: _Exchange, script: Script) -> web.StreamResponse:
        """Give the response that the script puts in the place of the usual one."""
        request, record = exchange.request, exchange.record
        usual = self._usual(exchange, store=script.applied)
        if script.response is not None:
            return await self._give(exchange, script.response)
        if script.swap:
            return await self._give(exchange, self._another(record.message_id))
        transport = request.transport
        if script.raw is not None:
            status = _STATUS_LINE.match(script.raw)
            record.status = None if status is None else int(status[1])
            write(transport, script.raw)
            return CLOSED if script.close else KEPT
        head, body = encode(usual, f"{record.number:032x}", now=time.time(), close=False)
        if script.drop == "mid_headers":
            write(transport, head[: len(head) // 2])
        elif script.drop == "mid_body":
            write(transport, head + body[: len(body) // 2])
        if script.reset:
            reset(transport)
        return CLOSED

    async def _give(self, exchange: _Exchange, response: Response) -> web.StreamResponse:
        """Write a response as its script says: at once, slowly, with a second, or as the last."""
        request, record, script = exchange.request, exchange.record, exchange.script
        keep_alive = request.keep_alive
        head, body = encode(
            response, f"{record.number:032x}", now=time.time(), close=not keep_alive
        )
        if request.method == "HEAD":
            body = b""
        record.status = response.status
        transport = request.transport
        if script is None:
            write(transport, head + body)
            return KEPT if keep_alive else CLOSED
        if script.seconds_per_byte is not None:
            write(transport, head)
            await self._listener.suspended(trickle(transport, body, script.seconds_per_byte))
        elif script.unsolicited is not None:
            self._write_twice(transport, head + body, script.unsolicited, record.message_id)
        else:
            write(transport, head + body)
        if script.drop is not None:
            if script.reset:
                reset(transport)
            return CLOSED
        return KEPT if keep_alive else CLOSED

    def _write_twice(
        self,
        transport: asyncio.Transport | None,
        first: bytes,
        unsolicited: Unsolicited,
        message_id: str | None,
    ) -> None:
        second = self._unasked(unsolicited, message_id)
        if unsolicited.after > 0:
            write(transport, first)
            loop = asyncio.get_running_loop()
            loop.call_later(unsolicited.after, self._write_unsolicited, transport, second)
        else:
            self._write_unsolicited(transport, first + second)

    def _write_unsolicited(self, transport: asyncio.Transport | None, data: bytes) -> None:
        write(transport, data)
        self._unsolicited.add()

    def _unasked(self, unsolicited: Unsolicited, message_id: str | None) -> bytes:
        if unsolicited.raw is not None:
            return unsolicited.raw
        if unsolicited.status == 200:
            name = message_id or "01SANDBOXUNSOLICITED000001"
            message = self.messages.get(name) or self._stranger(name)
            response = json_response(message_fields(message, "unsolicited"))
        else:
            response = scripted(unsolicited.status, "envelope")
        return b"".join(encode(response, secrets.token_hex(16), now=time.time(), close=False))

    def _another(self, message_id: str | None) -> Response:
        """A 200 for any message but this one."""
        for message in itertools.islice(self.messages.values(), 2):
            if message.id != message_id:
                return json_response(message_fields(message, message.metadata))
        return json_response(message_fields(self._stranger("01SANDBOXANOTHERMESSAGE001"), ""))

    def _stranger(self, message_id: str) -> SandboxMessage:
        return SandboxMessage(
            id=message_id,
            project_id=self._default_project_id,
            accept_time=timestamp(self._started_at),
        )

    async def _serve_token(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        key, name = self._basic_key(credentials) if scheme.lower() == "basic" else (None, None)
        record = SandboxTokenRequest(self._token_requests_arrived.count + 1, self._clock(), name)
        remember(self.token_requests, record, keep=self._keep_requests)
        script = self._take_token_script() or TokenScript(remaining=1)
        admitted = script.replaces or self._token_limit.admits(record.time)
        self._token_requests_arrived.add()
        try:
            if self._token_gate.is_shut:
                await self._listener.suspended(self._token_gate.passed())
            if script.delay > 0:
                await self._listener.suspended(asyncio.sleep(script.delay))
            if script.drop:
                return CLOSED
            if script.response is not None:
                response = script.response
            elif not admitted:
                response = scripted(429, oauth_error("too_many_requests"))
            else:
                content_type = request.headers.get("Content-Type")
                response = self._issue(request.method, content_type, body, key, script.fields)
            record.status = response.status
            return _write_plainly(request, response, record.number)
        finally:
            self._tell(record)

    def _tell(self, record: SandboxRequest | SandboxTokenRequest) -> None:
        """Hand a request that is over to the user's function, whose errors are only logged."""
        if self._on_request is None:
            return
        try:
            self._on_request(record)
        except Exception:  # noqa: BLE001  # it is the user's code, and may raise anything
            _log.exception("on_request failed")


@attrs.define(eq=False)
class _Exchange:
    """A request on its way through the sandbox.

    `complaint` is the 400 for what it holds, `refusal` the response of a request that is not
    served, and `response` the one that was made before its script's delay.
    """

    request: web.BaseRequest
    record: SandboxRequest
    complaint: Response | None
    script: Script | None
    refusal: Response | None = None
    response: Response | None = None


def _unserved(record: SandboxRequest) -> Response | None:
    """The response to a path or a method that the API does not have."""
    if record.project_id is None:
        return NO_SUCH_PATH
    allowed = ("GET",) if record.message_id is None else ("GET", "PATCH")
    if record.method in allowed:
        return None
    words = ", ".join(allowed)
    return envelope(405, f"Served here: {words}.", headers=(("Allow", words),))


def _write_plainly(
    request: web.BaseRequest, response: Response, number: int = 0
) -> web.StreamResponse:
    keep_alive = request.keep_alive
    head, content = encode(response, f"{number:032x}", now=time.time(), close=not keep_alive)
    write(request.transport, head + (b"" if request.method == "HEAD" else content))
    return KEPT if keep_alive else CLOSED


def _check_numbers(port: int, keep_requests: int | None) -> None:
    if not 0 <= port <= 65_535:
        raise ValueError(f"port must be between 0 and 65535, not {port}")
    if keep_requests is not None and keep_requests < 0:
        raise ValueError(f"keep_requests must be 0 or more, or None, not {keep_requests}")
