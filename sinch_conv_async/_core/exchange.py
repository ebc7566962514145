"""One HTTP exchange: a request and a token go in; a response, or the reason why there is none, comes out.

The only file besides ``pool`` that calls aiohttp's client. It decides what aiohttp must not decide:

- Redirects are not followed, cookies are not kept, the environment's proxies are not used.
- One timeout covers the whole exchange: connecting, sending, reading.
- aiohttp's exceptions end here. They carry request headers, and so the access token; a caller sees a :class:`Failure` instead.

There are two routes. The connector's own round trip writes the request and reads the answer with aiohttp's parser, and skips what this
package does not use. aiohttp's session is for a proxy and for trace hooks, which need more than that.

:class:`Exchange` is what the send loop learns of the connection, also when the exchange is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl as tls
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, Literal

import aiohttp
import aiohttp.http
import attrs
from aiohttp.abc import AbstractResolver
from yarl import URL

from .._wire import http as _wire
from .._wire.failure import Failure
from .._wire.http import MAX_ANSWER, Credentials, Proxy, Request, Response, TokenResponse
from ..errors import CallTimeoutError, ResponseFormatError, TokenError, TransportError
from .pool import NO_TIMEOUT, Connector, Exchange, current_exchange, read_body
from .tokens import BasicAuthorization, Token

__all__ = ["ConnectionOptions", "Connections", "Exchange"]

TOKEN_TIMEOUT: Final = 10.0
"""Seconds that one token request may take."""

KEEPALIVE: Final = 30.0
"""Seconds that an idle connection is kept. If the server closes it meanwhile, the pool notices that before it uses it."""

USER_AGENT: Final = (
    f"sinch-conv-async/{_wire.VERSION} "
    f"(Python/{sys.version_info[0]}.{sys.version_info[1]}; aiohttp/{aiohttp.__version__})"
)

_log = logging.getLogger("sinch_conv_async")


@attrs.frozen
class ConnectionOptions:
    """How a manager connects, the same on every event loop that it is used on."""

    ssl: tls.SSLContext | aiohttp.Fingerprint | None = None
    proxy: Proxy | None = None
    resolver: AbstractResolver | None = None
    trace_configs: Sequence[aiohttp.TraceConfig] = ()


class Connections:
    """The connections of one manager on the running event loop, and the exchanges on them."""

    __slots__ = ("_connector", "_keeper", "_loop", "_proxy", "_routes", "_session", "_through_session")

    def __init__(self, options: ConnectionOptions) -> None:
        given: dict[str, Any] = {} if options.resolver is None else {"resolver": options.resolver}
        self._loop = asyncio.get_running_loop()
        self._proxy = options.proxy
        self._through_session = bool(options.proxy or options.trace_configs)
        self._connector = Connector(
            keepalive_timeout=KEEPALIVE, ssl=True if options.ssl is None else options.ssl, **given
        )
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=NO_TIMEOUT,
            trust_env=False,
            auto_decompress=False,  # a decompression bomb is defused where the answer is read
            trace_configs=list(options.trace_configs),
        )
        self._routes: dict[str, aiohttp.ClientRequest] = {}
        self._keeper = _keeper(self._session)
        with contextlib.suppress(StopIteration):
            # Run the generator up to its yield: from then on the event loop closes it when the loop itself ends.
            anext(self._keeper).send(None)

    @property
    def closed(self) -> bool:
        """Whether the connections have been closed or given up."""
        return self._session.closed

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._keeper.aclose()

    def leave_to_parent(self) -> None:
        """In a forked child: the connections are the parent's, which goes on with them."""
        self._session.detach()

    def discard(self) -> None:
        """Lets go of the connections of an event loop that was closed while they were open."""
        if not self._session.closed:
            self._session.detach()
            self._connector.discard()

    async def exchange(
        self, request: Request, token: Token, known: Exchange, *, timeout: float
    ) -> Response | Failure:
        """Sends one request and reads its answer, within ``timeout`` seconds; fills in ``known`` on the way.

        A status of 400 or more is a response too, even if its body was cut short: the status says enough.
        """
        answer: Response | None = None
        cause: Exception | None = None
        whole = False
        try:
            async with asyncio.timeout(timeout):
                if self._through_session:
                    answer, whole = await self._by_session(request, token, known)
                else:
                    answer, whole = await self._by_connector(request, token, known)
        except (
            aiohttp.ClientError,
            aiohttp.http.HttpProcessingError,
            OSError,
        ) as error:  # TimeoutError is an OSError
            cause = error
        except BaseException as error:
            # The call was cancelled, or a trace hook of the user's raised. The same exception goes on, without the frames below, which
            # hold headers.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            raise
        if answer is None:
            assert cause is not None  # what is not caught is raised
            failure = transport_failure(cause, known, timeout=timeout)
            cause = None
            return failure
        if whole or answer.status >= 400:
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

    async def _by_connector(self, request: Request, token: Token, known: Exchange) -> tuple[Response, bool]:
        """The answer, and whether it is complete, by the connector's own round trip."""
        status, headers, body, whole = await self._connector.round_trip(
            self._route(request),
            _wire.serialized(request, token.head(request, user_agent=USER_AGENT)),
            known,
            limit=MAX_ANSWER,
        )
        return Response(status, headers, body), whole

    def _route(self, request: Request) -> aiohttp.ClientRequest:
        """Tells the connector where to connect to; the same for all requests to one origin."""
        route = self._routes.get(request.origin)
        if route is None:
            route = self._routes[request.origin] = aiohttp.ClientRequest(
                "GET", URL(request.origin), loop=self._loop
            )
        return route

    async def _by_session(self, request: Request, token: Token, known: Exchange) -> tuple[Response, bool]:
        """The same by aiohttp's session, which knows proxies and trace hooks."""
        proxy = self._proxy
        # aiohttp puts proxy_headers only into a CONNECT. A proxy that gets the request itself must find them there.
        plain = proxy.headers() if proxy is not None and request.url.scheme == "http" else {}
        context = current_exchange.set(known)
        try:
            response = await self._session.request(
                request.method,
                request.url,
                data=request.body,
                headers={**_wire.request_headers(request, token.authorization, USER_AGENT), **plain},
                allow_redirects=False,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=None if proxy is None else proxy.headers(),
            )
        finally:
            # A coroutine that the garbage collector ends runs in another context.
            with contextlib.suppress(ValueError):
                current_exchange.reset(context)
        known.answered = True
        whole = False
        try:
            body, whole = await read_body(response.content, limit=MAX_ANSWER)
            return Response(response.status, response.headers, body), whole
        finally:
            if not whole:
                response.close()

    async def request_token(self, request: Request, credentials: Credentials) -> TokenResponse | Failure:
        """One request to the token endpoint (RFC 6749, section 4.4.2)."""
        basic = BasicAuthorization(credentials).token
        answer = await self.exchange(request, basic, Exchange(), timeout=TOKEN_TIMEOUT)
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


