"""One HTTP exchange: a request and a token go in; a response or a Failure comes out.

Only this file and ``pool`` call aiohttp's client. This file decides what aiohttp must not decide:

- Redirects are not followed, cookies are not kept, the environment's proxies are not used.
- One timeout covers the whole exchange: connecting, sending, reading.
- One exchange sends one request. aiohttp's session would send a GET twice by itself.
- aiohttp's exceptions end here. They carry request headers, and so the access token; a caller
  sees a :class:`Failure` instead.
- A user's trace hook that raises is a mistake in the user's program. The caller gets its exception,
  with the place where it was raised. The traceback holds no variables, because a frame below holds
  the request's headers.

There are two routes. The fast route (``fast_route``) writes the request itself and reads the answer
with aiohttp's parser. The public route is aiohttp's session. It is for a proxy, for trace hooks,
and for an aiohttp that differs from what the fast route needs (``aiohttp_private``).

:class:`Exchange` tells the send loop about the connection, also when the call is cancelled.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import ssl as tls
import sys
import traceback
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, Literal

import aiohttp
import aiohttp.http
from aiohttp.abc import AbstractResolver
from yarl import URL

from .._wire.arguments import Credentials, Proxy, checked_proxy
from .._wire.failure import Failure
from .._wire.requests import VERSION, Request, request_headers, serialized
from .._wire.responses import Response, TokenResponse, read_token_response
from ..errors import (
    CallTimeoutError,
    InvalidArgumentError,
    ResponseFormatError,
    TokenError,
    TransportError,
)
from .aiohttp_private import differences
from .fast_route import FastRoute
from .log import DEBUG, WARNING, log
from .pool import NO_TIMEOUT, CheckedResolver, Connector, Exchange, current_exchange, read_body
from .tokens import BasicAuthorization, Token

__all__ = ["ConnectionOptions", "Connections", "Exchange"]

TOKEN_TIMEOUT: Final = 10.0
"""Seconds that one token request may take."""

KEEPALIVE: Final = 30.0
"""Seconds for which an idle connection is kept. The pool notices if the server closes
it earlier.
"""

USER_AGENT: Final = (
    f"sinch-conv-async/{VERSION} "
    f"(Python/{sys.version_info[0]}.{sys.version_info[1]}; aiohttp/{aiohttp.__version__})"
)

_UNVERIFIED: Final = (
    "ssl must be a context that verifies certificates and host names "
    "(check_hostname on, verify_mode CERT_REQUIRED); for a private CA, load it into the context"
)


class ConnectionOptions:
    """How a manager connects, the same on every event loop that it is used on.

    ``resolver``: an aiohttp resolver, or a function that makes one for each event loop.
    """

    __slots__ = ("proxy", "resolver", "ssl", "trace_configs")

    def __init__(
        self,
        ssl: tls.SSLContext | aiohttp.Fingerprint | None = None,
        proxy: Proxy | None = None,
        resolver: AbstractResolver | Callable[[], AbstractResolver] | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        self.ssl = ssl
        self.proxy = proxy
        self.resolver = resolver
        self.trace_configs = trace_configs

    @classmethod
    def checked(
        cls, *, ssl: object, proxy: str | URL | None, resolver: Any, trace_configs: Any
    ) -> ConnectionOptions | str:
        """The options, or a text that says what is wrong; an error could show a proxy's secret."""
        given: Any = resolver  # the result of a function is unknown before it is called
        found_proxy = checked_proxy(proxy)
        if isinstance(found_proxy, str):
            return found_proxy
        if ssl is not None and not isinstance(ssl, tls.SSLContext | aiohttp.Fingerprint):
            return (
                "ssl must be an ssl.SSLContext, an aiohttp.Fingerprint or None: "
                "certificates are always verified"
            )
        if not _verifies(ssl):
            return _UNVERIFIED
        if not (resolver is None or isinstance(resolver, AbstractResolver) or callable(resolver)):
            return "resolver must be an aiohttp resolver, a function that makes one, or None"
        traces = list(trace_configs) if isinstance(trace_configs, Iterable) else [trace_configs]
        if not all(isinstance(trace, aiohttp.TraceConfig) for trace in traces):
            return "trace_configs must be aiohttp.TraceConfig objects"
        return cls(ssl, found_proxy, given, traces)

    def check_origin(self, name: str, origin: str) -> None:
        """Raise InvalidArgumentError if plain text would go to a proxy on another machine."""
        if self.proxy is not None and origin.startswith("http:") and not self.proxy.on_this_machine:
            raise InvalidArgumentError(
                f"{name} must be https, or the proxy must be on this machine: "
                f"http would carry the key and the metadata to {self.proxy.url.host} in plain text"
            )


