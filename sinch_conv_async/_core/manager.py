"""The session manager, and what its clients share.

Clients on one manager share its connections and slots; clients of one project share its pace,
clients with one key its token. The manager gives each client a :class:`Sender` that holds all it
needs, so no client reaches into the manager. :class:`Registry` holds what is shared,
:class:`Binder` what belongs to the running event loop.

No object that the manager holds refers back to it. So a manager that nobody refers to is freed at
once, and warns if it was not closed.
"""

from __future__ import annotations

import asyncio
import os
import ssl as tls
import types
import warnings
import weakref
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from .._wire.arguments import Credentials
from .._wire.failure import Failure
from .._wire.requests import messages_path, token_request
from .._wire.responses import TokenResponse
from ..errors import InvalidArgumentError, TokenError
from .admission import Project
from .binding import Binder, Binding
from .exchange import ConnectionOptions
from .retry import RetryPolicy
from .seams import Authorization
from .send import Sender
from .stats import Counters, ProjectStats, SessionStats
from .tokens import BasicAuthorization, EndpointPace, TokenSource

if TYPE_CHECKING:
    from ..fleet import Fleet
    from .sharing import Sharing

__all__ = ["SessionManager"]

FORGET_ABOVE: Final = 64
"""A manager that holds more projects and tokens than this looks for those that it can forget."""


class Registry:
    """What the clients of one manager share, and the clients themselves as long as they live."""

    def __init__(self) -> None:
        self.senders: weakref.WeakSet[Sender] = weakref.WeakSet()
        self.projects: dict[tuple[str, str], Project] = {}
        self.sources: dict[tuple[str, Credentials], TokenSource] = {}
        self.endpoints: dict[str, EndpointPace] = {}
        self.forget_above = FORGET_ABOVE
        self.sharing: Sharing | None = None

    def project(self, origin: str, project_id: str) -> Project:
        """The project, made if it is new."""
        return self.projects.setdefault((origin, project_id), Project())

    def requester(
        self, auth_origin: str, credentials: Credentials, binder: Binder, counters: Counters
    ) -> tuple[TokenRequester, Callable[[str], None] | None]:
        """The function that requests a token, and the one to call when the API refuses a token."""
        request = token_requester(auth_origin, binder, counters)
        if self.sharing is None:
            return request, None
        return self.sharing.requester(auth_origin, credentials, request)

    def source(
        self, auth_origin: str, credentials: Credentials, binder: Binder, counters: Counters
    ) -> TokenSource:
        """The token source of a key, made if it is new."""
        source = self.sources.get((auth_origin, credentials))
        if source is None:
            request, on_refused = self.requester(auth_origin, credentials, binder, counters)
            source = self.sources[auth_origin, credentials] = TokenSource(
                credentials,
                request=request,
                on_refused=on_refused,
                endpoint=self.endpoints.setdefault(auth_origin, EndpointPace()),
                clock=binder.clock.now,
                rng=binder.rng,
            )
        return source

    def forget_unused(self, now: float) -> None:
        """Forget projects and tokens that no client has used for a while.

        So a manager can outlive any number of them.
        """
        if len(self.projects) + len(self.sources) < self.forget_above:
            return
        kept = {sender.project for sender in self.senders if not sender.lifetime.closed}
        used = {sender.authorization for sender in self.senders if not sender.lifetime.closed}
        self.projects = {
            key: project
            for key, project in self.projects.items()
            if project in kept or not project.forgettable(now)
        }
        self.sources = {
            key: source
            for key, source in self.sources.items()
            if source in used or not source.forgettable(now)
        }
        if self.sharing is not None:
            self.sharing.forget_all_but(self.projects)
        self.forget_above = 2 * (len(self.projects) + len(self.sources)) + FORGET_ABOVE

    def forget_loop(self) -> None:
        """An event loop was closed, and the calls that waited on it are gone."""
        for project in self.projects.values():
            project.forget_loop()
        for source in self.sources.values():
            source.forget_loop()
        for sender in self.senders:
            sender.lifetime = sender.lifetime.on_another_loop()
        if self.sharing is not None:
            self.sharing.forget_loop()


