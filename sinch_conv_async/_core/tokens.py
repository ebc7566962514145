"""Access tokens: one for each key, however many callers wait, renewed before it expires.

How a token source works:

1. *One fetch.* A fetch runs in a task of its own. It belongs to no caller, so cancelling a caller,
   even the first one, does not end it. Every caller that needs a token meanwhile waits for that
   task.
2. *Renewal.* After 80 % of its life (give or take a tenth, so that processes do not renew together)
   a token is renewed in the background. The old token serves until the new one is there, or until
   it expires. A fresh token is used for at least a second; otherwise callers would request tokens
   forever from an endpoint whose tokens expire at once.
3. *A failing endpoint* is asked again, with growing delays, for up to 60 seconds; then the callers
   get its error. An early renewal that fails is put off, because nobody waits for it.
4. *A refused key* (``invalid_client``) is remembered for 60 seconds, so that a million calls with
   it cost one request.
5. *401 from the API.* The token that was refused is dropped, if it is still in use. A project that
   has never accepted a token may cause one renewal in 60 seconds. Otherwise each of its calls would
   cost a token request, and the other projects of the key their token.
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
"""The share of a token's life after which a new one is fetched in the background, give or take
``RENEW_JITTER`` of it.
"""

RENEW_JITTER: Final = 0.1

FETCH_FOR: Final = 60.0
"""Seconds for which a failing token endpoint is asked again, before the waiting callers get its
error.
"""

REFUSAL_KEPT: Final = 60.0
"""Seconds for which a refusal (``invalid_client``, or a longer ``Retry-After``) is remembered, and
for which a renewed token is not renewed again for a project that has accepted no call with it.
"""

SHORTEST_LIFE: Final = 1.0
"""A fresh token is used for at least this many seconds, whatever ``expires_in`` says; otherwise
callers would request tokens forever.
"""

# Sinch's endpoint is a token bucket of 30 that refills with 10 a second. Ours is a little smaller,
# because the network may bunch requests together.
ENDPOINT_BURST: Final = 28
ENDPOINT_RATE: Final = 9.5

_RETRY: Final = RetryPolicy()


class Token:
    """An access token in use.

    ``accepted_for``: the projects for which the API has accepted it at least once.
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
        """The part that the heads of all requests to this origin have in common; made once."""
        head = self._heads.get(request.origin)
        if head is None:
            head = self._heads[request.origin] = request_head(
                request, self.authorization, user_agent
            )
        return head

    def scrub(self, text: str) -> str:
        """The text without the token, however it is spelled there."""
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
    """A token bucket in front of one token endpoint, however many keys use it."""

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
    refused. ``clock`` gives monotonic seconds, so that a wall clock that jumps expires nothing.
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
        """The token; None if there is none or it has expired. Renews an old one."""
        token = self._token
        if token is None or now >= token.expires_at:
            return None
        if now >= token.renew_at and now >= self._no_renewal_before and self._fetching is None:
            self._fetch()
        return token

    async def get(self, lifetime: Lifetime) -> Token:
        """The token, fetched if need be; raises TokenError."""
        while True:
            lifetime.check_open()  # a fetch that a closed client started would outlive it
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

        False: the API would not accept another token either.
        """
        if token is not self._token:
            return True
        if project not in token.accepted_for and now < self._unproven_until:
            # A project that refuses every token must not cost a token request for each call, nor
            # the other projects of the key their token.
            return False
        self._token = None
        self._unproven_until = now + REFUSAL_KEPT
        if self._on_refused is not None:
            self._on_refused(token.authorization.partition(" ")[2])
        return True

    def missing(self, now: float) -> SinchError | None:
        """Why there is no token, if that is known; None if there is a token."""
        if self._token is not None and now < self._token.expires_at:
            return None
        return copy.copy(self._failure)

    def forgettable(self, now: float) -> bool:
        """Whether it can be forgotten: no valid token, and no fetch under way."""
        return self._fetching is None and (self._token is None or now >= self._token.expires_at)

    def forget_loop(self) -> None:
        """The event loop is closed: the fetch and the calls that waited for it are gone.

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
        # A callback of the task, and not the end of the coroutine: a task that is cancelled before
        # it has begun never runs its coroutine.
        self._fetching.add_done_callback(self._fetched)

    async def _run(self) -> Token | SinchError:
        try:
            return await self._ask()
        except Exception as error:  # noqa: BLE001  # a trace hook may raise anything; nobody calls
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
        """Give all callers this error for so many seconds, a minute at most.

        The endpoint is not asked meanwhile.
        """
        self._refused = refusal
        self._refused_until = self._clock() + min(seconds, REFUSAL_KEPT)

    async def _ask(self) -> Token | SinchError:
        """Ask until there is a token, or until asking is pointless.

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
                began = now  # the wait for the endpoint's pace is no failure of the endpoint
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
                # An early renewal failed: the old token is still valid, so no caller waits.
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