def _verifies(ssl: tls.SSLContext | aiohttp.Fingerprint | None) -> bool:
    """Whether certificates and host names, or a fingerprint, are verified."""
    if not isinstance(ssl, tls.SSLContext):
        return True
    return ssl.check_hostname and ssl.verify_mode != tls.CERT_NONE


class Connections:
    """The connections of one manager on the running event loop, and the exchanges on them."""

    __slots__ = ("_connector", "_fast", "_keeper", "_loop", "_proxy", "_session")

    def __init__(self, options: ConnectionOptions) -> None:
        if not _verifies(options.ssl):
            # The context was changed after the manager was made.
            raise InvalidArgumentError(_UNVERIFIED)
        resolver = options.resolver
        made = None
        if resolver is not None and not isinstance(resolver, AbstractResolver):
            resolver = made = resolver()
            if not isinstance(made, AbstractResolver):
                raise InvalidArgumentError("resolver must make an aiohttp resolver")
        self._loop = asyncio.get_running_loop()
        self._proxy = options.proxy
        self._connector = Connector(
            keepalive_timeout=KEEPALIVE,
            ssl=True if options.ssl is None else options.ssl,
            resolver=None if resolver is None else CheckedResolver(resolver),
        )
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=NO_TIMEOUT,
            trust_env=False,
            auto_decompress=False,  # the reader of the answer bounds the decompressed size
            trace_configs=[*options.trace_configs, _tells_when_written()],
        )
        self._fast = (
            FastRoute(self._connector, keepalive=KEEPALIVE)
            if not options.proxy and not options.trace_configs and _fast_route_works()
            else None
        )
        self._keeper = _keeper(self._session, self._fast, made)
        with contextlib.suppress(StopIteration):
            # Run the generator up to its yield. The event loop closes it when the loop itself ends.
            anext(self._keeper).send(None)

    @property
    def closed(self) -> bool:
        """Whether the connections have been closed or given up."""
        return self._session.closed

    async def aclose(self) -> None:
        """Close every connection."""
        await self._keeper.aclose()

    def leave_to_parent(self) -> None:
        """In a forked child: discard the connections, which the parent goes on using."""
        self._session.detach()

    def discard(self) -> None:
        """Discard the connections of an event loop that was closed while they were open."""
        if not self._session.closed:
            self._session.detach()
            if self._fast is not None:
                self._fast.forget()
            self._connector.discard()

    async def exchange(
        self, request: Request, token: Token, known: Exchange, *, timeout: float
    ) -> Response | Failure:
        """Sends one request and reads its answer, within ``timeout`` seconds.

        Fills in ``known`` on the way. An answer with a status of 400 or more is a response even if
        its body was cut short.
        """
        answer: Response | None = None
        cause: Exception | None = None
        whole = False
        fast = self._fast
        try:
            if fast is not None:
                data = serialized(request, token.head(request, user_agent=USER_AGENT))
                status, headers, body, whole = await fast.exchange(
                    request.origin, data, known, limit=request.max_response, timeout=timeout
                )
                answer = Response(status, headers, body)
            else:
                async with asyncio.timeout(timeout):
                    answer, whole = await self._by_session(request, token, known)
        except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError) as error:
            cause = error  # TimeoutError is an OSError
        except BaseException as error:
            if self._loop.is_closed():
                # The event loop was closed during the call, and the garbage collector ends its
                # coroutine. Nothing can be closed in order then, and aiohttp's exceptions only say
                # so.
                raise GeneratorExit from None
            # The call was cancelled, or the user's trace hook raised.
            error.__context__ = error.__cause__ = None
            error.__traceback__ = without_variables(error)
            raise
        if answer is None:
            assert cause is not None  # other exceptions go on to the caller
            failure = transport_failure(cause, known, host=request.url.host or "", timeout=timeout)
            cause = None
            return failure
        if whole or answer.status >= 400:
            return answer
        if len(answer.body) > request.max_response:
            problem = f"the answer is longer than {request.max_response:,} bytes"
            return Failure(
                ResponseFormatError(problem, http_status=answer.status),
                retryable=False,
                maybe_applied=True,
            )
        return Failure(
            TransportError("the connection was closed in the middle of the answer"),
            retryable=True,
            maybe_applied=True,
        )

    async def _by_session(
        self, request: Request, token: Token, known: Exchange
    ) -> tuple[Response, bool]:
        """The answer by aiohttp's session, and whether its body is complete."""
        proxy = self._proxy
        # aiohttp puts proxy_headers only into a CONNECT. A proxy that gets the request itself must
        # find them there.
        plain = proxy.headers() if proxy is not None and request.url.scheme == "http" else {}
        context = current_exchange.set(known)
        try:
            response = await self._session.request(
                request.method,
                request.url,
                data=request.body or None,
                headers={**request_headers(request, token.authorization, USER_AGENT), **plain},
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
            body, whole = await read_body(response.content, limit=request.max_response)
            return Response(response.status, response.headers, body), whole
        finally:
            if not whole:
                response.close()

    async def request_token(
        self, request: Request, credentials: Credentials
    ) -> TokenResponse | Failure:
        """One request to the token endpoint (RFC 6749, section 4.4.2)."""
        basic = BasicAuthorization(credentials).token
        answer = await self.exchange(request, basic, Exchange(), timeout=TOKEN_TIMEOUT)
        if isinstance(answer, Failure):
            error = TokenError(answer.error.message)
            outcome: TokenResponse | Failure = Failure(error, retryable=answer.retryable)
        else:
            outcome = read_token_response(answer, scrub=credentials.scrub)
        if isinstance(outcome, Failure):
            log(WARNING, "no access token: %s", outcome.error, key_id=credentials.key_id)
        else:
            log(DEBUG, "access token for %.0f s", outcome.lifetime, key_id=credentials.key_id)
        return outcome


def _fast_route_works() -> bool:
    """Whether aiohttp has what the fast route needs; if not, log what differs."""
    differs = differences()
    if differs:
        log(
            WARNING,
            "aiohttp %s is not as the fast route needs it, so requests go by its session, "
            "which takes more CPU time: %s",
            aiohttp.__version__,
            "; ".join(differs),
        )
    return not differs


def _tells_when_written() -> aiohttp.TraceConfig:
    """The last of the session's trace configurations: it records when the request is written.

    aiohttp runs these hooks just before it writes, in the same step unless a user's hook waits. A
    callback that a hook schedules runs after that step.
    """

    async def on_body(session: aiohttp.ClientSession, context: object, params: object) -> None:
        asyncio.get_running_loop().call_soon(current_exchange.get().written)

    async def on_headers(
        session: aiohttp.ClientSession,
        context: object,
        params: aiohttp.TraceRequestHeadersSentParams,
    ) -> None:
        if "Content-Length" not in params.headers:  # no body follows
            await on_body(session, context, params)

    config = aiohttp.TraceConfig()
    config.on_request_chunk_sent.append(on_body)
    config.on_request_headers_sent.append(on_headers)
    return config


async def _keeper(
    session: aiohttp.ClientSession, fast: FastRoute | None, resolver: AbstractResolver | None
) -> AsyncGenerator[None, None]:
    """Close the session when this generator is freed, and at the latest when the loop ends.

    A loop that ends (``asyncio.run``, ``asyncio.Runner``) closes the asynchronous generators that
    were started on it. ``resolver``: a resolver that was made for this loop, to be closed as well.
    """
    try:
        yield
    finally:
        if fast is not None:
            fast.close()
        await session.close()
        if resolver is not None:
            await resolver.close()


def without_variables(error: BaseException) -> TracebackType | None:
    """The error's traceback with the same files, lines and names, and with empty frames.

    ``None`` for a cancellation, whose place tells nothing.
    """
    if isinstance(error, asyncio.CancelledError):
        return None
    bare: TracebackType | None = None
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        empty = _empty_frame(frame.f_code, line)
        bare = TracebackType(bare, empty, empty.f_lasti, line)
    return bare


def _empty_frame(code: CodeType, line: int) -> FrameType:
    """A frame at this line of this code, without variables."""
    tree = ast.parse("here()", mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            node.lineno = node.end_lineno = line
            node.col_offset = node.end_col_offset = -1  # the column is unknown
    here = compile(tree, code.co_filename, "eval").replace(
        co_name=code.co_name, co_qualname=code.co_qualname
    )
    frame: FrameType = eval(here, {"here": sys._getframe})  # noqa: S307  # this file's own expression
    return frame


def transport_failure(cause: Exception, known: Exchange, *, host: str, timeout: float) -> Failure:
    """The Failure that aiohttp's exception means, in this package's words.

    The exception's own text is not repeated: it may quote what the server sent. ``host``: the
    request's. A connection error names the host that aiohttp tried, which may be the proxy's.
    """
    sent: Literal["no", "maybe"] = "maybe" if known.connected else "no"
    applied = known.connected
    if isinstance(cause, TimeoutError) and not isinstance(cause, aiohttp.ClientError):
        where = f"waiting for the answer of {host}" if known.connected else f"connecting to {host}"
        return Failure(
            CallTimeoutError(f"attempt_timeout of {timeout:g} s passed while {where}", sent=sent),
            retryable=True,
            maybe_applied=applied,
        )
    if isinstance(
        cause, aiohttp.ServerFingerprintMismatch | aiohttp.ClientConnectorCertificateError
    ):
        error = getattr(cause, "certificate_error", None)
        reason = getattr(error, "verify_message", "another fingerprint")
        problem = f"the server's certificate was not accepted: {cause.host}: {reason}"
        return Failure(TransportError(problem, sent="no"), retryable=False)
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        # The one status of an aiohttp exception that a peer sent: the proxy's answer to CONNECT.
        return Failure(
            TransportError(f"the proxy answered {cause.status}", sent="no"),
            retryable=cause.status >= 500,
        )
    lost = isinstance(cause, aiohttp.ServerDisconnectedError | OSError)
    return Failure(
        TransportError(_connection_problem(cause, host), sent=sent),
        retryable=True,
        maybe_applied=applied,
        stale_connection=known.reused and lost and not known.answered,
    )


def _connection_problem(cause: Exception, host: str) -> str:
    if isinstance(cause, aiohttp.ClientConnectorDNSError):
        return f"the host name {cause.host} could not be resolved"
    if isinstance(cause, aiohttp.ClientConnectorError):
        reason = cause.os_error.strerror or type(cause.os_error).__name__
        return f"no connection to {cause.host}:{cause.port}: {reason}"
    if isinstance(cause, aiohttp.ClientResponseError | aiohttp.http.HttpProcessingError):
        return "the answer is not HTTP"
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return f"the server {host} closed the connection without an answer"
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    return f"the connection to {host} failed: {reason}"