TokenRequester = Callable[[Credentials], Awaitable[TokenResponse | Failure]]
"""Make one token request for a key."""


def sharing_of(fleet: Fleet) -> Sharing:
    """The object that keeps each project at its share of the fleet, or InvalidArgumentError."""
    # Imported here, because a manager without a fleet does not need it.
    from .sharing import Sharing

    if not all(
        callable(getattr(fleet, name, None)) for name in ("share", "token", "forget_token", "close")
    ):
        raise InvalidArgumentError("fleet must be a Fleet, such as a RedisFleet or a PostgresFleet")
    return Sharing(fleet)


def token_requester(auth_origin: str, binder: Binder, counters: Counters) -> TokenRequester:
    """A function that makes one token request.

    It holds the binder weakly, so that a manager that nobody refers to is freed at once.
    """
    request = token_request(auth_origin)
    holder = weakref.ref(binder)

    async def request_token(credentials: Credentials) -> TokenResponse | Failure:
        alive = holder()
        if alive is None or alive.current is None:
            return Failure(TokenError("the client is gone"), retryable=False)
        connections = alive.current.connections
        del alive
        counters.token_requests += 1
        answer = await connections.request_token(request, credentials)
        counters.token_failures += isinstance(answer, Failure)
        return answer

    return request_token


