"""aiohttp is changed under the client, one change at a time: the fast route is left, and nothing
breaks.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import logging
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import sinch_conv_async
from sinch_conv_async import SessionManager, SinchError
from sinch_conv_async._core.aiohttp_private import FAST_ROUTE, PUBLIC_ROUTE, Part, differences
from sinch_conv_async._core.pool import Connector
from sinch_conv_async.sandbox import Sandbox
from tests.servers import ID, NEVER, Server, answering, client_of, http


def stand_in(part: Part, monkeypatch: pytest.MonkeyPatch) -> tuple[type, str]:
    """Puts a subclass in the place of the part's class, which may be written in C, and gives it to
    be changed.
    """
    *way, name, last = part.path.split(".")
    module = functools.reduce(getattr, way, aiohttp)
    original = getattr(module, name)
    changed = type(name, (original,), {})
    monkeypatch.setattr(module, name, changed)
    return changed, last


@pytest.fixture
def fast_route() -> None:
    if differences():
        pytest.skip(f"aiohttp {aiohttp.__version__} has no fast route: {differences()}")


@pytest.mark.usefixtures("fast_route")
@pytest.mark.parametrize("part", FAST_ROUTE, ids=lambda part: part.name)
def test_a_part_that_is_gone_is_named(part, monkeypatch):
    *way, name, _ = part.path.split(".")
    module = functools.reduce(getattr, way, aiohttp)
    monkeypatch.delattr(module, name)
    others = {
        other.name
        for other in FAST_ROUTE
        if other.path.split(".")[:-1] == part.path.split(".")[:-1]
    }
    assert set(differences()) == {f"{other} is gone" for other in others}


@pytest.mark.usefixtures("fast_route")
@pytest.mark.parametrize(
    "part", [part for part in FAST_ROUTE if part.arguments], ids=lambda part: part.name
)
def test_a_part_that_asks_for_one_more_argument_is_named(part, monkeypatch):
    changed, name = stand_in(part, monkeypatch)

    async def replacement(self, *args, one_more, **options): ...

    setattr(changed, name, replacement)
    (difference,) = differences()
    assert difference.startswith(f"{part.name} takes other arguments (")
    assert "one_more" in difference


@pytest.mark.usefixtures("fast_route")
@pytest.mark.parametrize(
    "part", [part for part in FAST_ROUTE if part.arguments], ids=lambda part: part.name
)
def test_a_part_that_takes_fewer_arguments_is_named(part, monkeypatch):
    changed, name = stand_in(part, monkeypatch)
    setattr(changed, name, lambda: None)
    (difference,) = differences()
    assert difference.startswith(f"{part.name} takes other arguments (")


@pytest.mark.usefixtures("fast_route")
@pytest.mark.parametrize(
    "part", [part for part in FAST_ROUTE if part.awaited], ids=lambda part: part.name
)
def test_a_part_that_is_not_awaited_any_more_is_named(part, monkeypatch):
    changed, name = stand_in(part, monkeypatch)
    setattr(changed, name, lambda self, *args, **options: None)
    assert differences() == [f"{part.name} is not awaited any more"]


@pytest.mark.usefixtures("fast_route")
@pytest.mark.parametrize("part", FAST_ROUTE, ids=lambda part: part.name)
def test_a_part_that_takes_more_than_it_is_given_is_no_difference(part, monkeypatch):
    changed, name = stand_in(part, monkeypatch)
    original = getattr(changed, name)

    async def awaited(self, *args, one_more=None, **options): ...

    def replacement(self, *args, one_more=None, **options):
        return original(self, *args, **options)

    setattr(changed, name, awaited if part.awaited else replacement)
    assert differences() == []


class NoTuple(aiohttp.http.HttpResponseParser):
    def feed_data(self, data):
        return super().feed_data(data)[0]


class AnotherStatus(aiohttp.http.HttpResponseParser):
    def feed_data(self, data):
        return super().feed_data(data.replace(b"200", b"299"))


@pytest.mark.usefixtures("fast_route")
@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (NoTuple, "(ValueError: not enough values to unpack (expected 3, got 1))"),
        (AnotherStatus, "(got (299, 'yes', False, b'{}', True))"),
    ],
)
def test_a_parser_that_reads_otherwise_is_named(changed, problem, monkeypatch):
    monkeypatch.setattr(aiohttp.http, "HttpResponseParser", changed)
    assert differences() == [f"HttpResponseParser reads a sample otherwise {problem}"]


def changed_constructor(monkeypatch: pytest.MonkeyPatch) -> str:
    construct = aiohttp.ClientRequest.__init__

    def replacement(self, method, url, *, params, **options):
        construct(self, method, url, params=params, **options)

    monkeypatch.setattr(aiohttp.ClientRequest, "__init__", replacement)
    return "ClientRequest.__init__ takes other arguments (missing a required argument: 'params')"


def changed_opening(monkeypatch: pytest.MonkeyPatch) -> str:
    opening = aiohttp.TCPConnector._create_connection

    async def replacement(self, req, traces):
        return await opening(self, req, traces, aiohttp.ClientTimeout())

    async def connect(self, req, traces, timeout):
        original = self._create_connection
        self._create_connection = lambda req, traces, timeout: original(req, traces)
        return await connecting(self, req, traces, timeout)

    connecting = aiohttp.TCPConnector.connect
    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect)
    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", replacement)
    return "TCPConnector._create_connection takes other arguments (too many positional arguments)"


def changed_parser(monkeypatch: pytest.MonkeyPatch) -> str:
    class Parser(aiohttp.http.HttpResponseParser):
        def __init__(self, protocol, loop, *, timer): ...

    Parser.__name__ = "HttpResponseParser"
    monkeypatch.setattr(aiohttp.http, "HttpResponseParser", Parser)
    return "HttpResponseParser.__init__ takes other arguments (too many positional arguments)"


def changed_reading(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(aiohttp.http, "HttpResponseParser", AnotherStatus)
    return "HttpResponseParser reads a sample otherwise (got (299, 'yes', False, b'{}', True))"


@pytest.mark.usefixtures("fast_route")
@pytest.mark.parametrize(
    "change", [changed_constructor, changed_opening, changed_parser, changed_reading]
)
async def test_calls_go_by_aiohttps_session_and_one_warning_says_why(change, monkeypatch, caplog):
    difference = change(monkeypatch)
    difference = (
        difference.replace("argument:", "keyword-only argument:")
        if sys.version_info >= (3, 12)
        else difference
    )
    async with Sandbox(auto_create=True) as sandbox, client_of(sandbox) as client:
        for number in range(3):
            await client.update_message_metadata(ID, str(number))
        assert sandbox.messages[ID].metadata == "2"
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        f"aiohttp {aiohttp.__version__} is not as the fast route needs it, so requests go by its session, "
        f"which takes more CPU time: {difference}"
    ]


# The list is complete

SOURCES = [
    ast.parse(path.read_text("utf-8"))
    for path in Path(sinch_conv_async.__file__).parent.glob("_core/*.py")
    if path.stem != "aiohttp_private"
]
LISTED = {part.name for part in (*FAST_ROUTE, *PUBLIC_ROUTE)}

# What aiohttp's reference tells of, and the package uses.
DOCUMENTED = {
    "ClientResponse.close",
    "ClientResponse.content",
    "ClientResponse.headers",
    "ClientResponse.status",
    "ClientSession.close",
    "ClientSession.closed",
    "ClientSession.detach",
    "ClientSession.request",
    "StreamReader.at_eof",
    "StreamReader.exception",
    "StreamReader.is_eof",
    "StreamReader.read",
    "StreamReader.read_nowait",
    "TCPConnector.__init__",
    "TCPConnector.close",
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_every_name_of_aiohttp_is_exported_or_listed():
    """Annotations aside: they run nothing."""
    used = {
        dotted(node).removeprefix("aiohttp.")
        for tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node).startswith("aiohttp.")
    }
    annotations = {"connector", "connector.Connection"}
    not_exported = {name for name in used if name not in aiohttp.__all__} - annotations
    listed = {part.path.removesuffix(".__init__") for part in (*FAST_ROUTE, *PUBLIC_ROUTE)}
    assert not_exported - {"__version__", "http"} <= listed


def test_every_method_of_aiohttps_that_is_overridden_is_documented_or_listed():
    plain = set(dir(aiohttp.TCPConnector))
    own = {name for name in vars(Connector) if name in plain and callable(getattr(Connector, name))}
    assert {f"TCPConnector.{name}" for name in own} <= LISTED | DOCUMENTED


def watch(
    cls: type, used: set[str], monkeypatch: pytest.MonkeyPatch, known: type | None = None
) -> None:
    """Notes each attribute of the class's that a frame of the package asks for."""
    name = (known or cls).__name__
    plain = known or cls

    def look_up(self: object, attribute: str) -> Any:
        value = object.__getattribute__(self, attribute)
        asker = sys._getframe(1)
        ours = asker.f_globals["__name__"].startswith("sinch_conv_async.")
        # What is passed on is aiohttp's to ask for.
        if (
            ours
            and asker.f_code.co_name != "__getattr__"
            and (known is None or hasattr(plain, attribute))
        ):
            used.add(f"{name}.{attribute}")
        return value

    monkeypatch.setattr(cls, "__getattribute__", look_up)


