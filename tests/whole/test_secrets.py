"""No secret gets out: run through every way in which a call can fail, then looked for wherever
crash reporters and logs look.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import logging
import pickle
import ssl
import traceback
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
import trustme

import sinch_conv_async
from sinch_conv_async import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    CallTimeoutError,
    ClientStateError,
    ConversationClient,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ResponseFormatError,
    RetryPolicy,
    ServerError,
    SessionManager,
    SinchError,
    TokenError,
    TransportError,
)
from tests.servers import ID, OTHER, Server, http, message
from tests.whole.test_calls import SlowResolver

pytestmark = pytest.mark.usefixtures("each_way")

KEY_ID = "key-id"
SECRET = "canary-secret+/=%&"
TOKEN = "canary.token-_~+/="
PASSWORD = "canary-password"
METADATA = "canary-metadata"
BASIC = base64.b64encode(f"{KEY_ID}:{SECRET}".encode()).decode()
PROXY_BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()

# What must not be seen, in every spelling in which it travels.
SECRETS = (
    SECRET,
    quote(SECRET, safe=""),
    BASIC,
    TOKEN,
    quote(TOKEN, safe=""),
    PASSWORD,
    PROXY_BASIC,
)

TESTS = str(Path(__file__).parent.parent)
ONE_RETRY = RetryPolicy(max_retries=1, base_delay=0.0)


class Records(logging.Handler):
    """Keeps every record of every logger, down to DEBUG."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def records():
    handler, root = Records(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.records
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A failing token endpoint is given up at once, and a project that answers 429."""
    monkeypatch.setattr("sinch_conv_async._core.tokens.FETCH_FOR", 0.0)
    monkeypatch.setattr("sinch_conv_async._core.retry.BLOCKED_FOR", 0.0)


# Where to look


def texts_of_error(error: BaseException, seen: set[int] | None = None, where: str = "error"):
    """Every text by which an error, what hangs on it, or a frame that it went through shows
    anything.
    """
    seen = set() if seen is None else seen
    if id(error) in seen:
        return
    seen.add(id(error))
    yield f"{where}: str", str(error)
    yield f"{where}: repr", repr(error)
    yield f"{where}: args", repr(error.args)
    yield f"{where}: notes", repr(getattr(error, "__notes__", None))
    yield f"{where}: attributes", repr(vars(error))
    yield f"{where}: formatted", "".join(traceback.format_exception(error))
    if isinstance(error, SinchError):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            yield f"{where}: pickle {protocol}", pickle.dumps(error, protocol).decode("latin-1")
        yield f"{where}: copy", repr(vars(copy.copy(error)))
    for frame, line in traceback.walk_tb(error.__traceback__):
        if not frame.f_code.co_filename.startswith(TESTS):  # a test has to know the secrets
            for name, value in frame.f_locals.items():
                yield (
                    f"{where}: {name} in {frame.f_code.co_qualname if hasattr(frame.f_code, 'co_qualname') else ''} line {line}",
                    repr(value),
                )
    for name in ("__cause__", "__context__", "last"):
        further = getattr(error, name, None)
        if isinstance(further, BaseException):
            yield from texts_of_error(further, seen, f"{where}.{name}")
    if isinstance(error, BaseExceptionGroup):
        for number, part in enumerate(error.exceptions):
            yield from texts_of_error(part, seen, f"{where}[{number}]")


def texts_of_record(record: logging.LogRecord):
    where = f"log record of {record.name}"
    yield f"{where}: message", record.getMessage()
    yield f"{where}: attributes", repr(vars(record))
    if record.exc_info and record.exc_info[1]:
        yield from texts_of_error(record.exc_info[1], where=where)
    if isinstance(record.args, tuple):
        for arg in record.args:
            if isinstance(arg, BaseException):
                yield from texts_of_error(arg, where=where)


def leaks(texts, canaries=SECRETS):
    return [
        f"{where} shows {canary}" for where, text in texts for canary in canaries if canary in text
    ]


def all_leaks(error, records):
    found = leaks(texts_of_error(error))
    for record in records:
        found += leaks(texts_of_record(record))
        found += leaks(texts_of_record(record), (METADATA,))
    return found


# What the looking is worth


@pytest.mark.parametrize(
    "place", ["str", "argument", "note", "cause", "context", "attribute", "local", "last"]
)
def test_a_secret_would_be_found(place):
    def fail(secret):
        if place == "local":
            raise ValueError
        error = (
            CallTimeoutError("late")
            if place == "last"
            else ValueError(secret if place in ("str", "argument") else "")
        )
        if place == "note":
            error.add_note(secret)
        elif place == "attribute":
            error.request = secret
        elif place == "last":
            error.last = TransportError(secret)
        elif place in ("cause", "context"):
            try:
                raise KeyError(secret)
            except KeyError as inner:
                if place == "cause":
                    raise ValueError from inner
                raise ValueError  # noqa: B904  # the context is what is tried here
        raise error

    elsewhere = type(fail)(
        fail.__code__.replace(co_filename="/elsewhere.py"),
        globals(),
        "fail",
        None,
        fail.__closure__,
    )
    with pytest.raises((ValueError, TransportError)) as caught:
        elsewhere(SECRET)
    assert leaks(texts_of_error(caught.value))


@pytest.mark.parametrize("place", ["message", "args", "extra", "exc_info"])
def test_a_secret_in_a_log_record_would_be_found(place, records):
    log = logging.getLogger("somebody")
    if place == "message":
        log.debug(f"Bearer {TOKEN}")  # noqa: G004
    elif place == "args":
        log.debug("%s", TOKEN)
    elif place == "extra":
        log.debug("x", extra={"authorization": TOKEN})
    else:
        log.debug("x", exc_info=ValueError(TOKEN))
    assert leaks(texts_of_record(records[-1]))


# A server that repeats all it was told


class Api:
    """A token endpoint and an API on one port. ``answer`` is given what was received, and what is
    worth echoing.
    """

    def __init__(self, *, token=None, update=None):
        self.token = token or (
            lambda echo: http(200, json.dumps({"access_token": TOKEN, "expires_in": 3600}).encode())
        )
        self.update = update
        self.authorizations = []

    async def __call__(self, peer):
        while True:
            received = await peer.receive()
            self.authorizations.append(received.headers.get("authorization"))
            told = [*received.headers.values(), SECRET, quote(SECRET, safe=""), BASIC]
            if f"Bearer {TOKEN}" in told:
                told += [TOKEN, quote(TOKEN, safe="")]
            echo = " ".join(told)
            answer = (self.token if received.target.endswith("/oauth2/token") else self.update)(
                echo
            )
            if callable(answer):
                await answer(peer)
                return
            await peer.send(answer)
            if b"Content-Length" not in answer:
                return


def options_of(server, **options):
    return {
        "project_id": "project",
        "key_id": KEY_ID,
        "key_secret": SECRET,
        "conversation_origin": server.origin,
        "auth_origin": server.origin,
        "retry": ONE_RETRY,
        "attempt_timeout": 5.0,
        **options,
    }


async def call(server, **options):
    """One call, in which everything that is secret is used."""
    async with ConversationClient(**options_of(server, **options)) as client:
        await client.update_message_metadata(ID, METADATA)


async def call_api(update=None, *, token=None, ssl=None, **options):
    api = Api(update=update, token=token)
    async with Server(api, ssl=ssl) as server:
        try:
            await call(server, **options)
        finally:
            # Nothing is proved about a secret that was never told.
            assert any(
                value in (f"Bearer {TOKEN}", f"Basic {BASIC}") for value in api.authorizations
            )


ECHOES = {
    "envelope": lambda echo: json.dumps(
        {
            "error": {
                "code": 7,
                "message": echo,
                "status": echo,
                "details": [{"@type": echo, echo: [echo, {echo: echo}]}, echo],
            }
        }
    ),
    "flat": lambda echo: json.dumps(
        {"code": 7, "message": echo, "status": echo, "details": [echo]}
    ),
    "problem": lambda echo: json.dumps(
        {"type": echo, "title": echo, "detail": echo, "errors": [{"pointer": echo}]}
    ),
    "string": lambda echo: json.dumps({"error": echo}),
    "a string alone": lambda echo: json.dumps(echo),
    "list": lambda echo: json.dumps([echo]),
    "html": lambda echo: f"<html>{echo}</html>",
    "many times": lambda echo: echo * 100,
    "message": lambda echo: json.dumps({"id": echo, "metadata": echo}),
    "message of odd types": lambda echo: json.dumps(
        {"id": {echo: echo}, "accept_time": echo, "channel_identity": echo, "injected": echo}
    ),
    "empty": lambda echo: "",
}
HEADERS = (
    "X-Request-Id",
    "X-Correlation-Id",
    "Retry-After",
    "Location",
    "Set-Cookie",
    "WWW-Authenticate",
    "Content-Type",
    "Date",
)


def echoing(status, body):
    def answer(echo):
        headers = [f"{name}: {echo}" for name in HEADERS]
        return http(f"{status} {echo}", ECHOES[body](echo).encode(), *headers)

    return answer


CLASSES = {
    201: ResponseFormatError,
    303: ResponseFormatError,
    307: ResponseFormatError,
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: ApiError,
    429: RateLimitedError,
    500: ServerError,
    501: ServerError,
    503: ServerError,
}


@pytest.mark.parametrize(
    ("status", "body"),
    [*((status, "envelope") for status in CLASSES), *((400, body) for body in ECHOES)],
)
async def test_nothing_gets_out_of_an_answer_that_repeats_all_it_was_told(status, body, records):
    with pytest.raises(CLASSES[status]) as caught:
        await call_api(echoing(status, body))
    assert all_leaks(caught.value, records) == []


@pytest.mark.parametrize(
    "body",
    ["a string alone", "list", "html", "many times", "message", "message of odd types", "empty"],
)
async def test_nor_of_a_200_that_is_no_message(body, records):
    with pytest.raises(ResponseFormatError) as caught:
        await call_api(echoing(200, body))
    assert all_leaks(caught.value, records) == []


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_nor_with_basic_credentials(status, records):
    with pytest.raises(ApiError) as caught:
        await call_api(echoing(status, "envelope"), auth="basic")
    assert all_leaks(caught.value, records) == []
    assert "[redacted]" in caught.value.message
    assert "[redacted]" in caught.value.body


@pytest.mark.parametrize(
    ("status", "body"),
    [*((status, "envelope") for status in (*CLASSES, 200, 418)), *((401, body) for body in ECHOES)],
)
async def test_nothing_gets_out_of_a_token_endpoint_that_repeats_all_it_was_told(
    status, body, records
):
    with pytest.raises(TokenError) as caught:
        await call_api(token=echoing(status, body))
    assert all_leaks(caught.value, records) == []


TOKEN_ANSWERS = {
    "invalid_client": lambda echo: http(
        401, json.dumps({"error": "invalid_client", "error_description": echo}).encode()
    ),
    "an odd error": lambda echo: http(
        400, json.dumps({"error": echo, "error_description": [echo]}).encode()
    ),
    "no token": lambda echo: http(200, json.dumps({"token": echo}).encode()),
    "a token that cannot be sent": lambda echo: http(
        200, json.dumps({"access_token": f"{TOKEN}\r\n"}).encode()
    ),
    "no life": lambda echo: http(
        200, json.dumps({"access_token": TOKEN, "expires_in": -1}).encode()
    ),
    "a life of text": lambda echo: http(
        200, json.dumps({"access_token": TOKEN, "expires_in": echo}).encode()
    ),
    "not JSON": lambda echo: http(200, echo.encode()),
    "too long": lambda echo: http(200, echo.encode() * 20_000),
    "nothing": lambda echo: b"\r\n",
    "not HTTP": lambda echo: f"{echo}\r\n\r\n".encode(),
    "a malformed header": lambda echo: f"HTTP/1.1 200 OK\r\n{echo}\r\n\r\n".encode(),
    "cut in the body": lambda echo: http(200, echo.encode(), length=99_999).replace(
        b"Content-Length", b"content-length"
    ),
}


@pytest.mark.parametrize("answer", TOKEN_ANSWERS.values(), ids=TOKEN_ANSWERS)
async def test_nothing_gets_out_of_a_failed_token_request(answer, records):
    with pytest.raises(TokenError) as caught:
        await call_api(token=answer)
    assert all_leaks(caught.value, records) == []


# What happens to a connection


async def hang(peer):
    await peer.gone()


async def reset(peer):
    peer.reset()


async def hang_in_body(peer):
    await peer.send(http(200, b"{", length=100))
    await peer.gone()


async def reset_in_body(peer):
    await peer.send(http(200, b"{", length=100))
    peer.reset()


RAW = {
    "closed": (TransportError, lambda echo: b"\r\n"),
    "reset": (TransportError, lambda echo: reset),
    "reset in the body": (TransportError, lambda echo: reset_in_body),
    "hangs": (CallTimeoutError, lambda echo: hang),
    "hangs in the body": (CallTimeoutError, lambda echo: hang_in_body),
    "not HTTP": (TransportError, lambda echo: f"{echo}\r\n\r\n".encode()),
    "a malformed status line": (TransportError, lambda echo: f"HTTP/1.1 {echo}\r\n\r\n".encode()),
    "a malformed header": (
        TransportError,
        lambda echo: f"HTTP/1.1 200 OK\r\n{echo}\r\n\r\n".replace(":", " ").encode(),
    ),
    "a header too long": (
        TransportError,
        lambda echo: f"HTTP/1.1 200 OK\r\nX: {echo * 500}\r\n\r\n".encode(),
    ),
    "a malformed chunk": (
        TransportError,
        lambda echo: f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{echo}\r\n".encode(),
    ),
    "two lengths": (
        TransportError,
        lambda echo: (
            b"HTTP/1.1 200 OK\r\nContent-length: 1\r\nContent-length: 2\r\n\r\n" + echo.encode()
        ),
    ),
    "an odd encoding": (
        ResponseFormatError,
        lambda echo: http(200, echo.encode(), "Content-Encoding: gzip").replace(
            b"Content-L", b"content-l"
        ),
    ),
    "cut in the body": (
        TransportError,
        lambda echo: http(200, echo.encode(), length=99_999).replace(b"Content-L", b"content-l"),
    ),
    "an error cut in the body": (
        NotFoundError,
        lambda echo: http(404, echo.encode(), length=99_999).replace(b"Content-L", b"content-l"),
    ),
    "too long": (ResponseFormatError, lambda echo: http(200, echo.encode() * 20_000)),
    "another id": (ResponseFormatError, lambda echo: http(200, message(OTHER, metadata=echo))),
}


@pytest.mark.parametrize("auth", ["oauth2", "basic"])
@pytest.mark.parametrize(("kind", "answer"), RAW.values(), ids=RAW)
async def test_nothing_gets_out_of_a_broken_exchange(kind, answer, auth, records):
    with pytest.raises(kind) as caught:
        await call_api(answer, auth=auth, attempt_timeout=0.3)
    assert all_leaks(caught.value, records) == []


@pytest.mark.parametrize("auth", ["oauth2", "basic"])
async def test_nothing_gets_out_when_nobody_is_there(auth, records):
    async with Server(hang) as nobody:
        pass
    with pytest.raises(TransportError if auth == "basic" else TokenError) as caught:
        await call(nobody, auth=auth)
    assert all_leaks(caught.value, records) == []


async def test_nothing_gets_out_of_a_timeout_while_connecting(records):
    async with SessionManager(resolver=SlowResolver()) as manager, Server(hang) as server:
        with pytest.raises(CallTimeoutError, match="connecting") as caught:
            await call(
                server,
                auth="basic",
                session_manager=manager,
                conversation_origin="https://api.invalid",
                attempt_timeout=0.02,
            )
    assert all_leaks(caught.value, records) == []


@pytest.mark.parametrize("answer", [hang, hang_in_body])
async def test_nothing_gets_out_of_a_calls_own_timeout(answer, records):
    with pytest.raises(CallTimeoutError) as caught:
        await call_api(lambda echo: answer, timeout=0.05)
    assert all_leaks(caught.value, records) == []


async def test_nothing_gets_out_of_a_turn_that_cannot_come(records):
    with pytest.raises(CallTimeoutError, match="turn cannot come") as caught:
        await call_api(echoing(503, "envelope"), rate_limit=0.001, timeout=100.0)
    assert isinstance(caught.value.last, ServerError)
    assert all_leaks(caught.value, records) == []


@pytest.mark.parametrize("trust", ["no authority", "another name", "another fingerprint", "no TLS"])
async def test_nothing_gets_out_of_a_tls_handshake_that_fails(trust, records):
    authority, server_context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(
        "elsewhere.example" if trust == "another name" else "127.0.0.1"
    ).configure_cert(server_context)
    ours = ssl.create_default_context()
    if trust == "another name":
        authority.configure_trust(ours)
    given = aiohttp.Fingerprint(b"\x00" * 32) if trust == "another fingerprint" else ours

    async def refuse(peer):
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with (
        Server(refuse, ssl=None if trust == "no TLS" else server_context) as server,
        SessionManager(ssl=given) as manager,
    ):
        for auth, kind in (("basic", TransportError), ("oauth2", TokenError)):
            origin = f"https://127.0.0.1:{server.port}"
            with pytest.raises(kind) as caught:
                await call(
                    server,
                    auth=auth,
                    session_manager=manager,
                    conversation_origin=origin,
                    auth_origin=origin,
                )
            assert all_leaks(caught.value, records) == []


@pytest.mark.parametrize("status", [200, 403, 407, 502])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_nothing_gets_out_of_a_proxy_that_refuses_and_repeats_all_it_was_told(
    scheme, status, records
):
    told = []

    async def script(peer):
        received = await peer.receive()
        told.extend(received.headers.values())
        echo = " ".join([PASSWORD, PROXY_BASIC, *received.headers.values()])
        if status == 200:
            await peer.send(f"HTTP/1.1 {echo}\r\n\r\n".encode())
        else:
            await peer.send(http(f"{status} {echo}", b"", f"Proxy-Authenticate: {echo}"))

    async with (
        Server(script) as forwarder,
        SessionManager(proxy=forwarder.origin.replace("//", f"//user:{PASSWORD}@")) as manager,
    ):
        assert leaks([("repr", repr(manager))]) == []
        with pytest.raises(SinchError) as caught:
            await call(
                forwarder,
                auth="basic",
                session_manager=manager,
                conversation_origin=f"{scheme}://127.0.0.1:9",
            )
        assert f"Basic {PROXY_BASIC}" in told
        assert all_leaks(caught.value, records) == []


async def test_nothing_gets_out_of_a_trace_hook_that_raises(records):
    def raising(hook):
        trace = aiohttp.TraceConfig()

        async def fail(session, context, parameters):
            raise ZeroDivisionError("the user's own")

        getattr(trace, hook).append(fail)
        return trace

    for hook in (
        "on_request_start",
        "on_connection_create_start",
        "on_connection_create_end",
        "on_request_headers_sent",
        "on_request_end",
    ):
        async with SessionManager(trace_configs=[raising(hook)]) as manager:
            with pytest.raises(ZeroDivisionError) as caught:
                async with Server(Api(update=lambda echo: http(200, message()))) as server:
                    await call(server, auth="basic", session_manager=manager)
            assert all_leaks(caught.value, records) == []


# Cancelled


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("auth", ["oauth2", "basic"])
async def test_nothing_gets_out_of_a_call_that_is_cancelled_at_any_turn(auth, timeout, records):
    def update(echo):
        return echoing(503, "envelope")(echo)

    turn = 0
    async with Server(Api(update=update)) as server:
        while True:
            async with ConversationClient(
                **options_of(server, auth=auth, timeout=timeout)
            ) as client:
                running = asyncio.create_task(client.update_message_metadata(ID, METADATA))
                for _ in range(turn):
                    await asyncio.sleep(0)
                if running.done():
                    assert isinstance(running.exception(), ServerError)
                    break
                running.cancel()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await running
                assert all_leaks(caught.value, records) == []
            turn += 1
    assert turn > 5


@pytest.mark.parametrize("answer", [hang, hang_in_body])
@pytest.mark.parametrize("what", ["token", "update"])
async def test_nothing_gets_out_of_a_call_that_is_cancelled_while_a_server_hangs(
    what, answer, records
):
    api = Api(update=lambda echo: answer, token=(lambda echo: answer) if what == "token" else None)
    async with Server(api) as server, ConversationClient(**options_of(server)) as client:
        running = asyncio.create_task(client.update_message_metadata(ID, METADATA))
        await server.wait_for(1 if what == "token" else 2)
        for _ in range(20):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await running
        assert all_leaks(caught.value, records) == []


async def test_nothing_gets_out_in_the_event_loops_debug_mode(records):
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    with pytest.raises(ServerError) as caught:
        await call_api(echoing(503, "envelope"))
    loop.set_debug(False)
    assert [record for record in records if record.name == "asyncio"]
    ours = [record for record in records if TESTS not in repr(record.args)]
    assert all_leaks(caught.value, ours) == []


# Refused before anything is sent


CONSTRUCTORS = {
    "no region": {"conversation_region": None},
    "an unknown region": {"conversation_region": "mars"},
    "a hostile project": {"project_id": "../x"},
    "a hostile key": {"key_id": "key\r\n"},
    "a hostile secret": {"key_secret": f"{SECRET}\r\n"},
    "a secret of another type": {"key_secret": SECRET.encode()},
    "an odd auth": {"auth": "digest"},
    "an odd manager": {"session_manager": object()},
    "an odd policy": {"retry": 3},
    "an odd timeout": {"timeout": -1},
    "an odd attempt_timeout": {"attempt_timeout": None},
    "an odd rate": {"rate_limit": float("nan")},
    "an origin with a password": {"conversation_origin": "https://user:pasted@host"},
    "an origin without TLS": {"auth_origin": "http://example.com"},
    "an origin of no sense": {"auth_origin": "https://[pasted"},
}


@pytest.mark.parametrize("wrong", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_nothing_gets_out_of_a_constructor_that_refuses(wrong, records):
    options = {
        "project_id": "project",
        "key_id": KEY_ID,
        "key_secret": SECRET,
        "conversation_region": "us",
        **wrong,
    }
    with pytest.raises(InvalidArgumentError) as caught:
        ConversationClient(**options)
    assert all_leaks(caught.value, records) == []
    assert "pasted" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [*CONSTRUCTORS.values(), {"unheard_of": 1}], ids=[*CONSTRUCTORS, "an unknown keyword"]
)
def test_nothing_gets_out_of_from_env_that_refuses(wrong, records, monkeypatch):
    for name, value in (
        ("PROJECT_ID", "project"),
        ("KEY_ID", KEY_ID),
        ("KEY_SECRET", SECRET),
        ("CONVERSATION_REGION", "us"),
    ):
        monkeypatch.setenv(f"SINCH_{name}", value)
    with pytest.raises((InvalidArgumentError, TypeError)) as caught:
        ConversationClient.from_env(**wrong)
    assert all_leaks(caught.value, records) == []


def test_nothing_gets_out_of_from_env_that_misses_something(records, monkeypatch):
    monkeypatch.setenv("SINCH_KEY_SECRET", SECRET)
    with pytest.raises(
        InvalidArgumentError, match="SINCH_PROJECT_ID, SINCH_KEY_ID, SINCH_CONVERSATION_REGION"
    ) as caught:
        ConversationClient.from_env()
    assert all_leaks(caught.value, records) == []


@pytest.mark.parametrize(
    "proxy",
    [f"socks5://user:{PASSWORD}@host", f"http://user:{PASSWORD}@[::1", PASSWORD, PASSWORD.encode()],
)
def test_nothing_gets_out_of_a_manager_that_refuses(proxy, records):
    with pytest.raises(InvalidArgumentError) as caught:
        SessionManager(proxy=proxy)
    assert all_leaks(caught.value, records) == []


@pytest.mark.parametrize("metadata", [METADATA * 100, f"{METADATA}\ud800", METADATA.encode()])
async def test_metadata_that_is_refused_is_not_shown(metadata, records):
    async with Server(hang) as server:
        with pytest.raises(InvalidArgumentError) as caught:
            async with ConversationClient(**options_of(server)) as client:
                await client.update_message_metadata(ID, metadata)
        assert all_leaks(caught.value, records) == []
        assert METADATA not in str(caught.value) + repr(caught.value)


async def test_nothing_gets_out_of_a_closed_client(records):
    async with Server(Api()) as server:
        client = ConversationClient(**options_of(server))
        await client.close()
        with pytest.raises(ClientStateError) as caught:
            await client.update_message_metadata(ID, METADATA)
        assert all_leaks(caught.value, records) == []


async def test_nothing_gets_out_of_a_client_on_another_loop(records):
    async with (
        Server(Api(update=lambda echo: http(200, message()))) as server,
        ConversationClient(**options_of(server)) as client,
    ):
        await client.update_message_metadata(ID, METADATA)
        with pytest.raises(ClientStateError) as caught:
            await asyncio.to_thread(asyncio.run, client.update_message_metadata(ID, METADATA))
        assert all_leaks(caught.value, records) == []


# And where nothing went wrong


async def test_nothing_shows_in_the_reprs_and_logs_of_a_call_that_succeeds(records):
    async with (
        Server(Api(update=lambda echo: http(200, message(metadata=METADATA, text=echo)))) as server,
        SessionManager() as manager,
        ConversationClient(**options_of(server, session_manager=manager)) as client,
    ):
        answer = await client.update_message_metadata(ID, METADATA)
        member = client._sender
        shown = [
            client,
            manager,
            manager.stats(),
            member,
            member.authorization,
            member.authorization.credentials,
            member.project,
            member.lifetime,
        ]
        shown += [
            manager._binder.current,
            manager._registry,
            member.authorization.current(0),
            answer,
        ]
        texts = [(type(thing).__name__, repr(thing) + str(thing)) for thing in shown]
        assert leaks(texts) == []
        assert leaks(texts, (METADATA,)) == []
        for record in records:
            assert leaks(texts_of_record(record)) == []
            assert leaks(texts_of_record(record), (METADATA,)) == []


async def test_metadata_that_a_server_repeats_stays_in_message_and_body():
    answer = http(
        400,
        json.dumps(
            {"error": {"message": "too long", "details": [{"value": METADATA}], "x": METADATA}}
        ).encode(),
    )
    with pytest.raises(BadRequestError) as caught:
        await call_api(lambda echo: answer)
    assert METADATA not in str(caught.value)
    assert METADATA in caught.value.body


def test_every_class_of_the_tree_has_been_tried():
    # By what the tests above expect; of the root itself there are no instances.
    tried = {
        SinchError,
        *CLASSES.values(),
        *(kind for kind, _ in RAW.values()),
        TokenError,
        ClientStateError,
        InvalidArgumentError,
    }
    tree = {
        value
        for value in vars(sinch_conv_async).values()
        if isinstance(value, type) and issubclass(value, SinchError)
    }
    assert tried == tree
