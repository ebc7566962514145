"""One call, told in order: a token, permission to send, one exchange, what became of it, the next step.

Knows neither aiohttp nor how permission is given; :class:`Sender` is what one client has of its manager.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, Self

import attrs

from .._wire.arguments import Credentials
from .._wire.failure import Failure
from .._wire.operations import UpdateMetadata
from .._wire.requests import Request, messages_path
from ..enums import MessagesSource
from ..errors import (
    ApiError,
    CallTimeoutError,
    RateLimitedError,
    SinchError,
    TokenError,
    TransportError,
)
from ..models import ConversationMessage
from .admission import Project
from .lifetime import Lifetime
from .retry import RetryPolicy
from .seams import Authorization
from .tokens import BasicAuthorization

if TYPE_CHECKING:
    from .manager import Binding, SessionManager

__all__ = ["Call", "Sender"]


@attrs.define(eq=False)
class Call:
    """One update on its way, as far as it has come.

    ``failure``: what became of its last attempt, where trying again was thought about. ``failed_since``: when its first attempt failed.
    ``reconnected``: it has been repeated on a new connection once, at once and at no cost.
    """

    request: Request
    attempts: int = 0
    retries: int = 0
    throttled: int = 0
    replayed: bool = False
    reconnected: bool = False
    maybe_sent: bool = False
    failure: Failure | None = None
    last: SinchError | None = None
    failed_since: float | None = None

    def failed(self, error: SinchError, now: float) -> None:
        """Notes an attempt's error; a timeout's keeps the one before it, and no longer chain."""
        if self.failed_since is None:
            self.failed_since = now
        if isinstance(error, CallTimeoutError):
            if isinstance(self.last, CallTimeoutError):
                self.last.last = None
            error.last = self.last
        self.last = error

    @property
    def sent(self) -> Literal["no", "maybe"]:
        return "maybe" if self.maybe_sent else "no"


@attrs.define(eq=False)
class Sender:
    """One client's place in a manager: where it sends to, as whom, how patiently; its calls, and the loop that sends them."""

    manager: SessionManager = attrs.field(repr=False)
    project_id: str
    origin: str
    path: str = attrs.field(repr=False)
    policy: RetryPolicy
    attempt_timeout: float
    project: Project = attrs.field(repr=False)
    authorization: Authorization = attrs.field(repr=False)
    lifetime: Lifetime = attrs.field(factory=Lifetime, repr=False)

    @classmethod
    def join(
        cls,
        manager: SessionManager,
        *,
        project_id: str,
        credentials: Credentials,
        auth: Literal["oauth2", "basic"],
        origin: str,
        auth_origin: str,
        rate_limit: float | None,
        policy: RetryPolicy,
        attempt_timeout: float,
    ) -> Self:
        """Gives a client its place. Clients of one project share its pace, clients with one key its token."""
        manager._options.check_origin("conversation_origin", origin)
        if auth == "oauth2":
            manager._options.check_origin("auth_origin", auth_origin)
        manager._forget_unused()  # before anything is looked up that nobody uses yet
        tokens = (
            BasicAuthorization(credentials) if auth == "basic" else manager._source(auth_origin, credentials)
        )
        member = cls(
            manager=manager,
            project_id=project_id,
            origin=origin,
            path=messages_path(project_id),
            policy=policy,
            attempt_timeout=attempt_timeout,
            project=manager._project(origin, project_id),
            authorization=tokens,
        )
        member.project.join(member, rate_limit=rate_limit, max_retry_after=policy.max_retry_after)
        manager._members.add(member)
        return member

    def request(
        self, message_id: str, metadata: str, messages_source: MessagesSource | str | None
    ) -> Request:
        """The request for one update, or InvalidArgumentError."""
        return UpdateMetadata.of(self.origin, self.path, message_id, metadata, messages_source).request

    async def leave(self) -> None:
        """Closes this client's calls and no other's."""
        manager = self.manager
        binding = manager._living_binding()
        self.project.leave(self)
        self.lifetime.fail_waiting()
        if binding is not None:
            binding.admission.sooner(self.project)  # its limit may have been the lowest
            await self.lifetime.drained()

    def now(self) -> float:
        """Monotonic seconds, by the clock that paces calls and expires tokens."""
        return self.manager._clock()

    def long_delay(self) -> float:
        """Seconds to wait after the last of a call's retries, for who tries again all the same."""
        return self.policy.delay(retries=self.policy.max_retries, retry_after=None, rng=self.manager._rng)

    def bound(self) -> Binding:
        """What the manager has on the running event loop, or ClientStateError."""
        self.lifetime.check_open()  # first, or a closed client would bind its manager to this loop
        return self.manager._bound()

    async def authenticate(self, *, timeout: float | None) -> None:
        """Has a token, or raises TokenError."""
        self.bound()
        lifetime = self.lifetime
        lifetime.begin()
        try:
            async with asyncio.timeout(timeout):
                await self.authorization.get(lifetime)
            return
        except TimeoutError:
            pass
        finally:
            lifetime.end()
        because = self.authorization.missing(self.now())
        raise TokenError(
            f"no access token within the timeout of {timeout:g} s{f': {because}' if because else ''}",
            http_status=because.http_status if isinstance(because, TokenError) else None,
        )

    async def send(self, call: Call, *, timeout: float | None) -> ConversationMessage:
        """Sends one update until it is applied, refused for good, or no longer worth trying."""
        if timeout is None:
            return await self._send(call, deadline=None)
        try:
            async with asyncio.timeout(timeout):
                return await self._send(call, deadline=self.manager._clock() + timeout)
        except CallTimeoutError:
            raise
        except TimeoutError:
            # Nothing else raises a bare one: aiohttp's end in _http.
            pass
        last = call.last or self.authorization.missing(self.now())
        raise CallTimeoutError(f"timeout of {timeout:g} s passed", call.attempts, call.sent, last)

    async def _send(self, call: Call, *, deadline: float | None) -> ConversationMessage:
        manager = self.manager
        binding = self.bound()
        lifetime, project, tokens, policy = self.lifetime, self.project, self.authorization, self.policy
        admission, clock, rng = binding.admission, manager._clock, manager._rng
        lifetime.begin()
        try:
            # One that was sent before, and given another round by a job that waits for better times, is a call to the budget alone.
            if not call.attempts:
                manager._calls += 1
            project.budget.call(clock())
            admitted = False
            while True:
                lifetime.check_open()
                # Authorised, holding nothing: a token that is waited for keeps nobody else waiting.
                if tokens.current(clock()) is None:
                    await tokens.get(lifetime)
                    continue
                # Admitted: the turn and the slot in one grant.
                if not admission.admit_now(project, clock()):
                    await admission.admit(project, lifetime, again=admitted, deadline=deadline)
                admitted = True
                departed = clock()
                token = None if lifetime.closed else tokens.current(departed)
                if token is None:
                    # The token expired while the call waited for its turn, or the client closed in the tick of the grant.
                    project.pace.refund()
                    admission.release(project)
                    lifetime.check_open()
                    continue
                try:
                    outcome = await manager._exchange(binding, self, call, token)
                    if isinstance(outcome, Failure) and isinstance(outcome.error, RateLimitedError):
                        # The project's business, not this call's: everybody pauses, and goes on more slowly. While the slot is still held, or
                        # whoever is given it would leave first.
                        self._slow_down(binding, outcome.error, outcome.retry_after, departed)
                finally:
                    admission.release(project)
                if isinstance(outcome, ConversationMessage):
                    token.accepted_for.add(project)
                    admission.answered(project)
                    return outcome
                failure, error = outcome, outcome.error
                error.attempts = call.attempts
                status = error.http_status if isinstance(error, ApiError) else None
                if status is not None and status != 429:
                    admission.answered(project)
                    if status < 500 and status not in (401, 408):
                        token.accepted_for.add(project)
                if lifetime.closed:
                    raise error
                if status == 401:
                    # Whatever WWW-Authenticate says: the API refuses an expired token in more than one way.
                    if call.replayed or not tokens.refused(token, project, clock()):
                        raise error
                    call.replayed = True
                    continue
                call.failed(error, clock())
                call.failure = failure
                if (
                    not policy.allows(failure)
                    or call.retries >= policy.max_retries
                    or policy.too_long(failure.retry_after)
                ):
                    raise error
                delay = None
                if status == 429:
                    # It waits for its turn with everybody else. The same call refused again and again steps back by itself: those who share a
                    # limit can fill its second for longer than a few pauses last.
                    call.throttled += 1
                    if call.throttled > 1 and failure.retry_after is None:
                        delay = policy.throttled_delay(call.throttled, rng=rng)
                elif failure.stale_connection and not call.reconnected:
                    # It says nothing about the server.
                    call.reconnected = True
                else:
                    call.throttled = 0
                    delay = policy.delay(retries=call.retries, retry_after=failure.retry_after, rng=rng)
                    if not project.budget.take(clock()):
                        raise error
                if delay is not None:
                    if deadline is not None and clock() + delay > deadline:
                        raise CallTimeoutError("no other attempt can be made before the timeout")
                    await lifetime.sleep(delay)
                call.retries += 1
        except SinchError as error:
            error.attempts = call.attempts
            if isinstance(error, TransportError):
                error.sent = call.sent  # what this attempt did not send, an earlier one may have
            if isinstance(error, CallTimeoutError) and error is not call.last:
                error.last = call.last
            raise
        finally:
            lifetime.end()

    def _slow_down(
        self, binding: Binding, error: RateLimitedError, retry_after: float | None, departed: float
    ) -> None:
        """Slows the project down for everybody, after a 429 to a request that left at ``departed``."""
        manager, project = self.manager, self.project
        project.throttled += 1
        manager._throttled += 1
        if project.too_long(retry_after):
            binding.admission.refuse_waiting(project, error)
            return
        project.pace.throttled(self.now(), departed=departed, retry_after=retry_after, rng=manager._rng)
        binding.admission.paused(project)
