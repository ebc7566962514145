"""How the sandbox serves a request, in the order that :class:`Sandbox` promises.

`faults.py` has the scripts of a test, `tokens.py` the access rules, `messages.py` and `listing.py`
the answers, `connections.py` the writing of bytes. This file puts them together.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

import attrs
from aiohttp import web

from .connections import CLOSED, KEPT, Listener, reset, trickle, write
from .faults import Faults, Script, TokenScript, Unsolicited, check_seconds
from .listing import Listing, source_complaint
from .messages import Messages, SandboxMessage, message_fields, read_metadata
from .records import SandboxRequest, SandboxTokenRequest, Tally, remember
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

__all__ = ["Serving", "write_plainly"]

_log: Final = logging.getLogger("sinch_conv_async.sandbox")

_PATH: Final = re.compile(r"/v1/projects/([^/]+)/messages(?:/([^/]+))?")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")


class Serving(Faults, Messages):
    """The part of the sandbox that serves requests, and remembers them."""

    def __init__(
        self,
        listener: Listener,
        *,
        latency: float,
        auto_create: bool,
        keep_requests: int | None,
        keep_headers: bool,
        on_request: Callable[[SandboxRequest | SandboxTokenRequest], None] | None,
    ) -> None:
        Faults.__init__(self)
        self.latency = latency
        self.messages = {}
        self.requests: list[SandboxRequest] = []
        self.token_requests: list[SandboxTokenRequest] = []
        self.updates_applied = 0
        self.peak_in_flight = 0
        self._listener = listener
        self._auto_create = auto_create
        self._keep_requests = keep_requests
        self._keep_headers = keep_headers
        self._on_request = on_request
        self._started_at = time.time()
        self._listing = Listing()
        self._in_flight = 0
        self._arrived = Tally()
        self._token_requests_arrived = Tally()
        self._unsolicited = Tally()

    @property
    def latency(self) -> float:
        """Seconds added before each answer of the API. Less than 0 raises ValueError."""
        return self._latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        check_seconds("latency", seconds)
        self._latency = seconds

    # A request to the API.

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
        """Record a request, call the faults that are due, and decide whether it is refused."""
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
        # The record uses the strings that are kept already.
        project = self._projects.get(project_id)
        message = self.messages.get(message_id)
        return (
            project_id if project is None else project.id,
            message_id if message is None else message.id,
        )

    def _refuse(self, exchange: _Exchange) -> Response | None:
        """The response to a request that is not served, or not allowed by its credentials."""
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
        """Delay a request as the sandbox and its script say."""
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
        """Carry out the request, or with `store` off only answer as if it had been carried out."""
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
        """Write the response that the script has instead of the usual one."""
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
            project_id=self._project(None).id,
            accept_time=timestamp(self._started_at),
        )

    # A request to the token endpoint.

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
            return write_plainly(request, response, record.number)
        finally:
            self._tell(record)

    def _tell(self, record: SandboxRequest | SandboxTokenRequest) -> None:
        """Call the user's function with a finished request; its errors are only logged."""
        if self._on_request is None:
            return
        try:
            self._on_request(record)
        except Exception:  # noqa: BLE001  # the user's code may raise anything
            _log.exception("on_request failed")


@attrs.define(eq=False)
class _Exchange:
    """A request while the sandbox handles it.

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


def write_plainly(
    request: web.BaseRequest, response: Response, number: int = 0
) -> web.StreamResponse:
    """Write a response that no script changes."""
    keep_alive = request.keep_alive
    head, content = encode(response, f"{number:032x}", now=time.time(), close=not keep_alive)
    write(request.transport, head + (b"" if request.method == "HEAD" else content))
    return KEPT if keep_alive else CLOSED