class SessionManager:
    """A connection pool, an OAuth 2.0 token cache and the pace of each project, shared by clients.

    ``max_connections``: exchanges under way at a time, over all projects. ``ssl``: an
    :class:`ssl.SSLContext` or :class:`aiohttp.Fingerprint` for a private CA or a client
    certificate; a context that does not verify certificates and host names is refused. ``proxy``:
    the URL of an HTTP proxy, with user and password if it asks for them; the environment's proxies
    are not used. A client whose origin is http is refused unless the proxy is on this machine too.
    ``resolver``: an aiohttp resolver, or a function that makes one for each event loop, such as
    ``aiohttp.AsyncResolver``; what the function makes is closed with the connections.
    ``trace_configs``: :class:`aiohttp.TraceConfig` objects; what they are shown includes the access
    token. ``fleet``: a store through which several processes share the limit and the token of each
    project, such as :class:`~sinch_conv_async.fleet.redis.RedisFleet`; the manager closes it.

    The constructor opens nothing and needs no event loop: the manager binds to the running loop at
    its first call, and anew when that loop has been closed. While that loop lives, another loop,
    thread or forked process gets :class:`ClientStateError`.

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
        fleet: Fleet | None = None,
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
        self._counters = Counters()
        self._registry = Registry()
        sharing = self._registry.sharing = None if fleet is None else sharing_of(fleet)
        self._binder = Binder(
            options,
            max_connections=max_connections,
            forget_loop=self._registry.forget_loop,
            on_bind=None if sharing is None else sharing.bound,
        )

    def sender(
        self,
        *,
        project_id: str,
        credentials: Credentials,
        auth: Literal["oauth2", "basic"],
        origin: str,
        auth_origin: str,
        rate_limit: float | None,
        policy: RetryPolicy,
        attempt_timeout: float,
    ) -> Sender:
        """The sender of one client.

        For :class:`ConversationClient`, which has checked the arguments; not for applications.
        """
        registry, binder = self._registry, self._binder
        binder.options.check_origin("conversation_origin", origin)
        if auth == "oauth2":
            binder.options.check_origin("auth_origin", auth_origin)
        # First of all, because the project that is looked up below is not in use yet.
        registry.forget_unused(binder.clock.now())
        authorization: Authorization = (
            BasicAuthorization(credentials)
            if auth == "basic"
            else registry.source(auth_origin, credentials, binder, self._counters)
        )
        sender = Sender(
            project_id=project_id,
            origin=origin,
            path=messages_path(project_id),
            policy=policy,
            attempt_timeout=attempt_timeout,
            project=registry.project(origin, project_id),
            authorization=authorization,
            binder=binder,
            counters=self._counters,
        )
        sender.project.join(sender, rate_limit=rate_limit, max_retry_after=policy.max_retry_after)
        if registry.sharing is not None:
            registry.sharing.share(origin, project_id, sender.project)
        registry.senders.add(sender)
        return sender

    # Lifetime

    @property
    def max_connections(self) -> int:
        """How many exchanges may be under way at a time."""
        return self._max_connections

    @property
    def closed(self) -> bool:
        """Whether the manager has been closed."""
        return self._binder.closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the manager and every client on it; closing twice is fine.

        Calls that wait fail now with :class:`ClientStateError`. Exchanges under way finish, within
        their ``attempt_timeout``; nothing is retried.
        """
        binding = self._binder.living()
        self._binder.closed = True
        senders = list(self._registry.senders)
        for sender in senders:
            sender.lifetime.fail_waiting()
        if binding is None:
            return
        if binding.closing is None or binding.closing.cancelled():
            binding.closing = binding.loop.create_task(
                self._close(binding, senders), name="sinch_conv_async closing"
            )
        # In a task of its own, so that everything is closed even if the waiting caller is
        # cancelled.
        await asyncio.shield(binding.closing)

    async def _close(self, binding: Binding, senders: list[Sender]) -> None:
        await asyncio.gather(*(source.close() for source in self._registry.sources.values()))
        for sender in senders:
            await sender.lifetime.drained()
        if self._registry.sharing is not None:
            await self._registry.sharing.close()
        binding.admission.stop()
        await binding.connections.aclose()
        self._binder.current = None

    def __del__(self, _warn: Any = warnings.warn) -> None:
        binder: Binder | None = getattr(self, "_binder", None)
        binding = None if binder is None else binder.current
        if binding is None or binding.connections.closed:
            return
        if binding.pid != os.getpid():
            binding.connections.leave_to_parent()
            return
        if self._registry.sharing is not None:
            self._registry.sharing.stop()
        _warn(f"unclosed {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        if not hasattr(self, "_binder"):
            # Its constructor refused an argument, and crash reporters print that frame's variables.
            return "<SessionManager not constructed>"
        stats = self.stats()
        state = (
            "closed" if self.closed else "open" if self._binder.current is not None else "unused"
        )
        paces = ", ".join(project.in_short() for project in stats.projects[:3])
        more = f" and {len(stats.projects) - 3} more" if len(stats.projects) > 3 else ""
        return (
            f"<SessionManager {state}: {stats.in_flight} of {self._max_connections} in flight, "
            f"{stats.waiting} waiting, "
            f"calls {stats.calls}, attempts {stats.attempts}, retries {stats.retries}, "
            f"throttled {stats.throttled}, "
            f"token requests {stats.token_requests}{'; pace ' if paces else ''}{paces}{more}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SessionManager cannot be copied or pickled: make another one")

    def stats(self) -> SessionStats:
        """The counters as they stand; may be called from any thread."""
        now, counters, sharing = self._binder.clock.now(), self._counters, self._registry.sharing
        projects = tuple(
            ProjectStats(
                origin=origin,
                project_id=project_id,
                pace=project.pace.rate_at(now),
                in_flight=project.in_flight,
                waiting=project.waiting,
                throttled=project.throttled,
                limit=project.limit,
                paused_for=max(0.0, project.pace.paused_until - now),
                in_outage=project.outages > 0,
                **({} if sharing is None else sharing.stats(origin, project_id)),
            )
            for (origin, project_id), project in list(self._registry.projects.items())
        )
        return SessionStats(
            calls=counters.calls,
            attempts=counters.attempts,
            retries=counters.retries,
            throttled=counters.throttled,
            token_requests=counters.token_requests,
            in_flight=sum(project.in_flight for project in projects),
            waiting=sum(project.waiting for project in projects),
            projects=projects,
            succeeded=counters.succeeded,
            failed=types.MappingProxyType(dict(counters.failed)),
            timed_out_waiting=counters.timed_out_waiting,
            budget_refusals=counters.budget_refusals,
            token_failures=counters.token_failures,
            wait_seconds=counters.wait_seconds,
            exchange_seconds=counters.exchange_seconds,
        )
