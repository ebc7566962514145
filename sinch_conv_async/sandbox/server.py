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

        The secret is one of them. They are those of the first project, unless another is named.
        Raises KeyError for an unknown project.
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
        """The environment variables that lead to this sandbox.

        ``ConversationClient.from_env()`` and the commands read them. They hold what
        :meth:`client_options` holds, under the names ``SINCH_PROJECT_ID`` and so on.
        """
        options = self.client_options(project_id)
        return {f"SINCH_{name.upper()}": str(value) for name, value in options.items()}

    # What it has seen.

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
