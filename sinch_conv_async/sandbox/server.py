"""The sandbox itself: what a user makes, starts and asks."""

from __future__ import annotations

import asyncio
import ssl as tls
import time
import warnings
from collections.abc import Callable
from typing import Final

from aiohttp import web

from .connections import CLOSED, Listener
from .control import CONTROL_PATH, control
from .faults import Unsolicited
from .records import ClientOptions, SandboxRequest, SandboxTokenRequest
from .serving import Serving, write_plainly
from .thread import on_its_loop
from .tokens import Access

__all__ = ["Sandbox"]

_OAUTH2_PATH: Final = "/oauth2/token"
# How to reach a server that listens on all addresses of the machine.
_LOOPBACK_OF: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not listened on


class Sandbox(Serving):
    """A local Conversation API for tests: ``async with Sandbox() as sandbox``.

    It serves, on one port, ``PATCH`` and ``GET /v1/projects/{project_id}/messages/{message_id}``,
    the list at ``GET /v1/projects/{project_id}/messages`` with its filters and page tokens, and
    ``POST /oauth2/token``.

    :param project_id: the first project; :meth:`add_project` adds others.
    :param key_id: the access key of that project; a made-up one by default.
    :param key_secret: the key's secret; a made-up one by default.
    :param rate_limit: requests that the project may send in any window of one second, over all
        connections, counted as they arrive. Further requests get 429 without Retry-After, and are
        not counted. None (default): no limit. The real service allows 800.
    :param rate_burst: makes the rate limit a token bucket of so many requests, which refills with
        ``rate_limit`` a second. None (default): a window of one second.
    :param token_lifetime: seconds for which a token is valid, by a monotonic clock.
    :param token_burst: requests that the token endpoint allows at once.
    :param token_rate: requests a second by which that burst refills. Further requests get 429
        without Retry-After. None: no limit.
    :param latency: seconds added before each answer of the API. It may be changed at any time.
    :param host: the address to listen on.
    :param port: the port to listen on; 0 (default) takes a free one.
    :param ssl: a server's context for https.
    :param auto_create: answer for every message id, as if the message existed.
    :param keep_requests: how many of the latest requests to remember in ``requests`` and
        ``token_requests``; None (default): all.
    :param keep_headers: remember the headers of API requests too, credentials included.
    :param clock: the clock for arrivals, rate limits and lifetimes, in seconds.
    :param on_request: called with each finished :class:`SandboxRequest` and
        :class:`SandboxTokenRequest`.

    Raises ValueError for an invalid argument, such as a negative latency.

    Its attributes, besides ``latency``:

    ``messages``
        The messages it knows (:class:`SandboxMessage`), by id.
    ``requests``, ``token_requests``
        The requests to the API (:class:`SandboxRequest`) and to the token endpoint
        (:class:`SandboxTokenRequest`), oldest first. They are plain lists: you may clear them; the
        numbering goes on.
    ``next_token``
        The text of the next issued token, used once. None: a random text.
    ``updates_applied``, ``peak_in_flight``
        The number of updates that changed a message, and the most API requests that waited for
        their answer at the same time.

    The sandbox handles a request in this order:

    1. It is recorded when it has arrived completely. The faults that are due with it
       (:meth:`every`, :meth:`at_random`) are called. It takes the oldest script that fits it
       (``fail_next`` and so on), at most one, on arrival.
    2. If no script replaces the answer: an unknown path gets 404 and another method 405; bad
       credentials get 401, and credentials of another project 403. Then requests above the rate
       limit get 429. Only requests that are not refused in this step count against ``rate_limit``.
    3. It waits while answers are held (:meth:`hold`), and for ``latency`` and its script's delay.
       After a wait its credentials are checked again, so that a token that has expired meanwhile
       gets 401.
    4. The body and the query are checked (400), the message is looked up (404), changed, and
       answered (200). The message is changed even if the caller has disconnected, as with any
       server.

    ``async with`` starts it on the running event loop. A plain ``with`` starts it in a thread of
    its own, for synchronous code. Then other threads may call all methods, and :meth:`run` waits
    for coroutines. Closing the sandbox resets its connections, and starting it again uses the same
    port, so that the two together make an outage. Everything else is kept meanwhile.
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
        Access.__init__(
            self,
            token_lifetime=token_lifetime,
            token_burst=token_burst,
            token_rate=token_rate,
            clock=clock,
        )
        Serving.__init__(
            self,
            Listener(self._serve, host=host, port=port, ssl=ssl),
            latency=latency,
            auto_create=auto_create,
            keep_requests=keep_requests,
            keep_headers=keep_headers,
            on_request=on_request,
        )
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

    # Starting and stopping

    async def start(self) -> None:
        """Listen. Does nothing if it listens already.

        After :meth:`close` it uses the same port again. Raises OSError if the port is taken.
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
        """Start, serve until cancelled, and close: the main coroutine of a program."""
        await self.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.close()

    @property
    def port(self) -> int:
        """The port, also after :meth:`close`. RuntimeError before the first start."""
        if not self._listener.port:
            raise RuntimeError("the sandbox has no port before it is started")
        return self._listener.port

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as ``http://127.0.0.1:40123``.

        The host is the loopback if the sandbox listens on all addresses.
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
        """The keyword arguments of a ``ConversationClient`` for this sandbox.

        They include the secret. They are for the first project, unless another is named. Raises
        KeyError for an unknown project.
        """
        project = self._project(project_id)
        return {
            "project_id": project.id,
            "key_id": project.key.id,
            "key_secret": project.key.secret,
            "conversation_origin": self.conversation_origin,
            "auth_origin": self.auth_origin,
        }

    def environment(self, project_id: str | None = None) -> dict[str, str]:
        """The environment variables for this sandbox.

        ``ConversationClient.from_env()`` and the commands read them. They have the values of
        :meth:`client_options`, under the names ``SINCH_PROJECT_ID`` and so on.
        """
        options = self.client_options(project_id)
        return {f"SINCH_{name.upper()}": str(value) for name, value in options.items()}

    # Connections and requests

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
        """How many API requests wait for their answer now."""
        return self._in_flight

    async def wait_for_requests(self, number: int) -> None:
        """Return as soon as so many API requests have arrived since the sandbox was made."""
        await self._there(self._arrived.reaches(number))

    async def wait_for_token_requests(self, number: int) -> None:
        """Return as soon as so many token requests have arrived since the sandbox was made."""
        await self._there(self._token_requests_arrived.reaches(number))

    async def wait_for_unsolicited(self, number: int) -> None:
        """Return as soon as so many unsolicited answers have been written."""
        await self._there(self._unsolicited.reaches(number))

    # Immediate actions

    @on_its_loop
    def send_unsolicited(self, raw: bytes | None = None, *, status: int = 200) -> int:
        """Write an answer that nobody asked for on every idle connection; return their number."""
        idle = self._listener.idle()
        for transport in idle:
            self._write_unsolicited(transport, self._unasked(Unsolicited(raw, status, 0), None))
        return len(idle)

    @on_its_loop
    def close_idle(self) -> int:
        """Close every idle connection now in order, as a server does at its keep-alive timeout.

        Return their number.
        """
        idle = self._listener.idle()
        for transport in idle:
            transport.close()
        return len(idle)

    @on_its_loop
    def clear_faults(self) -> None:
        """Forget every script, including recurring ones and those of the token endpoint.

        Tokens are accepted again after :meth:`refuse_tokens`.
        """
        super().clear_faults()
        self.refuse_tokens(None)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await request.content.read() if request.body_exists else b""
        except (web.RequestPayloadError, ConnectionError):
            return CLOSED  # the caller broke off, or sent something that is not HTTP
        path, _, query = request.raw_path.partition("?")
        if path == _OAUTH2_PATH:
            return await self._serve_token(request, body)
        if path.startswith(CONTROL_PATH):
            rest = path.removeprefix(CONTROL_PATH)
            content_type = request.headers.get("Content-Type")
            return write_plainly(
                request, control(self, request.method, rest, query, content_type, body)
            )
        return await self._serve_api(request, path, query, body)


def _check_numbers(port: int, keep_requests: int | None) -> None:
    if not 0 <= port <= 65_535:
        raise ValueError(f"port must be between 0 and 65535, not {port}")
    if keep_requests is not None and keep_requests < 0:
        raise ValueError(f"keep_requests must be 0 or more, or None, not {keep_requests}")