async def _keeper(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    """Closes the session when nobody holds this generator any more, and at the latest when the event loop ends.

    A loop that ends (``asyncio.run``, ``asyncio.Runner``) closes the asynchronous generators that were started on it.
    """
    try:
        yield
    finally:
        await session.close()


def transport_failure(cause: Exception, known: Exchange, *, timeout: float) -> Failure:
    """In our words what aiohttp's exception means. Its own text is not repeated: it may quote what the server sent."""
    sent: Literal["no", "maybe"] = "maybe" if known.connected else "no"
    applied = known.connected
    if isinstance(cause, TimeoutError) and not isinstance(cause, aiohttp.ClientError):
        where = "waiting for the answer" if known.connected else "connecting"
        return Failure(
            CallTimeoutError(f"attempt_timeout of {timeout:g} s passed while {where}", sent=sent),
            retryable=True,
            maybe_applied=applied,
        )
    if isinstance(cause, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch):
        return Failure(
            TransportError("the server's certificate was not accepted", sent="no"), retryable=False
        )
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        # The one status of an aiohttp exception that a peer really sent: the proxy's answer to CONNECT.
        return Failure(
            TransportError(f"the proxy answered {cause.status}", sent="no"), retryable=cause.status >= 500
        )
    if isinstance(cause, aiohttp.ClientConnectorDNSError):
        problem = "the host name could not be resolved"
    elif isinstance(cause, aiohttp.ClientConnectorError):
        problem = f"no connection: {cause.os_error.strerror or type(cause.os_error).__name__}"
    elif isinstance(cause, aiohttp.ClientResponseError | aiohttp.http.HttpProcessingError):
        problem = "the answer is not HTTP"
    elif isinstance(cause, aiohttp.ServerDisconnectedError):
        problem = "the server closed the connection without an answer"
    else:
        problem = f"the connection failed: {getattr(cause, 'strerror', None) or type(cause).__name__}"
    lost = isinstance(cause, aiohttp.ServerDisconnectedError | OSError)
    return Failure(
        TransportError(problem, sent=sent),
        retryable=True,
        maybe_applied=applied,
        stale_connection=known.reused and lost and not known.answered,
    )