class Head:
    """Stands for a parsed head, which may be written in C, and notes what is asked of it."""

    def __init__(self, message: Any, used: set[str]) -> None:
        self._message = message
        self._used = used

    def __getattr__(self, attribute: str) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("sinch_conv_async."):
            self._used.add(f"RawResponseMessage.{attribute}")
        return getattr(self._message, attribute)


async def test_every_attribute_of_aiohttps_objects_is_documented_or_listed_and_nothing_else(
    monkeypatch,
):
    used: set[str] = set()
    for cls in (
        aiohttp.ClientResponse,
        aiohttp.ClientSession,
        aiohttp.StreamReader,
        aiohttp.client_proto.ResponseHandler,
        aiohttp.connector.Connection,
        aiohttp.tracing.Trace,
    ):
        watch(cls, used, monkeypatch)
    watch(aiohttp.streams.EmptyStreamReader, used, monkeypatch, aiohttp.StreamReader)
    watch(Connector, used, monkeypatch, aiohttp.TCPConnector)

    class Parser(aiohttp.http.HttpResponseParser):
        def feed_data(self, data):
            messages, *rest = super().feed_data(data)
            return [(Head(message, used), body) for message, body in messages], *rest

    watch(Parser, used, monkeypatch, aiohttp.http.HttpResponseParser)
    monkeypatch.setattr(aiohttp.http, "HttpResponseParser", Parser)

    async def slow_body(peer):
        await peer.receive()
        await peer.send(http(200, b"{", length=100))
        await peer.receive()

    async def raising(session, context, parameters):
        raise ZeroDivisionError

    hook = aiohttp.TraceConfig()
    hook.on_connection_reuseconn.append(raising)
    for traces in ([], [hook]):
        async with SessionManager(trace_configs=traces) as manager:
            for script in (answering(), slow_body):
                async with Server(script) as server:
                    options = {"session_manager": manager, "retry": NEVER, "attempt_timeout": 0.1}
                    async with client_of(server, **options) as client:
                        for _ in range(2):
                            with contextlib.suppress(SinchError, ZeroDivisionError):
                                await client.update_message_metadata(ID, "x")
    constructed = {
        "ClientRequest.__init__",
        "HttpResponseParser.__init__",
        "TCPConnector.__del__",
        "http.HttpProcessingError",
    }
    # Of a connection that is over before it was used: test_fast_route has that.
    rare = {"ResponseHandler.close"}
    used -= {f"ResponseHandler.{name}" for name in dir(asyncio.Protocol)}
    assert used - DOCUMENTED - LISTED == set()
    fast = {part.name for part in FAST_ROUTE} if differences() else set()
    assert LISTED - used - constructed - fast - rare - {"TCPConnector.connect"} == set()
