"""One call, in the order in which things happen.

1. *A token.* The call waits for its token before it takes a turn or a slot. So this wait delays no
   other call.
2. *Permission.* The project's turn and a connection slot are granted together (``admission``), so
   neither is held while waiting for the other. If the token expires during this wait, the call
   gives both back.
3. *One exchange* (``exchange``). When the request is written, the exchange calls
   ``permit.written``: from then on the request counts against the pace for one second.
4. *A report.* A 429 slows the whole project down. This happens while the call still holds its slot:
   otherwise the next call would get the slot and send at the old pace. Any other answer to a probe
   ends the probing. An answer other than 401, 408 and 5xx shows that the API accepts the token for
   this project.
5. *The next step.* If the attempt failed, ``retry.next_step`` decides: another token, another
   attempt after a delay, a wait for the retry budget, or the end of the call.

Each wait of a call is on a future that ``lifetime`` knows, so closing the client ends the wait. A
call needs no timer to wait for a token or a turn. A call with a timeout has one ``asyncio.timeout``
for the whole call. A call may be cancelled at each ``await``, so a ``finally`` gives back what the
call holds: a slot, a turn, a place in the retry budget.

Counting: ``counters.calls`` counts a call once, even if a bulk job sends it in several rounds. The
retry budget counts a call once in each round, and each retry that reserved a place in it.

The manager makes one :class:`Sender` for each client. A :class:`Sender` depends neither on aiohttp
nor on the way in which turns are granted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Generic, Literal, TypeVar

import attrs

from .._wire.failure import Failure
from .._wire.operations import UpdateMetadata
from ..enums import MessagesSource
from ..errors import (
    ApiError,
    CallTimeoutError,
    ClientStateError,
    RateLimitedError,
    ResponseFormatError,
    SinchError,
    TokenError,
    TransportError,
)
from .admission import Admission, Permit, Project
from .binding import Binder, Binding
from .exchange import Exchange
from .lifetime import Lifetime
from .log import DEBUG, INFO, log, logs
from .retry import (
    BUDGET_USED_UP,
    Again,
    GiveUp,
    Renew,
    RetryPolicy,
    Step,
    Tries,
    WaitForBudget,
    next_step,
)
from .seams import Authorization, Operation
from .stats import Counters
from .tokens import Token

__all__ = ["Call", "Sender"]

T = TypeVar("T")

NOTHING_TRIED: Final = Tries()


class Call(Generic[T]):
    """One operation, and the progress of its sending.

    ``began``: when the call began, ``None`` before. ``attempts``: how many exchanges it has made.
    ``tries``: the facts about its attempts that :func:`next_step` needs. ``reserved``: the call
    holds a place in the retry budget. ``failure``: the failure of the last attempt, ``None`` if
    that did not fail. ``last``: the error of the last failed attempt. ``failed_since``: when its
    first failed attempt ended. ``maybe_sent``: a request may have reached the server. ``seconds``:
    the duration of the last exchange. ``exchange_seconds``: the duration of all exchanges together.
    """

    __slots__ = (
        "attempts",
        "began",
        "exchange_seconds",
        "failed_since",
        "failure",
        "last",
        "maybe_sent",
        "operation",
        "reserved",
        "seconds",
        "tries",
    )

    def __init__(self, operation: Operation[T]) -> None:
        self.operation = operation
        self.began: float | None = None
        self.attempts = 0
        self.tries = NOTHING_TRIED
        self.reserved = False
        self.maybe_sent = False
        self.failure: Failure | None = None
        self.last: SinchError | None = None
        self.failed_since: float | None = None
        self.seconds = 0.0
        self.exchange_seconds = 0.0

    def failed(self, failure: Failure, now: float) -> None:
        """Record a failed attempt.

        A CallTimeoutError keeps the error before it in its ``last``. An older CallTimeoutError
        loses its own ``last``, so no chain of errors grows.
        """
        self.failure, error = failure, failure.error
        if self.failed_since is None:
            self.failed_since = now
        if isinstance(error, CallTimeoutError):
            if isinstance(self.last, CallTimeoutError):
                self.last.last = None
            error.last = self.last
        self.last = error

    def ended_by(self, error: SinchError) -> None:
        """Add facts about all attempts to the error that ends the call."""
        error.attempts = self.attempts
        if isinstance(error, TransportError):
            error.sent = self.sent  # an earlier attempt may have sent a request
        if isinstance(error, CallTimeoutError) and error is not self.last:
            error.last = error.last or self.last

    @property
    def sent(self) -> Literal["no", "maybe"]:
        """Whether a request of this call may have reached the server."""
        return "maybe" if self.maybe_sent else "no"


class Sender:
    """The send loop of one client, with the client's origin, credentials and retry policy.

    The clients of one manager share ``project``, ``authorization`` and ``counters``. ``binder``
    gives the manager's objects for the running event loop, the clock and the random numbers.
    """

    def __init__(
        self,
        *,
        project_id: str,
        origin: str,
        path: str,
        policy: RetryPolicy,
        attempt_timeout: float,
        project: Project,
        authorization: Authorization,
        binder: Binder,
        counters: Counters,
    ) -> None:
        self.project_id = project_id
        self.origin = origin
        self.path = path
        self.policy = policy
        self.attempt_timeout = attempt_timeout
        self.project = project
        self.authorization = authorization
        self.binder = binder
        self.counters = counters
        self.lifetime = Lifetime()

    def update(
        self, message_id: str, metadata: str | None, messages_source: MessagesSource | str | None
    ) -> UpdateMetadata:
        """The operation for one update, or InvalidArgumentError."""
        return UpdateMetadata.of(self.origin, self.path, message_id, metadata, messages_source)

    def now(self) -> float:
        """Monotonic seconds, by the clock that paces calls and expires tokens."""
        return self.binder.clock.read()

    def long_delay(self) -> float:
        """Seconds that a job waits between two rounds of one call."""
        return self.policy.delay(
            retries=self.policy.max_retries, retry_after=None, rng=self.binder.rng
        )

    def bound(self) -> Binding:
        """The manager's objects for the running event loop. Raises ClientStateError."""
        self.lifetime.check_open()  # first: a closed client must not bind its manager to this loop
        return self.binder.bind()

    async def leave(self) -> None:
        """Close this client. Its waiting calls fail; return when its running calls have ended."""
        binding = self.binder.living()
        self.project.leave(self)
        self.lifetime.fail_waiting()
        if binding is not None:
            binding.admission.sooner(self.project)  # without this client, the limit may be higher
            await self.lifetime.drained()

    async def authenticate(self, *, timeout: float | None) -> None:
        """Return when there is a token, or raise TokenError."""
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
            f"no access token within the timeout of {timeout:g} s"
            + (f": {because}" if because else ""),
            http_status=because.http_status if isinstance(because, TokenError) else None,
        )

    async def send(self, call: Call[T], *, timeout: float | None = None) -> T:
        """Send a call: return its result, or raise its final error. Counts and logs its end."""
        binding, policy = self._begin(call), self.policy
        try:
            if timeout is None:
                result = await self._send(binding, call, policy, deadline=None)
            else:
                result = await self._send_within(timeout, binding, call, policy)
        except SinchError as error:
            self.ended(call, error)
            raise
        self.ended(call, None)
        return result

    async def send_round(
        self, call: Call[T], *, single: bool = False, may_send: Callable[[], bool] | None = None
    ) -> T:
        """Like :meth:`send`, for one round of a call of a bulk job.

        If the round fails, the job may send the call in another round. So a failed round does not
        end the call: the job calls :meth:`ended` when it gives the call up. ``single``: make one
        attempt only. ``may_send``: called right before each request; if it returns False, the call
        raises ClientStateError. A job never waits for the retry budget: a budget that is used up is
        a sign of an outage.
        """
        binding, policy = self._begin(call), self.policy
        if single:
            policy = attrs.evolve(policy, max_retries=0)
        elif policy.wait_for_budget:
            policy = attrs.evolve(policy, wait_for_budget=False)
        result = await self._send(binding, call, policy, deadline=None, may_send=may_send)
        self.ended(call, None)
        return result

    def _begin(self, call: Call[Any]) -> Binding:
        """Return the manager's objects for the running event loop; count the call if it is new."""
        binding = self.bound()
        if call.began is None:
            call.began = binding.clock()
            self.counters.calls += 1
        return binding

    def ended(self, call: Call[Any], error: SinchError | None) -> None:
        """Count and log the end of a call. ``error`` is None if the call has a result."""
        if call.began is None:
            return  # an error was raised before the call began
        counters = self.counters
        seconds = self.now() - call.began
        counters.exchange_seconds += call.exchange_seconds
        counters.wait_seconds += seconds - call.exchange_seconds
        if error is None:
            counters.succeeded += 1
        else:
            counters.failed[type(error).__name__] += 1
            counters.timed_out_waiting += isinstance(error, CallTimeoutError) and not call.attempts
            counters.budget_refusals += error.given_up == BUDGET_USED_UP
        if logs(DEBUG):
            self._log_end(call, error, seconds)

    async def _send_within(
        self, timeout: float, binding: Binding, call: Call[T], policy: RetryPolicy
    ) -> T:
        try:
            async with asyncio.timeout(timeout):
                return await self._send(binding, call, policy, deadline=binding.clock() + timeout)
        except CallTimeoutError:
            raise
        except TimeoutError:
            pass  # this call's timeout: the exchange turns aiohttp's timeouts into failures
        last = call.last or self.authorization.missing(binding.clock())
        raise CallTimeoutError(f"timeout of {timeout:g} s passed", call.attempts, call.sent, last)

    async def _send(
        self,
        binding: Binding,
        call: Call[T],
        policy: RetryPolicy,
        *,
        deadline: float | None,
        may_send: Callable[[], bool] | None = None,
    ) -> T:
        lifetime, project, authorization = self.lifetime, self.project, self.authorization
        admission, clock = binding.admission, binding.clock
        call.tries = NOTHING_TRIED
        again = False
        lifetime.begin()
        try:
            while True:
                # 1. A token
                now = clock()
                token = authorization.current(now)
                if token is None:
                    await authorization.get(lifetime)
                    continue
                # 2. Permission
                permit = admission.admit_now(project, now)
                if permit is None:
                    del now  # 24 bytes in each waiting call
                    permit = await admission.admit(
                        project, lifetime, again=again, deadline=deadline
                    )
                    now = clock()
                    token = authorization.current(now)
                again = self._count(call, again=again, now=now)
                if token is None or lifetime.closed:
                    permit.release()
                    lifetime.check_open()
                    continue
                if may_send is not None and not may_send():
                    permit.release()
                    raise ClientStateError("the job may send no more")
                # 3. One exchange
                try:
                    outcome = await self._exchange(binding, call, token, permit, now)
                    # 4. A report
                    self._report(admission, outcome, token, permit)
                finally:
                    permit.release()
                # 5. The next step
                if not isinstance(outcome, Failure):
                    if logs(DEBUG):
                        self._log_attempt(call, None, None)
                    return outcome
                await self._next(call, outcome, token, policy, deadline)
        except SinchError as error:
            call.ended_by(error)
            raise
        finally:
            if call.reserved:
                project.budget.release()
                call.reserved = False
            lifetime.end()

    def _count(self, call: Call[Any], *, again: bool, now: float) -> Literal[True]:
        """Record in the retry budget that a request is about to be sent."""
        budget = self.project.budget
        if not again:
            budget.call_sent(now)
        elif call.reserved:
            budget.retry_sent(now)
            budget.release()
            call.reserved = False
        return True

    async def _exchange(
        self, binding: Binding, call: Call[T], token: Token, permit: Permit, now: float
    ) -> T | Failure:
        """Make one HTTP exchange; return the result, or the failure."""
        operation, counters = call.operation, self.counters
        call.attempts += 1
        call.failure = None
        counters.attempts += 1
        counters.retries += call.attempts > 1
        known = Exchange(permit.written)
        try:
            response = await binding.connections.exchange(
                operation.request, token, known, timeout=self.attempt_timeout
            )
        finally:
            call.seconds = binding.clock() - now
            call.exchange_seconds += call.seconds
            if known.connected:
                call.maybe_sent = True
                permit.written()  # perhaps it was not written; assume that it was
        if isinstance(response, Failure):
            return response
        outcome = operation.read(
            response,
            scrub=lambda text: token.scrub(self.authorization.credentials.scrub(text)),
            reused=known.reused,
        )
        if isinstance(outcome, Failure) and outcome.crossed:
            known.abort()
        return outcome

    def _report(self, admission: Admission, outcome: object, token: Token, permit: Permit) -> None:
        """Update the project and the token by the answer."""
        project = self.project
        error = outcome.error if isinstance(outcome, Failure) else None
        if isinstance(error, RateLimitedError):
            self._slow_down(admission, error, permit)
            return
        status = 200
        if error is not None:
            if not isinstance(error, ApiError | ResponseFormatError) or error.http_status is None:
                return  # no answer
            status = error.http_status
        admission.answered(project, permit)
        if status < 500 and status not in (401, 408):
            token.accepted_for.add(project)
        if project.below_half and project.recovered(self.now()):
            log(
                INFO,
                "pace is back at %g requests a second",
                project.pace.rate,
                project_id=self.project_id,
            )

    def _slow_down(self, admission: Admission, error: RateLimitedError, permit: Permit) -> None:
        """Slow down all calls of the project, after a 429."""
        project, now = self.project, self.now()
        self.counters.throttled += 1
        project.refused(now)
        if project.too_long(error.retry_after or None):
            admission.refuse_waiting(project, error)
            return
        assert permit.departed is not None  # the request was answered, so it was written
        project.pace.throttled(
            now,
            departed=permit.departed,
            retry_after=error.retry_after or None,
            rng=self.binder.rng,
        )
        if error.retry_after:
            project.asked_to_wait_until = max(project.asked_to_wait_until, now + error.retry_after)
        admission.paused(project)
        if project.fell_below_half(now):
            log(
                INFO,
                "pace has fallen to %.1f of %g requests a second",
                project.pace.rate,
                project.pace.limit,
                project_id=self.project_id,
            )

    async def _next(
        self,
        call: Call[Any],
        failure: Failure,
        token: Token,
        policy: RetryPolicy,
        deadline: float | None,
    ) -> None:
        """Return when the call must be sent again, or raise the error that ends the call."""
        project, now = self.project, self.now()
        step = self._step(call, failure, policy, now, deadline)
        call.failed(failure, now)
        while isinstance(step, WaitForBudget):
            await self.lifetime.sleep(step.delay)
            step = self._step(call, failure, policy, self.now(), deadline)
        if isinstance(step, Renew) and not self.authorization.refused(token, project, now):
            step = GiveUp(failure.error)
        if logs(DEBUG):
            self._log_attempt(call, failure, step)
        if isinstance(step, GiveUp):
            raise step.error
        call.tries = step.tries
        if isinstance(step, Renew):
            return
        if step.budgeted:
            project.budget.reserve()
            call.reserved = True
        if step.budgeted or step.delay:
            await self.lifetime.sleep(step.delay)

    def _step(
        self,
        call: Call[Any],
        failure: Failure,
        policy: RetryPolicy,
        now: float,
        deadline: float | None,
    ) -> Step:
        if self.lifetime.closed:
            return GiveUp(failure.error)
        project = self.project
        return next_step(
            failure,
            call.tries,
            policy,
            safe=call.operation.safe,
            blocked_for=project.blocked_for(now),
            budget_left=project.budget.allows(now),
            now=now,
            deadline=deadline,
            rng=self.binder.rng,
        )

    def _log_attempt(self, call: Call[Any], failure: Failure | None, step: Step | None) -> None:
        error = None if failure is None else failure.error
        status = 200 if error is None else getattr(error, "http_status", None)
        name = None if error is None else type(error).__name__
        log(
            DEBUG,
            "attempt %d: %s after %.3f s",
            call.attempts,
            status or name,
            call.seconds,
            project_id=self.project_id,
            message_id=call.operation.request.message_id,
            attempt=call.attempts,
            status=status,
            error=name,
            seconds=round(call.seconds, 6),
            request_id=getattr(error, "request_id", None),
            retry_in=None if not isinstance(step, Again | Renew) else getattr(step, "delay", 0.0),
            final=step is None or isinstance(step, GiveUp),
        )

    def _log_end(self, call: Call[Any], error: SinchError | None, seconds: float) -> None:
        outcome = "succeeded" if error is None else type(error).__name__
        waited = seconds - call.exchange_seconds
        log(
            DEBUG,
            "call ended: %s, attempts %d, waited %.3f s of %.3f s",
            outcome,
            call.attempts,
            waited,
            seconds,
            project_id=self.project_id,
            message_id=call.operation.request.message_id,
            attempts=call.attempts,
            waited=round(waited, 6),
            seconds=round(seconds, 6),
            outcome=outcome,
        )
