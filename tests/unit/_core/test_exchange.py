"""One exchange: what it says of its connection, what it leaves behind, and where it refuses to
send.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl as tls
import sys
import traceback
import warnings

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver

from sinch_conv_async import (
    CallTimeoutError,
    ConversationClient,
    InvalidArgumentError,
    SessionManager,
    TransportError,
)
from sinch_conv_async._core.aiohttp_private import differences
from sinch_conv_async._core.exchange import ConnectionOptions, Connections, Exchange
from sinch_conv_async._core.tokens import BasicAuthorization
from sinch_conv_async._wire.arguments import Credentials
from sinch_conv_async._wire.failure import Failure
from sinch_conv_async._wire.requests import Request
from sinch_conv_async.sandbox import Sandbox
from tests.servers import AT_ONCE, ID, NEVER, Server, answering, client_of, served, updated


def client_elsewhere(origin: str, manager: SessionManager, **options) -> ConversationClient:
    """A client with Basic credentials of an origin where no server of these tests answers."""
    return ConversationClient(
        **{
            "project_id": "p",
            "key_id": "k",
            "key_secret": "s",
            "auth": "basic",
            "conversation_origin": origin,
            "session_manager": manager,
            "retry": NEVER,
            **options,
        }
    )


# Trace hooks

HOOKS = (
    "on_request_start",
    "on_connection_create_start",
    "on_dns_resolvehost_start",
    "on_dns_resolvehost_end",
    "on_connection_create_end",
    "on_connection_reuseconn",
    "on_request_headers_sent",
    "on_request_chunk_sent",
    "on_request_end",
)
# A pooled connection resolves no name.
HOOKS_ON_A_NEW_CONNECTION = {
    "on_connection_create_start",
    "on_dns_resolvehost_start",
    "on_dns_resolvehost_end",
    "on_connection_create_end",
}


# aiohttp calls what is raised while it writes a failure of the connection.
ENDS = {
    "cancelled": asyncio.CancelledError,
    "times out": CallTimeoutError,
    "raises": (ZeroDivisionError, TransportError),
}


class Hook:
    """A trace hook that does nothing until it is told to wait or to raise."""

    def __init__(self, name: str) -> None:
        self.entered = asyncio.Event()
        self.released = asyncio.Event()
        self.mode = "pass"
        self.config = aiohttp.TraceConfig()
        getattr(self.config, name).append(self)

    async def __call__(self, session, context, parameters) -> None:
        if self.mode == "pass":
            return
        self.entered.set()
        if self.mode == "raise":
            raise ZeroDivisionError("the user's own")
        await self.released.wait()


async def open_connections_settle(sandbox: Sandbox, number: int) -> None:
    """Waits until the sandbox has so many connections: it learns of a closed one a few passes of
    the loop later.
    """
    async with asyncio.timeout(2):
        while sandbox.open_connections != number:
            await asyncio.sleep(0)


@pytest.mark.parametrize("mode", ["cancelled", "times out", "raises"])
@pytest.mark.parametrize("name", HOOKS)
async def test_a_call_that_ends_in_a_trace_hook_leaves_no_connection_behind(name, mode):
    hook = Hook(name)
    async with (
        Sandbox(auto_create=True) as sandbox,
        SessionManager(trace_configs=[hook.config], resolver=ThreadedResolver()) as manager,
    ):
        origin = sandbox.origin.replace("127.0.0.1", "localhost")
        async with client_of(
            sandbox, auth="basic", session_manager=manager, retry=NEVER, conversation_origin=origin
        ) as client:
            for _ in range(1 if "dns" in name else 3):  # aiohttp remembers the addresses
                if name not in HOOKS_ON_A_NEW_CONNECTION:
                    hook.mode = "pass"
                    await client.update_message_metadata(ID, "x")
                hook.mode = "raise" if mode == "raises" else "wait"
                hook.entered.clear()
                hook.released.clear()
                timeout = 0.05 if mode == "times out" else None
                call = asyncio.create_task(client.update_message_metadata(ID, "x", timeout=timeout))
                await asyncio.wait_for(hook.entered.wait(), 5)
                if mode == "cancelled":
                    call.cancel()
                with pytest.raises(ENDS[mode]):
                    await call
                # aiohttp runs the hooks of a look-up in a task that outlives the call
                hook.released.set()
            assert manager.stats().in_flight == 0
            hook.mode = "pass"
            await client.update_message_metadata(ID, "x")
            await open_connections_settle(sandbox, 1)


async def test_trace_hooks_are_told_in_the_order_of_what_happens(sandbox_of_hooks):
    sandbox, told, client = sandbox_of_hooks
    await client.update_message_metadata(ID, "x")
    await client.update_message_metadata(ID, "x")
    assert told == [
        "on_request_start",
        "on_connection_create_start",
        "on_connection_create_end",
        "on_request_headers_sent",
        "on_request_chunk_sent",
        "on_request_end",
        "on_request_start",
        "on_connection_reuseconn",
        "on_request_headers_sent",
        "on_request_chunk_sent",
        "on_request_end",
    ]
    assert sandbox.open_connections == 1


@pytest.fixture
async def sandbox_of_hooks():
    told: list[str] = []
    config = aiohttp.TraceConfig()
    for name in HOOKS:

        async def tell(session, context, parameters, name=name):
            told.append(name)

        getattr(config, name).append(tell)
    async with (
        Sandbox(auto_create=True) as sandbox,
        SessionManager(trace_configs=[config]) as manager,
        client_of(sandbox, auth="basic", session_manager=manager) as client,
    ):
        yield sandbox, told, client


@pytest.mark.parametrize("name", ["on_request_start", "on_connection_create_end", "on_request_end"])
async def test_what_a_trace_hook_raises_says_where_it_was_raised(name):
    def inner():
        raise ZeroDivisionError("the user's own")

    async def failing_hook(session, context, parameters):
        inner()

    config = aiohttp.TraceConfig()
    getattr(config, name).append(failing_hook)
    async with (
        SessionManager(trace_configs=[config]) as manager,
        Server(answering()) as server,
        client_of(server, session_manager=manager) as client,
    ):
        with pytest.raises(ZeroDivisionError) as caught:
            await client.update_message_metadata(ID, "x")
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames][-2:] == ["failing_hook", "inner"]
    assert frames[-1].line == 'raise ZeroDivisionError("the user\'s own")'
    assert frames[-1].filename == __file__


# When a request leaves


@pytest.mark.parametrize("method", ["PATCH", "GET"])
@pytest.mark.parametrize("traces", [(), (aiohttp.TraceConfig(),)], ids=["direct", "traced"])
async def test_an_exchange_tells_once_that_its_request_is_written_before_the_answer_comes(
    method, traces
):
    written = []
    told = asyncio.Event()

    def tell() -> None:
        written.append(method)
        told.set()

    async def script(peer):
        while True:
            await peer.receive()
            await told.wait()
            await peer.send(updated())

    async with Server(script) as server:
        connections = Connections(ConnectionOptions(trace_configs=traces))
        request = Request(method, server.origin, "/", b"{}" if method == "PATCH" else b"")
        token = BasicAuthorization(Credentials("k", "s")).token
        for _ in range(2):
            told.clear()
            response = await connections.exchange(request, token, Exchange(tell), timeout=5)
            assert response.status == 200
        await connections.aclose()
    assert written == [method] * 2


@pytest.mark.parametrize("traces", [(), (aiohttp.TraceConfig(),)], ids=["direct", "traced"])
async def test_a_request_that_finds_no_connection_is_never_written(traces):
    written = []
    connections = Connections(ConnectionOptions(trace_configs=traces, resolver=NoAddress()))
    request = Request("PATCH", "https://api.invalid", "/", b"{}")
    token = BasicAuthorization(Credentials("k", "s")).token
    failure = await connections.exchange(
        request, token, Exchange(lambda: written.append(1)), timeout=5
    )
    assert isinstance(failure, Failure)
    await connections.aclose()
    assert written == []


@pytest.mark.parametrize("traces", [(), (aiohttp.TraceConfig(),)], ids=["direct", "traced"])
async def test_a_get_that_finds_its_connection_gone_is_not_sent_again_by_aiohttp(traces):
    """One exchange is one request: it is paced and counted as one."""

    async def script(peer):
        await peer.receive()
        await peer.send(updated())
        await peer.receive()

    async with Server(script) as server:
        connections = Connections(ConnectionOptions(trace_configs=traces))
        request = Request("GET", server.origin, "/", b"")
        token = BasicAuthorization(Credentials("k", "s")).token
        await connections.exchange(request, token, Exchange(), timeout=5)
        known = Exchange()
        failure = await connections.exchange(request, token, known, timeout=5)
        await connections.aclose()
    assert isinstance(failure, Failure)
    assert failure.stale_connection
    assert known.reused
    assert len(server.received) == 2


# Resolvers


class NoAddress(AbstractResolver):
    async def resolve(self, host, port=0, family=socket.AF_INET):
        return []

    async def close(self) -> None: ...


@pytest.mark.usefixtures("each_way")
async def test_a_resolver_that_knows_no_address_is_a_transport_error_and_tried_again():
    async with (
        SessionManager(resolver=NoAddress()) as manager,
        client_elsewhere("https://api.invalid", manager, retry=AT_ONCE) as client,
    ):
        with pytest.raises(
            TransportError, match=r"the host name api\.invalid could not be resolved"
        ) as caught:
            await client.update_message_metadata(ID, "x")
        assert (caught.value.sent, caught.value.attempts) == ("no", 5)


def test_a_resolver_that_is_made_for_each_event_loop_serves_a_client_on_two():
    made: list[ThreadedResolver] = []

    class Resolver(ThreadedResolver):
        closed = False

        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        async def close(self) -> None:
            self.closed = True

    manager = SessionManager(resolver=Resolver)

    async def update() -> None:
        async with Server(answering()) as server:
            origin = f"http://localhost:{server.port}"
            client = client_of(server, session_manager=manager, conversation_origin=origin)
            await client.update_message_metadata(ID, "x")

    async def update_and_close() -> None:
        await update()
        await manager.close()

    asyncio.run(update())
    asyncio.run(update_and_close())
    assert len(made) == 2
    assert all(resolver.closed for resolver in made)


async def test_what_a_function_makes_in_place_of_a_resolver_is_checked():
    async with (
        SessionManager(resolver=dict) as manager,
        client_elsewhere("https://api.invalid", manager) as client,
    ):
        with pytest.raises(InvalidArgumentError, match="resolver must"):
            await client.update_message_metadata(ID, "x")


# Connection errors


@pytest.mark.usefixtures("each_way")
async def test_a_connection_error_names_the_host():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with (
            SessionManager() as manager,
            client_elsewhere(f"https://127.0.0.1:{port}", manager) as client,
        ):
            with pytest.raises(TransportError, match=rf"no connection to 127\.0\.0\.1:{port}: "):
                await client.update_message_metadata(ID, "x")


@pytest.mark.usefixtures("each_way")
async def test_a_server_that_closes_is_named():
    async def script(peer):
        await peer.receive()

    async with served(script, retry=NEVER) as (_server, client):
        with pytest.raises(
            TransportError, match=r"the server 127\.0\.0\.1 closed the connection without an answer"
        ):
            await client.update_message_metadata(ID, "x")


# TLS


@pytest.mark.parametrize("turned_off", ["check_hostname", "verify_mode"])
def test_a_context_that_verifies_nothing_is_refused(turned_off):
    context = tls.create_default_context()
    context.check_hostname = False
    if turned_off == "verify_mode":
        context.verify_mode = tls.CERT_NONE
    with pytest.raises(InvalidArgumentError, match="verif"):
        SessionManager(ssl=context)


async def test_a_context_that_stopped_verifying_is_refused_at_the_next_connection():
    context = tls.create_default_context()
    async with SessionManager(ssl=context) as manager:
        context.check_hostname = False
        context.verify_mode = tls.CERT_NONE
        async with client_elsewhere("https://127.0.0.1:9", manager) as client:
            with pytest.raises(InvalidArgumentError, match="verif"):
                await client.update_message_metadata(ID, "x")


# Plain text


@pytest.mark.parametrize("origin", ["conversation_origin", "auth_origin"])
@pytest.mark.parametrize(
    "proxy", ["http://proxy.example:3128", "https://proxy.example", "http://10.0.0.1:3128"]
)
async def test_plain_text_to_this_machine_is_not_sent_to_a_proxy_elsewhere(origin, proxy):
    async with SessionManager(proxy=proxy) as manager:
        with pytest.raises(InvalidArgumentError, match=f"{origin} must be https"):
            client_elsewhere(
                "https://api.example", manager, auth="oauth2", **{origin: "http://127.0.0.1:8080"}
            )


@pytest.mark.parametrize(
    "proxy", ["http://127.0.0.1:3128", "http://localhost:3128", "http://[::1]:3128"]
)
async def test_a_proxy_on_this_machine_may_be_sent_plain_text(proxy):
    async with SessionManager(proxy=proxy) as manager:
        client_elsewhere("http://127.0.0.1:8080", manager)


# An event loop that is closed too early


@pytest.mark.skipif(bool(differences()), reason="aiohttp's own session raises as it is collected")
def test_a_loop_that_is_closed_under_a_call_raises_nothing_out_of_the_garbage_collector(
    monkeypatch,
):
    ignored: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: ignored.append(repr(unraisable)))

    async def leave_a_call_behind() -> tuple[object, ...]:
        manager = SessionManager()
        client = client_elsewhere(f"http://127.0.0.1:{silent.getsockname()[1]}", manager)
        call = asyncio.create_task(client.update_message_metadata(ID, "x"))
        peer, _ = await asyncio.get_running_loop().sock_accept(silent)
        await asyncio.get_running_loop().sock_recv(peer, 1)
        return manager, client, call, peer

    with warnings.catch_warnings(), socket.create_server(("127.0.0.1", 0)) as silent:
        warnings.simplefilter("ignore", ResourceWarning)
        silent.setblocking(False)
        loop = asyncio.new_event_loop()
        left = loop.run_until_complete(leave_a_call_behind())
        loop.close()
        del left
        gc.collect()
    assert ignored == []
