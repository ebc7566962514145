"""The session manager: it owns the connections, the tokens and the pace of each project, and sends every request.

The only file that calls aiohttp's client. What aiohttp must not be left to decide is decided here: who goes next, what is tried again, where a
redirect leads (nowhere), and what of its exceptions a caller gets to see (nothing: they carry request headers).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import ssl as tls
import sys
import time
import warnings
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import attrs
from aiohttp.abc import AbstractResolver
from yarl import URL

from .._wire import http as _wire
from .._wire.failure import Failure
from .._wire.http import MAX_ANSWER, Credentials, Request, Response, TokenResponse
from ..errors import (
    ClientStateError,
    InvalidArgumentError,
    ResponseFormatError,
    TokenError,
    TransportError,
)
from ..models import ConversationMessage
from .admission import Admission, Project
from .lifetime import closed_error
from .pool import NO_TIMEOUT, Connector, Exchange, exchange, read_body, transport_failure
from .send import Call, Sender
from .tokens import BasicAuthorization, EndpointPace, Token, TokenSource

__all__ = ["Binding", "ProjectStats", "SessionManager", "SessionStats"]

TOKEN_TIMEOUT: Final = 10.0
"""Seconds that one token request may take."""

KEEPALIVE: Final = 30.0
"""Seconds that an idle connection is kept. One that the server closed meanwhile is noticed before it is used."""

FORGET_ABOVE: Final = 64
"""Projects and tokens that a manager keeps without asking itself whether they are still of use."""

USER_AGENT: Final = f"sinch-conv-async/{_wire.VERSION} (Python/{sys.version_info[0]}.{sys.version_info[1]}; aiohttp/{aiohttp.__version__})"

_log = logging.getLogger("sinch_conv_async")


@attrs.frozen
class ProjectStats:
    """One project of a manager at one moment. ``pace`` is in requests a second, infinite when nothing sets it."""

    origin: str
    project_id: str
    pace: float
    in_flight: int
    waiting: int
    throttled: int


@attrs.frozen
class SessionStats:
    """A manager's counters at one moment.

    Since the manager was made: ``calls`` that were started, ``attempts`` (HTTP exchanges with the API), ``retries`` (attempts after the
    first of a call), ``throttled`` (answers 429) and ``token_requests``. Now: ``in_flight`` exchanges, calls ``waiting`` for their turn, and
    ``projects`` with the pace of each.
    """

    calls: int
    attempts: int
    retries: int
    throttled: int
    token_requests: int
    in_flight: int
    waiting: int
    projects: tuple[ProjectStats, ...]


@attrs.define(eq=False)
class Binding:
    """What belongs to one event loop of one process."""

    loop: asyncio.AbstractEventLoop
    pid: int
    connector: Connector = attrs.field(repr=False)
    http: aiohttp.ClientSession = attrs.field(repr=False)
    # By way of http, since a proxy or trace hooks ask for more than the connector's own round trip.
    traced: bool
    admission: Admission = attrs.field(repr=False)
    pool: AsyncGenerator[None, None] = attrs.field(repr=False)
    closing: asyncio.Task[None] | None = attrs.field(default=None, repr=False)
    _routes: dict[str, aiohttp.ClientRequest] = attrs.field(factory=dict, repr=False)

    def route(self, request: Request) -> aiohttp.ClientRequest:
        """What tells the connector where to connect to; the same for all requests to one origin."""
        route = self._routes.get(request.origin)
        if route is None:
            route = self._routes[request.origin] = aiohttp.ClientRequest(
                "GET", URL(request.origin), loop=self.loop
            )
        return route


async def _pool(http: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    """Closes the connections when nobody holds it any more, and at the latest when its event loop ends.

    A loop that ends (``asyncio.run``, ``asyncio.Runner``) closes the asynchronous generators that were started on it.
    """
    try:
        yield
    finally:
        await http.close()


class SessionManager:
    """A connection pool, an OAuth 2.0 token cache and the pace of each project, for one client or for many.

    ``max_connections``: exchanges under way at a time, over all projects. ``ssl``: an :class:`ssl.SSLContext` or :class:`aiohttp.Fingerprint`
    for a private CA or a client certificate. ``proxy``: the URL of an HTTP proxy, with user and password if it asks for them; the environment's proxies are
    not used. ``resolver``: an aiohttp resolver. ``trace_configs``: :class:`aiohttp.TraceConfig` objects; what they are shown includes the access token.

    The constructor opens nothing and needs no event loop: the manager binds to the running loop at its first call, and anew when that loop has
    been closed. While that loop lives, another loop, thread or forked process gets :class:`ClientStateError`.

    Raises :class:`InvalidArgumentError` for an argument that cannot be right.
    """

    def __init__(
        self,
        *,
        max_connections: int = 256,
        ssl: tls.SSLContext | aiohttp.Fingerprint | None = None,
        proxy: str | URL | None = None,
        resolver: AbstractResolver | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        checked = _wire.checked_proxy(proxy)
        del proxy  # it may hold a password, and this frame may end up in a crash report
        if isinstance(checked, str):
            raise InvalidArgumentError(checked)
        if type(max_connections) is not int or max_connections < 1:
            raise InvalidArgumentError("max_connections must be a whole number, 1 or more")
        if ssl is not None and not isinstance(ssl, tls.SSLContext | aiohttp.Fingerprint):
            raise InvalidArgumentError(
                "ssl must be an ssl.SSLContext, an aiohttp.Fingerprint or None: certificates are always verified"
            )
        if resolver is not None and not isinstance(resolver, AbstractResolver):
            raise InvalidArgumentError("resolver must be an aiohttp resolver or None")
        traces: list[Any] = list(trace_configs) if isinstance(trace_configs, Iterable) else [trace_configs]
        if not all(isinstance(trace, aiohttp.TraceConfig) for trace in traces):
            raise InvalidArgumentError("trace_configs must be aiohttp.TraceConfig objects")
        self._max_connections = max_connections
        self._ssl = ssl
        self._proxy = checked
        self._resolver = resolver
        self._trace_configs: list[aiohttp.TraceConfig] = traces
        self._clock = time.monotonic
        self._rng = random.Random()  # noqa: S311  # spreads retries, guards nothing
        self._binding: Binding | None = None
        self._closed = False
        self._members: weakref.WeakSet[Sender] = weakref.WeakSet()
        self._projects: dict[tuple[str, str], Project] = {}
        self._sources: dict[tuple[str, Credentials], TokenSource] = {}
        self._endpoints: dict[str, EndpointPace] = {}
        self._forget_above = FORGET_ABOVE
        self._calls = 0
        self._attempts = 0
        self._retries = 0
        self._throttled = 0
        self._token_requests = 0

    # Lifetime

    @property
    def max_connections(self) -> int:
        """How many exchanges may be under way at a time."""
        return self._max_connections

    @property
    def closed(self) -> bool:
        """Whether the manager has been closed."""
        return self._closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the manager and every client on it; closing twice is fine.

        Calls that wait fail now with :class:`ClientStateError`. Exchanges under way finish, within their ``attempt_timeout``; nothing is retried.
        """
        binding = self._living_binding()
        self._closed = True
        members = list(self._members)
        for member in members:
            member.lifetime.fail_waiting()
        if binding is None:
            return
        if binding.closing is None or binding.closing.cancelled():
            binding.closing = binding.loop.create_task(
                self._close(binding, members), name="sinch_conv_async closing"
            )
        # In a task of its own: whoever waits for it may be cancelled, and still nothing stays open.
        await asyncio.shield(binding.closing)

    async def _close(self, binding: Binding, members: list[Sender]) -> None:
        await asyncio.gather(*(source.close() for source in self._sources.values()))
        for member in members:
            await member.lifetime.drained()
        binding.admission.stop()
        await binding.pool.aclose()
        self._binding = None

    def __del__(self, _warn: Any = warnings.warn) -> None:
        binding: Binding | None = getattr(self, "_binding", None)
        if binding is None or binding.http.closed:
            return
        if binding.pid != os.getpid():
            binding.http.detach()  # the parent's, which goes on with it
            return
        _warn(f"unclosed {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        if not hasattr(self, "_members"):
            # Its constructor refused an argument, and crash reporters print that frame's variables.
            return "<SessionManager not constructed>"
        stats = self.stats()
        state = "closed" if self._closed else "open" if self._binding is not None else "unused"
        paces = ", ".join(f"{project.project_id} {project.pace:.0f}/s" for project in stats.projects[:3])
        more = f" and {len(stats.projects) - 3} more" if len(stats.projects) > 3 else ""
        return (
            f"<SessionManager {state}: {stats.in_flight} of {self._max_connections} in flight, {stats.waiting} waiting, "
            f"calls {stats.calls}, attempts {stats.attempts}, retries {stats.retries}, throttled {stats.throttled}, "
            f"token requests {stats.token_requests}{'; pace ' if paces else ''}{paces}{more}>"
        )

    def stats(self) -> SessionStats:
        """The counters as they stand; may be called from any thread."""
        now = self._clock()
        projects = tuple(
            ProjectStats(
                origin,
                project_id,
                project.pace.rate_at(now),
                project.in_flight,
                project.waiting,
                project.throttled,
            )
            for (origin, project_id), project in list(self._projects.items())
        )
        return SessionStats(
            calls=self._calls,
            attempts=self._attempts,
            retries=self._retries,
            throttled=self._throttled,
            token_requests=self._token_requests,
            in_flight=sum(project.in_flight for project in projects),
            waiting=sum(project.waiting for project in projects),
            projects=projects,
        )

    # What clients share

    def _source(self, auth_origin: str, credentials: Credentials) -> TokenSource:
        source = self._sources.get((auth_origin, credentials))
        if source is None:
            source = TokenSource(
                credentials,
                request=self._token_requester(auth_origin),
                endpoint=self._endpoints.setdefault(auth_origin, EndpointPace()),
                clock=self._clock,
                rng=self._rng,
            )
            self._sources[auth_origin, credentials] = source
        return source

    def _project(self, origin: str, project_id: str) -> Project:
        return self._projects.setdefault((origin, project_id), Project())

    def _forget_unused(self) -> None:
        """Lets go of projects and tokens that no client has used for a while, so that a manager can outlive any number of them."""
        if len(self._projects) + len(self._sources) < self._forget_above:
            return
        now = self._clock()
        kept = {member.project for member in self._members if not member.lifetime.closed}
        used = {member.authorization for member in self._members if not member.lifetime.closed}
        self._projects = {
            key: project
            for key, project in self._projects.items()
            if project in kept or not project.forgettable(now)
        }
        self._sources = {
            key: source
            for key, source in self._sources.items()
            if source in used or not source.forgettable(now)
        }
        self._forget_above = 2 * (len(self._projects) + len(self._sources)) + FORGET_ABOVE

    # Binding to an event loop

    def _bound(self) -> Binding:
        if self._closed:
            raise closed_error()
        binding = self._binding
        if binding is not None and binding.loop is asyncio.get_running_loop() and binding.pid == os.getpid():
            return binding
        self._living_binding()
        return self._bind()

    def _check_owner(self) -> None:
        """Raises ClientStateError where another event loop or process that is still there has the manager."""
        binding = self._binding
        if binding is None or binding.loop.is_closed():
            return
        if binding.pid != os.getpid():
            raise ClientStateError(
                "this client was in use when the process was forked; make a new one in the child process"
            )
        if binding.loop is not asyncio.get_running_loop():
            raise ClientStateError(
                "this client belongs to another event loop that is still there; make one client for each event loop or thread"
            )

    def _living_binding(self) -> Binding | None:
        """What the manager has on the running event loop, if anything; what it had on one that is closed is let go."""
        self._check_owner()
        if self._binding is not None and self._binding.loop.is_closed():
            self._unbind(self._binding)
        return self._binding

    def _bind(self) -> Binding:
        """Makes a fresh pool on the running loop. Tokens are kept: they are not the loop's."""
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {
            "keepalive_timeout": KEEPALIVE,
            "ssl": True if self._ssl is None else self._ssl,
        }
        if self._resolver is not None:
            options["resolver"] = self._resolver
        connector = Connector(**options)
        http = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=NO_TIMEOUT,
            trust_env=False,
            auto_decompress=False,  # a bomb is defused where the answer is read
            trace_configs=self._trace_configs,
        )
        pool = _pool(http)
        with contextlib.suppress(StopIteration):
            anext(pool).send(None)  # up to its yield, which makes the loop take charge of it
        admission = Admission(self._max_connections, clock=self._clock, call_later=loop.call_later)
        self._binding = binding = Binding(loop, os.getpid(), connector, http, self._traced, admission, pool)
        return binding

    @property
    def _traced(self) -> bool:
        return bool(self._proxy or self._trace_configs)

    def _unbind(self, binding: Binding) -> None:
        """Forgets an event loop that is closed, and what was waiting on it."""
        self._binding = None
        for project in self._projects.values():
            project.forget_loop()
        for source in self._sources.values():
            source.forget_loop()
        for member in self._members:
            member.lifetime = member.lifetime.on_another_loop()
        if not binding.http.closed:
            binding.http.detach()
            binding.connector.discard()

    # Sending

    async def _exchange(
        self, binding: Binding, member: Sender, call: Call, token: Token
    ) -> ConversationMessage | Failure:
        """One HTTP exchange: what the API answered, or how there came to be no answer."""
        call.attempts += 1
        call.failure = None
        self._attempts += 1
        self._retries += call.attempts > 1
        began = self._clock()
        under_way = Exchange()
        try:
            answer = await self._http(binding, call.request, token, under_way, timeout=member.attempt_timeout)
        finally:
            call.maybe_sent |= under_way.connected
        if isinstance(answer, Failure):
            outcome: ConversationMessage | Failure = answer
        else:
            outcome = _wire.read_answer(
                answer,
                call.request,
                scrub=lambda text: token.scrub(member.authorization.credentials.scrub(text)),
            )
        if isinstance(outcome, Failure) and outcome.crossed and under_way.transport is not None:
            under_way.transport.abort()
        if _log.isEnabledFor(logging.DEBUG):
            self._log_exchange(member, call, outcome, self._clock() - began)
        return outcome

    def _log_exchange(
        self, member: Sender, call: Call, outcome: ConversationMessage | Failure, seconds: float
    ) -> None:
        error = outcome.error if isinstance(outcome, Failure) else None
        status = getattr(error, "http_status", None) if error else 200
        fields = {
            "project_id": member.project_id,
            "message_id": call.request.message_id,
            "attempt": call.attempts,
            "status": status,
            "error": type(error).__name__ if error else None,
            "seconds": round(seconds, 6),
        }
        _log.debug(
            "attempt %d: %s after %.3f s", call.attempts, status or fields["error"], seconds, extra=fields
        )

    def _token_requester(
        self, auth_origin: str
    ) -> Callable[[Credentials], Awaitable[TokenResponse | Failure]]:
        """What the token cache asks with. It holds the manager weakly, so that one that is forgotten is freed, and says so, at once."""
        ask = weakref.WeakMethod(self._request_token)
        request = _wire.token_request(auth_origin)

        async def request_token(credentials: Credentials) -> TokenResponse | Failure:
            request_of_manager = ask()
            if request_of_manager is None:
                return Failure(TokenError("the client is gone"), retryable=False)
            return await request_of_manager(request, credentials)

        return request_token

    async def _request_token(self, request: Request, credentials: Credentials) -> TokenResponse | Failure:
        """One request to the token endpoint (RFC 6749, section 4.4.2)."""
        binding = self._binding
        assert binding is not None  # a fetch is only started by a call, which is bound
        self._token_requests += 1
        basic = BasicAuthorization(credentials).token
        answer = await self._http(binding, request, basic, Exchange(), timeout=TOKEN_TIMEOUT)
        if isinstance(answer, Failure):
            error = TokenError(f"the token endpoint gave no answer: {answer.error}")
            outcome: TokenResponse | Failure = Failure(error, retryable=answer.retryable)
        else:
            outcome = _wire.read_token_answer(answer, scrub=credentials.scrub)
        if isinstance(outcome, Failure):
            _log.warning("no access token: %s", outcome.error, extra={"key_id": credentials.key_id})
        else:
            _log.debug("access token for %.0f s", outcome.lifetime, extra={"key_id": credentials.key_id})
        return outcome

    async def _http(
        self, binding: Binding, request: Request, token: Token, under_way: Exchange, *, timeout: float
    ) -> Response | Failure:
        """Sends one request and reads its answer. aiohttp's exceptions end here, and no frame above holds a header."""
        answer: Response | None = None
        cause: Exception | None = None
        whole = False
        context = exchange.set(under_way)
        try:
            async with asyncio.timeout(timeout):
                if binding.traced:
                    status, headers, body, whole = await self._round_trip(binding, request, token)
                else:
                    status, headers, body, whole = await binding.connector.round_trip(
                        binding.route(request),
                        _wire.serialized(request, token.head(request, user_agent=USER_AGENT)),
                        limit=MAX_ANSWER,
                    )
                answer = Response(status, headers, body)
        except (
            aiohttp.ClientError,
            aiohttp.http.HttpProcessingError,
            OSError,
        ) as error:  # TimeoutError is an OSError
            cause = error
        except BaseException as error:
            # Cancelled, or a trace hook of the user's raised: the same instance goes on, without the frames below and their headers.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            raise
        finally:
            # A coroutine that is collected is torn down in whatever context.
            with contextlib.suppress(ValueError):
                exchange.reset(context)
        if answer is None:
            assert cause is not None  # what is not caught is raised
            failure = transport_failure(cause, under_way, timeout=timeout)
            cause = None
            return failure
        if whole or answer.status >= 400:
            # An error's status says enough, also when its body was cut short.
            return answer
        if len(answer.body) > MAX_ANSWER:
            problem = f"the answer is longer than {MAX_ANSWER:,} bytes"
            return Failure(
                ResponseFormatError(problem, http_status=answer.status), retryable=False, maybe_applied=True
            )
        return Failure(
            TransportError("the connection was closed in the middle of the answer"),
            retryable=True,
            maybe_applied=True,
        )

    async def _round_trip(
        self, binding: Binding, request: Request, token: Token
    ) -> tuple[int, Mapping[str, str], bytes, bool]:
        """The same as the connector's, by way of aiohttp's session: for a proxy's and for trace hooks' sake."""
        proxy = self._proxy
        # aiohttp puts proxy_headers only into a CONNECT; a proxy that is sent the request itself is to find them there.
        plain = proxy.headers() if proxy is not None and request.url.scheme == "http" else {}
        response = await binding.http.request(
            request.method,
            request.url,
            data=request.body,
            headers={**_wire.request_headers(request, token.authorization, USER_AGENT), **plain},
            allow_redirects=False,
            proxy=None if proxy is None else proxy.url,
            proxy_headers=None if proxy is None else proxy.headers(),
        )
        exchange.get().answered = True
        whole = False
        try:
            body, whole = await read_body(response.content, limit=MAX_ANSWER)
            return response.status, response.headers, body, whole
        finally:
            if not whole:
                response.close()
