"""The session manager: it owns the connections, the tokens and the pace of each project, and sends every request.

It says who shares what; ``send`` has the loop of a call, ``exchange`` the HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl as tls
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import attrs
from aiohttp.abc import AbstractResolver
from yarl import URL

from .._wire.arguments import Credentials
from .._wire.failure import Failure
from .._wire.requests import Request, token_request
from .._wire.responses import TokenResponse, read_message
from ..errors import (
    ClientStateError,
    InvalidArgumentError,
    TokenError,
)
from ..models import ConversationMessage
from .admission import Admission, Project
from .exchange import ConnectionOptions, Connections, Exchange
from .lifetime import closed_error
from .send import Call, Sender
from .tokens import EndpointPace, Token, TokenSource

__all__ = ["Binding", "ProjectStats", "SessionManager", "SessionStats"]

FORGET_ABOVE: Final = 64
"""Projects and tokens that a manager keeps without asking itself whether they are still of use."""

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
    connections: Connections = attrs.field(repr=False)
    admission: Admission = attrs.field(repr=False)
    closing: asyncio.Task[None] | None = attrs.field(default=None, repr=False)


class SessionManager:
    """A connection pool, an OAuth 2.0 token cache and the pace of each project, for one client or for many.

    ``max_connections``: exchanges under way at a time, over all projects. ``ssl``: an
    :class:`ssl.SSLContext` or :class:`aiohttp.Fingerprint` for a private CA or a client certificate;
    a context that does not verify certificates and host names is refused. ``proxy``: the URL of an
    HTTP proxy, with user and password if it asks for them; the environment's proxies are not used. A
    client whose origin is http is refused unless the proxy is on this machine too. ``resolver``: an
    aiohttp resolver, or a function that makes one for each event loop, such as
    ``aiohttp.AsyncResolver``; what the function makes is closed with the connections.
    ``trace_configs``: :class:`aiohttp.TraceConfig` objects; what they are shown includes the access
    token.

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
        resolver: AbstractResolver | Callable[[], AbstractResolver] | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        options = ConnectionOptions.checked(
            ssl=ssl, proxy=proxy, resolver=resolver, trace_configs=trace_configs
        )
        del proxy  # it may hold a password, and this frame may end up in a crash report
        if isinstance(options, str):
            raise InvalidArgumentError(options)
        if type(max_connections) is not int or max_connections < 1:
            raise InvalidArgumentError("max_connections must be a whole number, 1 or more")
        self._max_connections = max_connections
        self._options = options
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
        await binding.connections.aclose()
        self._binding = None

    def __del__(self, _warn: Any = warnings.warn) -> None:
        binding: Binding | None = getattr(self, "_binding", None)
        if binding is None or binding.connections.closed:
            return
        if binding.pid != os.getpid():
            binding.connections.leave_to_parent()
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
        admission = Admission(self._max_connections, clock=self._clock, call_later=loop.call_later)
        self._binding = Binding(loop, os.getpid(), Connections(self._options), admission)
        return self._binding

    def _unbind(self, binding: Binding) -> None:
        """Forgets an event loop that is closed, and what was waiting on it."""
        self._binding = None
        for project in self._projects.values():
            project.forget_loop()
        for source in self._sources.values():
            source.forget_loop()
        for member in self._members:
            member.lifetime = member.lifetime.on_another_loop()
        binding.connections.discard()

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
        known = Exchange()
        try:
            answer = await binding.connections.exchange(
                call.request, token, known, timeout=member.attempt_timeout
            )
        finally:
            call.maybe_sent |= known.connected
        if isinstance(answer, Failure):
            outcome: ConversationMessage | Failure = answer
        else:
            outcome = read_message(
                answer,
                call.request,
                reused=known.reused,
                scrub=lambda text: token.scrub(member.authorization.credentials.scrub(text)),
            )
        if isinstance(outcome, Failure) and outcome.crossed:
            known.abort()
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
        request = token_request(auth_origin)

        async def request_token(credentials: Credentials) -> TokenResponse | Failure:
            request_of_manager = ask()
            if request_of_manager is None:
                return Failure(TokenError("the client is gone"), retryable=False)
            return await request_of_manager(request, credentials)

        return request_token

    async def _request_token(self, request: Request, credentials: Credentials) -> TokenResponse | Failure:
        binding = self._binding
        assert binding is not None  # a fetch is only started by a call, which is bound
        self._token_requests += 1
        return await binding.connections.request_token(request, credentials)
