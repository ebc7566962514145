"""Access tokens: all callers share one token for each key; it is renewed before it expires.

How a token source works:

1. *One fetch.* A fetch runs in its own task, which belongs to no caller. So the fetch goes on if a
   caller is cancelled, even the first caller. Every caller that needs a token waits for this task.
2. *Renewal.* After 80 % of its life, a token is renewed in the background. This time varies by up
   to a tenth, so that processes do not renew together. The old token is used until the new token is
   there, or until the old one expires. A fresh token is used for at least a second: if an endpoint
   gave tokens that expire at once, callers would otherwise request tokens forever.
3. *A failing endpoint* is asked again, with growing delays, for up to 60 seconds; then the callers
   get its error. If a renewal fails while the old token is valid and no caller waits, the renewal
   is tried again later.
4. *A refused key* (``invalid_client``) is remembered for 60 seconds. In that time, calls with this
   key cause no further request.
5. *401 from the API.* The refused token is dropped, if it is still in use. If the API has not
   accepted this token for the project before, the token is dropped only if no 401 has caused a
   renewal in the last 60 seconds. Otherwise a project for which the API refuses every token would
   cause one token request for each call, and would take the token from the other projects of the
   key.
6. *The endpoint's own limit.* :class:`EndpointPace` spaces the requests of all keys.

The function that requests a token over HTTP is passed in, as are the clock and the sleep.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Awaitable, Callable, Hashable
from random import Random
from typing import Final

from .._wire.arguments import Credentials, basic_authorization
from .._wire.failure import Failure
from .._wire.requests import Head, Request, request_head
from .._wire.responses import TokenResponse
from .._wire.scrub import forms, scrub
from ..errors import SinchError, TokenError
from .lifetime import Lifetime, closed_error
from .retry import RetryPolicy

__all__ = ["BasicAuthorization", "EndpointPace", "Token", "TokenSource"]

RENEW_AT: Final = 0.8
"""After this share of a token's life, a new token is fetched in the background. The share varies at
random, by up to ``RENEW_JITTER`` (a tenth) of its value.
"""

RENEW_JITTER: Final = 0.1

FETCH_FOR: Final = 60.0
"""A failing token endpoint is asked again for so many seconds; then the waiting callers get its
error.
"""

REFUSAL_KEPT: Final = 60.0
"""Seconds for which a refusal (``invalid_client``, or a ``Retry-After`` that is longer than what is
left of ``FETCH_FOR``) is remembered. For the same time after a renewal by a 401, another 401 drops
the new token only if the API has accepted it for that project before.
"""

SHORTEST_LIFE: Final = 1.0
"""A fresh token is used for at least this many seconds, whatever ``expires_in`` says; otherwise
callers would request tokens forever.
"""

# Sinch's token endpoint allows 30 requests at once, and 10 more each second. These values are a
# little lower, because requests may arrive closer together than they were sent.
ENDPOINT_BURST: Final = 28
ENDPOINT_RATE: Final = 9.5

_RETRY: Final = RetryPolicy()


class Token:
    """An access token in use.

    ``accepted_for``: the projects for which the API has accepted this token at least once.
    """

    __slots__ = ("_forms", "_heads", "accepted_for", "authorization", "expires_at", "renew_at")

    def __init__(self, authorization: str, expires_at: float, renew_at: float) -> None:
        self.authorization = authorization
        self.expires_at = expires_at
        self.renew_at = renew_at
        self.accepted_for: set[Hashable] = set()
        self._heads: dict[str, Head] = {}
        self._forms = forms(authorization.partition(" ")[2])

    def head(self, request: Request, *, user_agent: str) -> Head:
        """The part of the head that all requests to this origin share. It is made once."""
        head = self._heads.get(request.origin)
        if head is None:
            head = self._heads[request.origin] = request_head(
                request, self.authorization, user_agent
            )
        return head

    def scrub(self, text: str) -> str:
        """The text without the token, in all spellings of the token."""
        return scrub(text, self._forms)


class BasicAuthorization:
    """Takes the place of a token for HTTP Basic: it never expires and is never renewed."""

    __slots__ = ("credentials", "token")

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.token = Token(basic_authorization(credentials), expires_at=math.inf, renew_at=math.inf)

    def current(self, now: float) -> Token:
        return self.token

    async def get(self, lifetime: Lifetime) -> Token:
        return self.token

    def refused(self, token: Token, project: Hashable, now: float) -> bool:
        return False

    def missing(self, now: float) -> None:
        return None


class EndpointPace:
    """Spaces the requests to one token endpoint, for all keys together (a token bucket)."""

    __slots__ = ("_full_at",)

    def __init__(self) -> None:
        self._full_at = 0.0  # when the bucket is full again

    def delay(self, now: float) -> float:
        """Reserve the next request, and return in how many seconds it may be made."""
        self._full_at = max(self._full_at, now) + 1 / ENDPOINT_RATE
        return max(0.0, self._full_at - now - ENDPOINT_BURST / ENDPOINT_RATE)


class TokenSource:
    """The token of one key at one token endpoint.

    ``request`` makes one token request. ``on_refused`` is called with a token that the API has
    refused. ``clock`` gives monotonic seconds, so a jump of the wall clock expires no token.
    ``clock`` and ``sleep`` are passed in so that tests can control time.
    """

    __slots__ = (
        "_clock",
        "_closed",
        "_endpoint",
        "_failure",
        "_fetching",
        "_no_renewal_before",
        "_on_refused",
        "_refused",
        "_refused_until",
        "_request",
        "_rng",
        "_sleep",
        "_token",
        "_unproven_until",
        "_waiters",
        "credentials",
    )

    def __init__(
        self,
        credentials: Credentials,
        *,
        request: Callable[[Credentials], Awaitable[TokenResponse | Failure]],
        endpoint: EndpointPace,
        clock: Callable[[], float],
        rng: Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        self.credentials = credentials
        self._on_refused = on_refused
        self._request = request
        self._endpoint = endpoint
        self._clock = clock
        self._rng = rng
        self._sleep = sleep
        self._closed = False
        self._token: Token | None = None
        self._failure: SinchError | None = None
        self._fetching: asyncio.Task[Token | SinchError] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._refused: SinchError | None = None
        self._refused_until = 0.0
        self._no_renewal_before = 0.0
        self._unproven_until = 0.0

    def current(self, now: float) -> Token | None:
        """The token, None if there is no valid token. Starts the renewal of an old token."""
        token = self._token
        if token is None or now >= token.expires_at:
            return None
        if now >= token.renew_at and now >= self._no_renewal_before and self._fetching is None:
            self._fetch()
        return token

    async def get(self, lifetime: Lifetime) -> Token:
        """Return the token; fetch it if there is none. Raises TokenError."""
        while True:
            lifetime.check_open()  # a closed client must start no fetch, which would outlive it
            now = self._clock()
            token = self.current(now)
            if token is not None:
                return token
            if self._refused is not None and now < self._refused_until:
                raise copy.copy(self._refused)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(future)
            if self._fetching is None:
                self._fetch()
            await lifetime.wait(future)

    def refused(self, token: Token, project: Hashable, now: float) -> bool:
        """The API answered 401 to this token: drop it if it is still in use.

        Returns False if the API would probably refuse another token too.
        """
        if token is not self._token:
            return True
        if project not in token.accepted_for and now < self._unproven_until:
            # A project for which every token is refused must not cause a token request for each
            # call. It must not take the token from the other projects of the key either.
            return False
        self._token = None
        self._unproven_until = now + REFUSAL_KEPT
        if self._on_refused is not None:
            self._on_refused(token.authorization.partition(" ")[2])
        return True

    def missing(self, now: float) -> SinchError | None:
        """The error of the last token request, if there is no valid token; otherwise None."""
        if self._token is not None and now < self._token.expires_at:
            return None
        return copy.copy(self._failure)

    def forgettable(self, now: float) -> bool:
        """Whether this object can be forgotten: it has no valid token, and no fetch runs."""
        return self._fetching is None and (self._token is None or now >= self._token.expires_at)

    def forget_loop(self) -> None:
        """The event loop is closed, so its fetch and its waiting calls are gone.

        The token stays.
        """
        self._fetching = None
        self._waiters = []

    async def close(self) -> None:
        """End a fetch under way. The callers that wait for it get ClientStateError."""
        self._closed = True
        task = self._fetching
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _fetch(self) -> None:
        self._fetching = asyncio.get_running_loop().create_task(
            self._run(), name="sinch_conv_async token request"
        )
        # Use a callback of the task, and not the end of its coroutine: if a task is cancelled
        # before it begins, its coroutine never runs.
        self._fetching.add_done_callback(self._fetched)

    async def _run(self) -> Token | SinchError:
        try:
            return await self._ask()
        except Exception as error:  # noqa: BLE001  # from a trace hook; no caller would see it
            return TokenError(f"the token request failed: {type(error).__name__}")

    def _fetched(self, task: asyncio.Task[Token | SinchError]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._settle(task.result())
        elif self._closed:
            self._settle(closed_error())
        else:
            self._settle(TokenError("the token request was cancelled"))

    def _settle(self, outcome: Token | SinchError) -> None:
        self._fetching = None
        waiters, self._waiters = self._waiters, []
        if isinstance(outcome, Token):
            self._token = outcome
            self._refused = None
        elif isinstance(outcome, TokenError) and outcome.error == "invalid_client":
            self._remember(outcome, REFUSAL_KEPT)
        for future in waiters:
            if future.done():
                continue
            if isinstance(outcome, Token):
                future.set_result(None)
            else:
                future.set_exception(copy.copy(outcome))

    def _remember(self, refusal: SinchError, seconds: float) -> None:
        """For so many seconds, a minute at most, all callers get this error.

        The endpoint is not asked meanwhile.
        """
        self._refused = refusal
        self._refused_until = self._clock() + min(seconds, REFUSAL_KEPT)

    async def _ask(self) -> Token | SinchError:
        """Request a token until there is one, or until another request is useless.

        Returns errors, because there may be no caller to catch them.
        """
        began: float | None = None
        retries = 0
        while True:
            delay = self._endpoint.delay(self._clock())
            if delay:
                await self._sleep(delay)
            now = self._clock()
            if began is None:
                began = now  # the wait for EndpointPace is not part of the FETCH_FOR seconds
            answer = await self._request(self.credentials)
            self._failure = None if isinstance(answer, TokenResponse) else answer.error
            if isinstance(answer, TokenResponse):
                # Count the life from the request, because the answer may have been slow.
                expires_at = max(now + answer.lifetime, self._clock() + SHORTEST_LIFE)
                renew_in = (
                    (expires_at - now)
                    * RENEW_AT
                    * (1 + self._rng.uniform(-RENEW_JITTER, RENEW_JITTER))
                )
                return Token(f"Bearer {answer.access_token}", expires_at, now + renew_in)
            now = self._clock()
            if self._token is not None and now < self._token.expires_at and not self._waiters:
                # An early renewal failed. The old token is valid, and no caller waits, so try again
                # later.
                self._no_renewal_before = now + max(
                    1.0, (self._token.expires_at - self._token.renew_at) / 4
                )
                return answer.error
            left = began + FETCH_FOR - now
            asked = answer.retry_after or 0.0
            if not answer.retryable:
                return answer.error
            if left <= 0:
                times = f"{retries + 1} times in {now - began:.0f} s"
                answer.error.give_up(f"the token endpoint was asked {times}")
                return answer.error
            if asked > left:
                answer.error.give_up(f"the token endpoint asks for a wait of {asked:.0f} s")
                self._remember(answer.error, asked)
                return answer.error
            delay = _RETRY.delay(retries=retries, retry_after=answer.retry_after, rng=self._rng)
            retries += 1
            await self._sleep(min(delay, left))
