"""One call over real sockets: what is sent, what answers are taken for, what is tried again, and
how it all ends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import gzip
import json
import logging
import os
import re
import ssl
import subprocess
import sys
import threading
import time as clocks
import traceback
import warnings
import zlib
from email.utils import formatdate

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver

import sinch_conv_async
from sinch_conv_async import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    CallTimeoutError,
    ClientStateError,
    ConversationClient,
    ConversationMessage,
    InvalidArgumentError,
    MessagesSource,
    NotFoundError,
    RateLimitedError,
    ResponseFormatError,
    RetryPolicy,
    ServerError,
    SessionManager,
    TokenError,
    TransportError,
)
from sinch_conv_async._core.manager import token_requester
from sinch_conv_async._core.stats import Counters
from sinch_conv_async.sandbox import Sandbox
from tests.servers import (
    AT_ONCE,
    ID,
    NEVER,
    OTHER,
    Server,
    Time,
    answering,
    client_of,
    http,
    message,
    served,
    stats_of,
    updated,
)

MIB = 1024 * 1024
MAYBE_SENT_NEVER = RetryPolicy(base_delay=0.0, retry_maybe_sent=False)


async def hang(peer):
    await peer.receive()
    await peer.gone()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# What is sent


@pytest.mark.usefixtures("each_way")
async def test_the_headers_on_the_wire_are_these_and_no_others():
    async with served(answering()) as (server, client):
        await client.update_message_metadata(ID, 'a "b" ü \U0001f600')
        (request,) = server.received
    python = ".".join(map(str, sys.version_info[:2]))
    assert request.method == "PATCH"
    assert request.target == f"/v1/projects/project/messages/{ID}"
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "authorization": "Basic " + base64.b64encode(b"key:secret").decode(),
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"sinch-conv-async/{sinch_conv_async.__version__} (Python/{python}; aiohttp/{aiohttp.__version__})",
        "content-length": str(len(request.body)),
    }
    assert json.loads(request.body) == {"metadata": 'a "b" ü \U0001f600'}


async def test_the_token_request_is_the_client_credentials_grant():
    async def script(peer):
        await peer.receive()
        await peer.send(http(200, b'{"access_token": "token", "expires_in": 3600}'))
        await peer.gone()

    async with served(script, auth="oauth2") as (server, client):
        await client.authenticate()
        (request,) = server.received
    assert (request.method, request.target) == ("POST", "/oauth2/token")
    assert request.body == b"grant_type=client_credentials"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"key:secret").decode()


async def test_messages_source_is_sent_only_when_given(sandbox):
    async with client_of(sandbox) as client:
        await client.update_message_metadata(ID, "x")
        await client.update_message_metadata(
            ID, "x", messages_source=MessagesSource.DISPATCH_SOURCE
        )
        await client.update_message_metadata(ID, "x", messages_source="CONVERSATION_SOURCE")
    assert [request.query for request in sandbox.requests] == [
        "",
        "messages_source=DISPATCH_SOURCE",
        "messages_source=CONVERSATION_SOURCE",
    ]


async def test_basic_credentials_need_no_token(sandbox):
    async with client_of(sandbox, auth="basic") as client:
        await client.authenticate()
        await client.update_message_metadata(ID, "x")
    assert sandbox.token_requests == []


async def test_basic_credentials_that_are_refused_are_tried_once(sandbox):
    async with client_of(sandbox, auth="basic", key_secret="wrong") as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.update_message_metadata(ID, "x")
    assert caught.value.attempts == len(sandbox.requests) == 1


@pytest.mark.usefixtures("each_way")
async def test_no_cookie_is_kept(sandbox):
    async with served(answering(http(200, message(), "Set-Cookie: session=1; Path=/"))) as (
        server,
        client,
    ):
        await client.update_message_metadata(ID, "x")
        await client.update_message_metadata(ID, "y")
        assert [request.headers.get("cookie") for request in server.received] == [None, None]


@pytest.mark.usefixtures("each_way")
async def test_neither_netrc_nor_the_environments_proxies_are_used(monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login stranger password stranger\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with Server(hang) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.origin)
            monkeypatch.setenv(name.upper(), proxy.origin)
        monkeypatch.delenv("no_proxy", raising=False)
        async with served(answering()) as (server, client):
            await client.update_message_metadata(ID, "x")
            assert (
                "stranger"
                not in base64.b64decode(
                    server.received[0].headers["authorization"].split()[1]
                ).decode()
            )
        assert proxy.connections == 0


async def test_a_hostile_id_is_refused_before_anything_is_sent(sandbox):
    async with client_of(sandbox) as client:
        with pytest.raises(InvalidArgumentError) as caught:
            await client.update_message_metadata("../x", "x")
        assert caught.value.attempts == 0
        assert sandbox.open_connections == 0


async def test_hostile_metadata_is_refused_before_anything_is_sent(sandbox):
    async with client_of(sandbox) as client:
        with pytest.raises(InvalidArgumentError):
            await client.update_message_metadata(ID, "x" * 1025)
        assert sandbox.open_connections == 0


@pytest.mark.parametrize("metadata", ["", "x" * 1024, "\U0001f600" * 1024, '\u2028"\\\x00'])
async def test_metadata_arrives_as_it_was_given(sandbox, metadata):
    async with client_of(sandbox) as client:
        answer = await client.update_message_metadata(ID, metadata)
    assert sandbox.messages[ID].metadata == answer.metadata == metadata


# What answers are taken for


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (http(200), "JSON @"),
        (http(200, b"not JSON"), "JSON @"),
        (http(200, b"\xff\xfe"), "JSON @"),
        (http(200, b"[]"), "expected an object"),
        (http(200, b"null"), "expected an object"),
        (http(200, b'{"id": 7}'), r"\$\.id"),
        (http(200, b'{"channel_identity": {"channel": []}}'), r"\$\.channel_identity\.channel"),
        (http(200, b"[" * 100_000), "JSON @"),
        (http(200, gzip.compress(message(), mtime=0)[:20], "Content-Encoding: gzip"), "has no end"),
        (
            http(200, b"not gzip at all", "Content-Encoding: gzip"),
            "not compressed as its Content-Encoding says",
        ),
        (http(200, message(), "Content-Encoding: br"), "not one that can be undone"),
        (updated(OTHER), "about another message"),
        (http(200, b" " * (2 * MIB)), "longer than 1,048,576 bytes"),
        (
            http(200, gzip.compress(b" " * (64 * MIB)), "Content-Encoding: gzip"),
            "longer than 1,048,576 bytes",
        ),
        (
            http(200, zlib.compress(b" " * (64 * MIB)), "Content-Encoding: deflate"),
            "longer than 1,048,576 bytes",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "not 204"),
        (http(201, message()), "not 201"),
        (http(206, message()), "not 206"),
        (http(301, b"", "Location: /elsewhere"), "not 301"),
        (http(303, b"", "Location: /elsewhere"), "not 303"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "not 304"),
        (http(600), "not 600"),
    ],
)
async def test_an_answer_that_the_api_does_not_promise_is_said_to_be_one_and_not_tried_again(
    answer, problem
):
    async with served(answering(answer)) as (server, client):
        with pytest.raises(ResponseFormatError, match=problem) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.http_status == int(answer[9:12])
        assert caught.value.attempts == len(server.received) == 1
        assert (await client.update_message_metadata(ID, "y")).id == ID


@pytest.mark.usefixtures("each_way")
async def test_an_answer_of_just_the_allowed_length_is_read():
    body = message(text="x" * (MIB - len(message(text=""))))
    assert len(body) == MIB
    async with served(answering(http(200, body))) as (_server, client):
        assert (await client.update_message_metadata(ID, "x")).id == ID


@pytest.mark.usefixtures("each_way")
async def test_a_compressed_answer_is_read_though_none_was_asked_for():
    async with served(answering(http(200, gzip.compress(message()), "Content-Encoding: gzip"))) as (
        _server,
        client,
    ):
        assert (await client.update_message_metadata(ID, "x")).id == ID


@pytest.mark.usefixtures("each_way")
async def test_an_error_as_long_as_a_bomb_is_still_the_error():
    bomb = http(404, gzip.compress(b" " * (64 * MIB)), "Content-Encoding: gzip")
    async with served(answering(bomb)) as (_server, client):
        with pytest.raises(NotFoundError) as caught:
            await client.update_message_metadata(ID, "x")
        assert len(caught.value.body) <= 2048


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "answer",
    [
        http(200, message(), length=10_000),
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/9.9.9 200 OK\r\n\r\n",
        b"220 smtp.example ESMTP\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n{}",
    ],
)
async def test_an_answer_that_is_no_answer_is_tried_again_on_another_connection(answer):
    async with served(answering(answer, close=True)) as (server, client):
        assert (await client.update_message_metadata(ID, "x")).id == ID
        assert len(server.received) == 2
        assert server.connections == 2


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2x0 OK\r\n\r\n", http(200, b"{", length=9)])
async def test_what_is_no_answer_may_have_been_applied(answer):
    async with served(answering(answer, close=True), retry=NEVER) as (_server, client):
        with pytest.raises(TransportError) as caught:
            await client.update_message_metadata(ID, "x")
        assert type(caught.value) is TransportError
        assert caught.value.sent == "maybe"
        assert caught.value.attempts == 1


@pytest.mark.usefixtures("each_way")
async def test_the_connection_of_an_answer_about_another_message_is_not_used_again():
    async with served(answering(updated(), updated(OTHER))) as (server, client):
        assert (await client.update_message_metadata(ID, "x")).id == ID
        assert (await client.update_message_metadata(ID, "x")).id == ID
        assert server.connections == 2
        assert len(server.received) == 3
        assert (await client.update_message_metadata(OTHER, "y")).id == OTHER
        assert server.connections == 2


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("found", [None, "", ID.lower()])
async def test_an_id_may_be_missing_empty_or_in_another_case(found):
    body = json.dumps({} if found is None else {"id": found}).encode()
    async with served(answering(http(200, body))) as (server, client):
        assert (await client.update_message_metadata(ID, "x")).id == found
        assert len(server.received) == 1


@pytest.mark.usefixtures("each_way")
async def test_interim_answers_are_passed_over():
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with served(answering(early + updated())) as (server, client):
        assert (await client.update_message_metadata(ID, "x")).id == ID
        assert len(server.received) == 1


@pytest.mark.usefixtures("each_way")
async def test_an_upgrade_that_nobody_asked_for_is_no_answer():
    upgrade = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    )
    async with served(answering(upgrade), retry=NEVER) as (server, client):
        with pytest.raises((ResponseFormatError, TransportError)):
            await client.update_message_metadata(ID, "x")
        assert (await client.update_message_metadata(ID, "y")).id == ID
        assert server.connections == 2


@pytest.mark.usefixtures("each_way")
async def test_a_303_is_not_followed():
    async with (
        Server(answering()) as other,
        served(answering(http(303, b"", f"Location: {other.origin}/"))) as (_, client),
    ):
        with pytest.raises(ResponseFormatError, match="303"):
            await client.update_message_metadata(ID, "x")
        assert other.connections == 0


@pytest.mark.usefixtures("each_way")
async def test_a_307_to_another_port_carries_nothing_there():
    async with Server(answering()) as other:
        redirect = http(307, b"", f"Location: {other.origin}/v1/projects/project/messages/{ID}")
        async with served(answering(redirect)) as (server, client):
            with pytest.raises(ResponseFormatError, match="307"):
                await client.update_message_metadata(ID, "x")
            assert len(server.received) == 1
        assert other.connections == 0


@pytest.mark.usefixtures("each_way")
async def test_a_redirected_token_request_carries_the_secret_nowhere(sandbox):
    async with Server(answering()) as other, client_of(sandbox) as client:
        sandbox.redirect_next_token(307, other.origin)
        with pytest.raises(TokenError, match="307") as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.http_status == 307
        assert other.connections == 0


# tests/unit/_wire/test_responses.py has every status and every body.
@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (400, BadRequestError, "envelope"),
        (404, NotFoundError, b'{"error": []}'),
        (503, ServerError, "html"),
    ],
)
async def test_an_error_is_of_its_class_whatever_its_body(sandbox, status, kind, body):
    async with client_of(sandbox, auth="basic", retry=NEVER) as client:
        sandbox.fail_next(status, body=body, headers={"X-Request-Id": "quote me"}, retry_after=0)
        with pytest.raises(ApiError) as caught:
            await client.update_message_metadata(ID, "x")
    error = caught.value
    assert type(error) is kind
    assert error.http_status == status
    assert error.attempts == 1
    assert error.request_id == "quote me"
    assert error.retry_after == 0.0


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("reset", [False, True])
async def test_an_error_status_says_enough_though_its_body_breaks_off(reset):
    async def script(peer):
        await peer.receive()
        await peer.send(http(404, b"x" * 100_000, length=200_000))
        while reset and peer.writer.transport.get_write_buffer_size():
            await asyncio.sleep(0)
        if reset:
            peer.reset()

    async with served(script, retry=NEVER) as (_server, client):
        with pytest.raises(NotFoundError):
            await client.update_message_metadata(ID, "x")


# What is tried again


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_these_statuses_are_tried_again(sandbox, status):
    async with client_of(sandbox) as client:
        sandbox.fail_next(status, times=2)
        assert (await client.update_message_metadata(ID, "x")).metadata == "x"
        assert len(sandbox.requests) == 3
        assert stats_of(client).retries == 2


@pytest.mark.parametrize(
    "status", [400, 402, 403, 404, 405, 409, 410, 413, 422, 425, 451, 501, 505, 511]
)
async def test_these_statuses_are_final(sandbox, status):
    async with client_of(sandbox) as client:
        sandbox.fail_next(status)
        with pytest.raises(ApiError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.attempts == len(sandbox.requests) == 1


async def test_max_retries_bounds_the_failures_of_a_call(sandbox):
    async with client_of(sandbox, retry=RetryPolicy(max_retries=3, base_delay=0)) as client:
        sandbox.fail_next(503, times=100)
        with pytest.raises(ServerError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.attempts == len(sandbox.requests) == 4


async def test_max_retries_bounds_no_429s(sandbox):
    """A crowded project makes a call wait, and does not end it."""
    async with client_of(sandbox, retry=RetryPolicy(max_retries=1, base_delay=0)) as client:
        sandbox.fail_next(429, times=10)
        await client.update_message_metadata(ID, "x")
        assert len(sandbox.requests) == 11
        assert stats_of(client).throttled == 10


async def test_without_retries_a_429_ends_the_call(sandbox):
    async with client_of(sandbox, retry=NEVER) as client:
        sandbox.fail_next(429)
        with pytest.raises(RateLimitedError):
            await client.update_message_metadata(ID, "x")
        assert len(sandbox.requests) == 1


async def test_a_429_that_lasts_ends_the_call_with_its_timeout(sandbox):
    async with client_of(sandbox, timeout=0.3) as client:
        sandbox.fail_next(429, times=10_000)
        with pytest.raises(CallTimeoutError, match="last failure: 429") as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.attempts == len(sandbox.requests) > 1
        assert isinstance(caught.value.last, RateLimitedError)


async def test_a_project_in_which_nothing_gets_through_for_a_minute_ends_its_calls(
    sandbox, monkeypatch
):
    ahead = 0.0
    monkeypatch.setattr(
        "sinch_conv_async._core.binding.clock_of", lambda loop: lambda: clocks.monotonic() + ahead
    )

    def ten_seconds_later():
        nonlocal ahead
        ahead += 10

    async with client_of(sandbox, auth="basic", rate_limit=None) as client:
        sandbox.fail_next(429, times=10_000)
        sandbox.every(1, ten_seconds_later)
        with pytest.raises(RateLimitedError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.attempts == 7
        # An hour later that says nothing any more.
        ahead += 3600
        with pytest.raises(RateLimitedError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.attempts == 7


async def test_a_call_of_other_messages_is_not_slowed_by_ones_retries(sandbox):
    async with client_of(sandbox, retry=RetryPolicy(base_delay=1000)) as client:
        sandbox.fail_next(503, message_id=ID)
        failing = asyncio.create_task(client.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(1)
        await client.update_message_metadata(OTHER, "y")
        failing.cancel()
        await asyncio.wait([failing])


def slept(monkeypatch):
    """The delays before retries, which then do not take place."""
    delays = []

    async def sleep(calls, delay):
        delays.append(delay)

    monkeypatch.setattr("sinch_conv_async._core.lifetime.Lifetime.sleep", sleep)
    return delays


async def test_retry_after_in_seconds_is_kept_to(sandbox, monkeypatch):
    delays = slept(monkeypatch)
    async with client_of(sandbox) as client:
        sandbox.fail_next(503, retry_after=7)
        await client.update_message_metadata(ID, "x")
    assert delays == [7.0]


async def test_retry_after_as_a_date_is_held_against_the_answers_own_date(monkeypatch):
    delays = slept(monkeypatch)
    dates = [f"Date: {formatdate(0, usegmt=True)}", f"Retry-After: {formatdate(9, usegmt=True)}"]
    async with served(answering(http(503, b"", *dates))) as (_server, client):
        await client.update_message_metadata(ID, "x")
    assert delays == [9.0]


@pytest.mark.parametrize("nonsense", ["-1", "nan", "inf", "soon", "", "1e9"])
async def test_a_retry_after_that_makes_no_sense_is_none(sandbox, monkeypatch, nonsense):
    delays = slept(monkeypatch)
    async with client_of(sandbox) as client:
        sandbox.fail_next(503, retry_after=nonsense)
        await client.update_message_metadata(ID, "x")
    assert delays == [0.0]


async def test_an_impatient_client_does_not_end_the_calls_of_a_patient_one(sandbox):
    async with (
        SessionManager(max_connections=1) as manager,
        client_of(
            sandbox, session_manager=manager, retry=RetryPolicy(max_retry_after=0.01)
        ) as hasty,
        client_of(sandbox, session_manager=manager) as patient,
    ):
        await patient.update_message_metadata(ID, "first")
        sandbox.fail_next(429, retry_after=0.2)
        results = await asyncio.gather(
            hasty.update_message_metadata(ID, "x"),
            *(patient.update_message_metadata(ID, str(number)) for number in range(3)),
            return_exceptions=True,
        )
    assert isinstance(results[0], RateLimitedError)
    assert [message.metadata for message in results[1:]] == ["0", "1", "2"]


async def test_a_client_that_leaves_takes_its_low_limit_along(sandbox):
    async with (
        SessionManager() as manager,
        client_of(sandbox, session_manager=manager, rate_limit=800) as client,
    ):
        slow = client_of(sandbox, session_manager=manager, rate_limit=0.001)
        await client.update_message_metadata(ID, "x")
        waiting = asyncio.create_task(client.update_message_metadata(ID, "y"))
        while not manager.stats().waiting:
            await asyncio.sleep(0)
        await slow.close()
        await waiting


@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_after_that_is_too_long_ends_the_call(sandbox, status):
    async with client_of(sandbox) as client:
        sandbox.fail_next(status, retry_after=121)
        with pytest.raises(ApiError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.retry_after == 121
        assert len(sandbox.requests) == 1


async def test_delays_are_full_jitter_that_doubles(sandbox, monkeypatch):
    delays = slept(monkeypatch)
    async with client_of(
        sandbox, retry=RetryPolicy(max_retries=8, base_delay=1, max_delay=4)
    ) as client:
        sandbox.fail_next(503, times=8)
        await client.update_message_metadata(ID, "x")
    assert all(
        0 <= delay <= limit for delay, limit in zip(delays, (1, 2, 4, 4, 4, 4, 4, 4), strict=True)
    )
    assert len(set(delays)) == 8


async def test_a_used_up_budget_ends_the_retries(sandbox):
    async with client_of(
        sandbox, retry=RetryPolicy(max_retries=1000, base_delay=0), rate_limit=None
    ) as client:
        sandbox.fail_next(503, times=10_000)
        with pytest.raises(ServerError) as caught:
            await client.update_message_metadata(ID, "x")
        first = caught.value.attempts
        assert first == 101  # 10 a second over 10 s, and a fifth of one call
        with pytest.raises(ServerError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.attempts == 1


def spend_budget(client):
    """As many retries as are allowed are about to be made by other calls."""
    budget = client._sender.project.budget
    while budget.allows(clocks.monotonic()):
        budget.reserve()


async def test_a_429_costs_no_budget(sandbox):
    async with client_of(sandbox, rate_limit=None) as client:
        spend_budget(client)
        sandbox.fail_next(429)
        await client.update_message_metadata(ID, "x")
        sandbox.fail_next(503)
        with pytest.raises(ServerError):
            await client.update_message_metadata(ID, "x")


@pytest.mark.usefixtures("each_way")
async def test_a_stale_connection_is_retried_at_once_and_costs_no_budget(sandbox, monkeypatch):
    delays = slept(monkeypatch)
    async with client_of(sandbox, retry=RetryPolicy()) as client:
        await client.update_message_metadata(ID, "x")
        spend_budget(client)
        sandbox.drop_next(reset=True)
        await client.update_message_metadata(ID, "y")
        assert delays == []
        assert sandbox.peak_connections >= 1


@pytest.mark.usefixtures("each_way")
async def test_a_connection_that_turns_stale_after_a_retry_is_replaced_at_once_too(
    sandbox, monkeypatch
):
    delays = slept(monkeypatch)
    async with client_of(sandbox, auth="basic") as client:
        sandbox.fail_next(503)
        sandbox.drop_next(reset=True)
        await client.update_message_metadata(ID, "x")
        assert len(delays) == 1  # the 503's
        assert stats_of(client).attempts == 3


@pytest.mark.usefixtures("each_way")
async def test_a_fresh_connection_that_is_lost_is_no_stale_one(sandbox, monkeypatch):
    delays = slept(monkeypatch)
    async with client_of(sandbox, auth="basic") as client:
        sandbox.drop_next()
        await client.update_message_metadata(ID, "x")
        assert len(delays) == 1


FAILURES = {
    "refused": ("no", None),
    "closed": ("maybe", lambda sandbox: sandbox.drop_next()),
    "reset": ("maybe", lambda sandbox: sandbox.drop_next(reset=True)),
    "cut in the headers": ("maybe", lambda sandbox: sandbox.drop_next(when="mid_headers")),
    "cut in the body": ("maybe", lambda sandbox: sandbox.drop_next(when="mid_body")),
    "reset in the body": ("maybe", lambda sandbox: sandbox.drop_next(when="mid_body", reset=True)),
    "garbage": ("maybe", lambda sandbox: sandbox.answer_next(b"garbage\r\n\r\n", close=True)),
}


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(("sent", "script"), FAILURES.values(), ids=FAILURES)
async def test_a_failed_transport_says_whether_anything_was_sent(sandbox, sent, script):
    async with client_of(sandbox, auth="basic", retry=NEVER) as client:
        if script is None:
            await sandbox.close()
        else:
            script(sandbox)
        with pytest.raises(TransportError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.sent == sent
        assert caught.value.attempts == 1
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


@pytest.mark.usefixtures("each_way")
async def test_another_messages_id_on_a_fresh_connection_ends_the_call_at_once(sandbox):
    """No answer can have been shifted there: the service answers so."""
    async with client_of(sandbox, auth="basic") as client:
        sandbox.swap_next()
        with pytest.raises(ResponseFormatError) as caught:
            await client.update_message_metadata(ID, "x")
        assert (caught.value.http_status, caught.value.attempts) == (200, 1)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("retry_maybe_sent", [False, True])
async def test_another_messages_id_on_a_reused_connection_is_never_taken(sandbox, retry_maybe_sent):
    async with client_of(
        sandbox, auth="basic", retry=RetryPolicy(base_delay=0, retry_maybe_sent=retry_maybe_sent)
    ) as client:
        await client.update_message_metadata(ID, "first")
        sandbox.swap_next()
        if retry_maybe_sent:
            assert (await client.update_message_metadata(ID, "x")).metadata == "x"
            return
        with pytest.raises(TransportError) as caught:
            await client.update_message_metadata(ID, "x")
        assert (caught.value.sent, caught.value.attempts) == ("maybe", 1)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(("sent", "script"), FAILURES.values(), ids=FAILURES)
async def test_what_may_have_been_sent_is_not_repeated_where_that_matters(sandbox, sent, script):
    async with client_of(sandbox, auth="basic", retry=MAYBE_SENT_NEVER) as client:
        if script is None:
            await sandbox.close()
        else:
            script(sandbox)
        with pytest.raises(TransportError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.attempts == (5 if sent == "no" else 1)


@pytest.mark.parametrize(
    ("status", "attempts"), [(408, 2), (429, 2), (500, 1), (502, 1), (503, 1), (504, 1)]
)
async def test_a_status_after_which_nothing_was_applied_may_be_repeated_all_the_same(
    sandbox, status, attempts
):
    async with client_of(sandbox, retry=MAYBE_SENT_NEVER) as client:
        sandbox.fail_next(status)
        with contextlib.suppress(ApiError):
            await client.update_message_metadata(ID, "x")
        assert len(sandbox.requests) == attempts


async def test_sent_is_maybe_when_any_attempt_got_that_far(sandbox):
    async with client_of(
        sandbox, auth="basic", retry=RetryPolicy(max_retries=1, base_delay=0)
    ) as client:

        async def then_down():
            await sandbox.wait_for_requests(1)
            await sandbox.close()

        sandbox.hold()
        down = asyncio.create_task(then_down())
        with pytest.raises(TransportError) as caught:
            await client.update_message_metadata(ID, "x")
        await down
        assert "no connection" in str(caught.value)
        assert caught.value.attempts == 2
        assert caught.value.sent == "maybe"


# 401


@pytest.mark.parametrize("how", ["expire_tokens", "revoke_tokens"])
async def test_a_401_costs_one_token_request_and_one_replay(sandbox, how):
    async with client_of(sandbox) as client:
        await client.update_message_metadata(ID, "x")
        getattr(sandbox, how)()
        await client.update_message_metadata(ID, "y")
        assert [request.status for request in sandbox.requests] == [200, 401, 200]
        assert len(sandbox.token_requests) == 2
        assert stats_of(client).retries == 1


@pytest.mark.parametrize(
    "challenge", [None, {"WWW-Authenticate": "Bearer"}, {"WWW-Authenticate": 'Basic realm="x"'}]
)
async def test_a_401_is_replayed_whatever_www_authenticate_says(sandbox, challenge):
    async with client_of(sandbox, retry=NEVER) as client:
        sandbox.fail_next(401, body=b"{}", headers=challenge)
        await client.update_message_metadata(ID, "x")
        assert len(sandbox.requests) == len(sandbox.token_requests) == 2


@pytest.mark.parametrize("form", ["expired", "revoked"])
async def test_a_second_401_is_final(sandbox, form):
    async with client_of(sandbox) as client:
        sandbox.refuse_tokens(form)
        with pytest.raises(AuthenticationError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.attempts == len(sandbox.requests) == 2
        assert len(sandbox.token_requests) == 2


async def test_a_service_that_answers_401_for_ever_costs_no_token_request_a_call(sandbox):
    async with client_of(sandbox) as client:
        sandbox.refuse_tokens()
        for _ in range(50):
            with pytest.raises(AuthenticationError):
                await client.update_message_metadata(ID, "x")
        assert len(sandbox.token_requests) == 2
        assert len(sandbox.requests) == 51


async def test_a_project_that_answers_401_for_ever_costs_no_other_project_of_the_key_its_token(
    sandbox,
):
    options = sandbox.client_options()
    sandbox.add_project("refusing", key_id=options["key_id"], key_secret=options["key_secret"])
    sandbox.add_message(OTHER)
    sandbox.fail_next(401, times=100, message_id=OTHER)
    async with (
        SessionManager() as manager,
        client_of(sandbox, session_manager=manager) as accepting,
        client_of(sandbox, session_manager=manager, project_id="refusing") as refusing,
    ):
        for _ in range(20):
            await accepting.update_message_metadata(ID, "x")
            with pytest.raises(AuthenticationError):
                await refusing.update_message_metadata(OTHER, "x")
        assert len(sandbox.token_requests) == 2


async def test_many_calls_refused_at_once_cost_one_token_request(sandbox):
    async with client_of(sandbox, rate_limit=None) as client:
        await client.update_message_metadata(ID, "x")
        sandbox.expire_tokens()
        await asyncio.gather(*(client.update_message_metadata(ID, "y") for _ in range(200)))
        assert len(sandbox.token_requests) == 2


async def test_a_token_that_expires_while_its_call_waits_for_its_turn_is_not_used(
    sandbox, monkeypatch
):
    time = Time()
    manager = SessionManager(max_connections=1)
    monkeypatch.setattr("sinch_conv_async._core.binding.clock_of", lambda loop: time.clock)
    async with manager, client_of(sandbox, session_manager=manager, rate_limit=None) as client:
        await client.authenticate()
        async with sandbox.holding():
            first = asyncio.create_task(client.update_message_metadata(ID, "x"))
            await sandbox.wait_for_requests(1)
            second = asyncio.create_task(client.update_message_metadata(ID, "y"))
            await settle()
            assert manager.stats().waiting == 1
            time.now += 3601
        await asyncio.gather(first, second)
        assert [request.status for request in sandbox.requests] == [200, 200]
        assert len(sandbox.token_requests) == 2


async def test_a_cold_burst_of_1000_calls_makes_one_token_request(sandbox):
    async with client_of(sandbox, rate_limit=None) as client:
        burst = asyncio.gather(*(client.update_message_metadata(ID, "x") for _ in range(1000)))
        await burst
        assert len(sandbox.token_requests) == 1
        assert len(sandbox.requests) == 1000
        assert stats_of(client) == attempts_of(1000)


def attempts_of(number: int):
    class Expected:
        def __eq__(self, stats: object) -> bool:
            return (stats.calls, stats.attempts, stats.retries, stats.in_flight, stats.waiting) == (
                number,
                number,
                0,
                0,
                0,
            )

    return Expected()


async def test_cancelling_the_call_that_started_the_token_request_harms_no_other(sandbox):
    async with client_of(sandbox, rate_limit=None) as client:
        sandbox.hold_tokens()
        calls = [asyncio.create_task(client.update_message_metadata(ID, "x")) for _ in range(100)]
        await sandbox.wait_for_token_requests(1)
        calls[0].cancel()
        await asyncio.wait([calls[0]])
        sandbox.release_tokens()
        await asyncio.gather(*calls[1:])
        assert calls[0].cancelled()
        assert len(sandbox.token_requests) == 1
        assert len(sandbox.requests) == 99


async def test_invalid_client_fails_a_thousand_calls_with_one_request(sandbox):
    async with client_of(sandbox, key_secret="wrong") as client:
        for _ in range(10):
            errors = await asyncio.gather(
                *(client.update_message_metadata(ID, "x") for _ in range(100)),
                return_exceptions=True,
            )
            assert {error.error for error in errors} == {"invalid_client"}
        assert len(sandbox.token_requests) == 1
        assert sandbox.requests == []


async def test_a_token_endpoint_that_cannot_be_reached_is_a_token_error(sandbox, monkeypatch):
    monkeypatch.setattr("sinch_conv_async._core.tokens.FETCH_FOR", 0.0)
    async with Server(hang) as nobody:
        pass
    async with client_of(sandbox, auth_origin=nobody.origin) as client:
        with pytest.raises(TokenError, match="no connection") as caught:
            await client.authenticate()
        assert caught.value.http_status is None


# Timeouts


@pytest.mark.usefixtures("each_way")
async def test_attempt_timeout_bounds_one_exchange_and_is_tried_again():
    hung = asyncio.Event()

    async def script(peer):
        received = await peer.receive()
        if not hung.is_set():
            hung.set()
            await peer.gone()
        await peer.send(updated(received.message_id))
        await peer.gone()

    async with served(script, attempt_timeout=0.3) as (server, client):
        await client.update_message_metadata(ID, "x")
        assert server.connections == 2


@pytest.mark.usefixtures("each_way")
async def test_attempt_timeout_while_waiting_for_the_answer():
    async with served(
        hang, attempt_timeout=0.2, retry=RetryPolicy(max_retries=1, base_delay=0)
    ) as (
        server,
        client,
    ):
        with pytest.raises(
            CallTimeoutError, match=r"attempt_timeout of 0\.2 s passed while waiting"
        ) as caught:
            await client.update_message_metadata(ID, "x")
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert (error.sent, error.attempts) == ("maybe", 2)
        assert isinstance(error.last, CallTimeoutError)
        assert len(server.received) == 2


async def test_the_errors_before_the_last_two_are_let_go():
    async with served(
        hang, attempt_timeout=0.02, retry=RetryPolicy(max_retries=2, base_delay=0)
    ) as (
        _server,
        client,
    ):
        with pytest.raises(CallTimeoutError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.last.last is None


class SlowResolver(AbstractResolver):
    """A resolver that never answers."""

    def __init__(self):
        self.asked = 0
        self.closed = False

    async def resolve(self, host, port=0, family=0):
        self.asked += 1
        await asyncio.get_running_loop().create_future()

    async def close(self):
        self.closed = True


class LoopbackResolver(SlowResolver):
    async def resolve(self, host, port=0, family=0):
        self.asked += 1
        return [
            {
                "hostname": host,
                "host": "127.0.0.1",
                "port": port,
                "family": 2,
                "proto": 0,
                "flags": 0,
            }
        ]


@pytest.mark.usefixtures("each_way")
async def test_attempt_timeout_while_connecting():
    async with (
        SessionManager(resolver=SlowResolver()) as manager,
        ConversationClient(
            project_id="p",
            key_id="k",
            key_secret="s",
            auth="basic",
            conversation_origin="https://api.invalid",
            session_manager=manager,
            attempt_timeout=0.02,
            retry=NEVER,
        ) as client,
    ):
        with pytest.raises(CallTimeoutError, match="while connecting") as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.sent == "no"
        assert caught.value.last is None


@pytest.mark.usefixtures("each_way")
async def test_attempt_timeout_in_the_body():
    async def script(peer):
        await peer.receive()
        await peer.send(http(200, b"{", length=100))
        await peer.gone()

    async with served(script, attempt_timeout=0.3, retry=NEVER) as (_server, client):
        with pytest.raises(CallTimeoutError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.sent == "maybe"


@pytest.mark.usefixtures("each_way")
async def test_timeout_bounds_the_whole_call_and_keeps_the_last_error(sandbox):
    async with client_of(sandbox, auth="basic", timeout=1) as client:
        sandbox.fail_next(503)
        sandbox.delay_next(60)
        with pytest.raises(CallTimeoutError, match=r"timeout of 1 s passed") as caught:
            await client.update_message_metadata(ID, "x")
        assert isinstance(caught.value.last, ServerError)
        assert caught.value.attempts == 2
        assert caught.value.sent == "maybe"
        assert caught.value.__context__ is None


@pytest.mark.usefixtures("each_way")
async def test_timeout_before_anything_was_sent(sandbox):
    async with client_of(sandbox) as client:
        sandbox.hold_tokens()
        with pytest.raises(CallTimeoutError) as caught:
            await client.update_message_metadata(ID, "x", timeout=0.02)
        assert (caught.value.sent, caught.value.attempts, caught.value.last) == ("no", 0, None)
        sandbox.release_tokens()


async def test_timeout_of_a_first_attempt_has_no_error_before_it():
    async def script(peer):
        await peer.receive()
        await peer.gone()

    async with served(script) as (_server, client):
        with pytest.raises(CallTimeoutError, match=r"timeout of 0.05 s passed") as caught:
            await client.update_message_metadata(ID, "x", timeout=0.05)
        assert caught.value.last is None


async def test_a_call_whose_turn_cannot_come_in_time_fails_at_once(sandbox):
    async with client_of(sandbox, auth="basic", rate_limit=0.001) as client:
        await client.update_message_metadata(ID, "x")
        with pytest.raises(CallTimeoutError, match="turn cannot come") as caught:
            await client.update_message_metadata(ID, "y", timeout=100)
        assert (caught.value.sent, caught.value.attempts) == ("no", 0)


async def test_a_retry_whose_turn_cannot_come_in_time_says_what_came_before(sandbox):
    async with client_of(sandbox, auth="basic", rate_limit=0.001) as client:
        sandbox.fail_next(503)
        with pytest.raises(CallTimeoutError, match="turn cannot come") as caught:
            await client.update_message_metadata(ID, "y", timeout=100)
        assert (caught.value.sent, caught.value.attempts) == ("maybe", 1)
        assert isinstance(caught.value.last, ServerError)


async def test_a_retry_that_would_come_after_the_timeout_is_not_waited_for(sandbox):
    async with client_of(sandbox, auth="basic") as client:
        sandbox.fail_next(503, retry_after=60)
        with pytest.raises(CallTimeoutError, match="no other attempt can be made") as caught:
            await client.update_message_metadata(ID, "y", timeout=50)
        assert (caught.value.sent, caught.value.attempts) == ("maybe", 1)
        assert isinstance(caught.value.last, ServerError)


async def test_a_call_that_waits_fails_as_soon_as_a_pause_outlasts_its_timeout():
    answered = asyncio.Event()

    async def script(peer):
        await peer.receive()
        await answered.wait()
        await peer.send(http(429, b"{}", "Retry-After: 60"))
        await peer.gone()

    async with (
        Server(script) as server,
        SessionManager() as manager,
        client_of(server, session_manager=manager, rate_limit=0.1) as client,
    ):
        first = asyncio.create_task(client.update_message_metadata(ID, "x", timeout=50))
        await server.wait_for(1)
        second = asyncio.create_task(client.update_message_metadata(OTHER, "y", timeout=50))
        await asyncio.sleep(0)
        assert manager.stats().waiting == 1
        answered.set()
        for task, attempts in ((first, 1), (second, 0)):
            with pytest.raises(CallTimeoutError, match="turn cannot come") as caught:
                await task
            assert caught.value.attempts == attempts
        assert manager.stats().waiting == 0


async def test_the_slot_of_a_call_that_was_sent_away_is_given_to_nobody_in_the_pause():
    async with (
        Server(answering(http(429, b"{}", "Retry-After: 60"))) as server,
        SessionManager(max_connections=1) as manager,
        client_of(server, session_manager=manager, rate_limit=None) as client,
    ):
        tasks = [
            asyncio.create_task(client.update_message_metadata(ID, "x", timeout=50))
            for _ in range(3)
        ]
        for task in tasks:
            with pytest.raises(CallTimeoutError, match="turn cannot come"):
                await task
        assert len(server.received) == 1


async def test_a_timeout_that_is_not_needed_changes_nothing(sandbox):
    async with client_of(sandbox, timeout=60) as client:
        assert (await client.update_message_metadata(ID, "x")).id == ID


# What people lend a session for


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def server_context(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost", "api.example").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_private_ca_is_trusted_where_it_is_given(server_context, client_context):
    async with (
        Sandbox(auto_create=True, ssl=server_context) as sandbox,
        SessionManager(ssl=client_context) as manager,
        client_of(sandbox, session_manager=manager) as client,
    ):
        for number in range(3):
            await client.update_message_metadata(ID, str(number))
        assert sandbox.open_connections == 1


async def test_an_unsolicited_answer_under_tls_is_not_taken_either(server_context, client_context):
    async with (
        Sandbox(auto_create=True, ssl=server_context) as sandbox,
        SessionManager(ssl=client_context) as manager,
        client_of(sandbox, session_manager=manager, retry=NEVER) as client,
    ):
        for number in range(1, 4):
            sandbox.unsolicited_next(status=404, after=0.001)
            await client.update_message_metadata(ID, "x")
            await sandbox.wait_for_unsolicited(number)
            assert (
                await client.update_message_metadata(ID, f"y {number}")
            ).metadata == f"y {number}"


async def test_an_unknown_certificate_is_refused_and_not_tried_again(server_context):
    async with (
        Sandbox(auto_create=True, ssl=server_context) as sandbox,
        client_of(sandbox, auth="basic") as client,
    ):
        with pytest.raises(TransportError, match="certificate was not accepted") as caught:
            await client.update_message_metadata(ID, "x")
        assert (caught.value.sent, caught.value.attempts) == ("no", 1)
        assert sandbox.requests == []


async def test_another_fingerprint_is_refused(server_context):
    async with (
        Sandbox(auto_create=True, ssl=server_context) as sandbox,
        SessionManager(ssl=aiohttp.Fingerprint(b"\x00" * 32)) as manager,
        client_of(sandbox, auth="basic", session_manager=manager) as client,
    ):
        with pytest.raises(TransportError, match="certificate was not accepted") as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.attempts == 1


async def test_tls_to_a_server_that_speaks_none(client_context):
    async def plainly(peer):
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with Server(plainly) as server, SessionManager(ssl=client_context) as manager:
        origin = server.origin.replace("http:", "https:")
        client = client_of(server, session_manager=manager, conversation_origin=origin, retry=NEVER)
        with pytest.raises(TransportError) as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.sent == "no"


async def test_a_resolver_is_asked_and_left_open():
    resolver = LoopbackResolver()
    async with Server(answering()) as server, SessionManager(resolver=resolver) as manager:
        origin = f"http://localhost:{server.port}"
        await client_of(
            server, session_manager=manager, conversation_origin=origin
        ).update_message_metadata(ID, "x")
        assert server.received[0].headers["host"] == f"localhost:{server.port}"
    assert resolver.asked == 1
    assert not resolver.closed


class FailingResolver(SlowResolver):
    async def resolve(self, host, port=0, family=0):
        raise OSError(None, "no such host")


async def test_a_name_that_cannot_be_resolved_was_not_sent_to():
    async with (
        SessionManager(resolver=FailingResolver()) as manager,
        ConversationClient(
            project_id="p",
            key_id="k",
            key_secret="s",
            auth="basic",
            conversation_region="us",
            session_manager=manager,
            retry=AT_ONCE,
        ) as client,
    ):
        with pytest.raises(
            TransportError,
            match=r"the host name us\.conversation\.api\.sinch\.com could not be resolved",
        ) as caught:
            await client.update_message_metadata(ID, "x")
        assert (caught.value.sent, caught.value.attempts) == ("no", 5)


async def test_trace_configs_are_told(sandbox):
    seen = []
    trace = aiohttp.TraceConfig()

    async def started(session, context, parameters):
        seen.append(parameters.method)

    trace.on_request_start.append(started)
    async with (
        SessionManager(trace_configs=[trace]) as manager,
        client_of(sandbox, session_manager=manager) as client,
    ):
        await client.update_message_metadata(ID, "x")
    assert seen == ["POST", "PATCH"]


@pytest.mark.parametrize(
    "hook", ["on_request_start", "on_connection_create_start", "on_request_end"]
)
async def test_what_a_trace_hook_raises_reaches_the_caller_and_leaves_nothing(sandbox, hook):
    trace = aiohttp.TraceConfig()

    async def raising(session, context, parameters):
        raise ZeroDivisionError("the user's own")

    getattr(trace, hook).append(raising)
    async with (
        SessionManager(trace_configs=[trace]) as manager,
        client_of(sandbox, session_manager=manager, auth="basic") as client,
    ):
        with pytest.raises(ZeroDivisionError):
            await client.update_message_metadata(ID, "x")
        assert manager.stats().in_flight == 0


async def test_what_a_trace_hook_raises_in_a_token_request_is_a_token_error(sandbox, caplog):
    trace = aiohttp.TraceConfig()

    async def raising(session, context, parameters):
        raise ZeroDivisionError("the user's own")

    trace.on_request_start.append(raising)
    async with (
        SessionManager(trace_configs=[trace]) as manager,
        client_of(sandbox, session_manager=manager) as client,
    ):
        with pytest.raises(TokenError, match="ZeroDivisionError"):
            await client.update_message_metadata(ID, "x")
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def proxy(password: str = "proxy-password"):
    """A script of an HTTP proxy that asks for a password: CONNECT tunnels, all else is answered in
    the server's place.
    """
    wanted = "Basic " + base64.b64encode(f"user:{password}".encode()).decode()

    async def script(peer):
        while True:
            received = await peer.receive()
            if received.headers.get("proxy-authorization") != wanted:
                await peer.send(http(407, b"", 'Proxy-Authenticate: Basic realm="x"'))
            elif received.method == "CONNECT":
                host, _, port = received.target.rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await tunnel(peer, reader, writer)
                return
            else:
                await peer.send(updated(received.message_id))

    return script


async def tunnel(peer, reader, writer):
    async def pump(source, target):
        while data := await source.read(65536):
            target.write(data)
        target.close()

    try:
        await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer))
    finally:
        writer.transport.abort()


def through(origin: str, userinfo: str = "user:proxy-password") -> str:
    return origin.replace("//", f"//{userinfo}@")


async def test_a_plain_proxy_gets_its_password_and_the_whole_url():
    async with (
        Server(proxy()) as forwarder,
        SessionManager(proxy=through(forwarder.origin)) as manager,
    ):
        async with client_of(
            forwarder, session_manager=manager, conversation_origin="http://127.0.0.1:9"
        ) as client:
            await client.update_message_metadata(ID, "x")
            await client.update_message_metadata(ID, "y")
        assert (
            forwarder.received[0].target == f"http://127.0.0.1:9/v1/projects/project/messages/{ID}"
        )
        assert forwarder.connections == 1


async def test_an_https_call_goes_through_the_proxys_tunnel(server_context, client_context):
    async with (
        Sandbox(auto_create=True, ssl=server_context, keep_headers=True) as sandbox,
        Server(proxy()) as forwarder,
        SessionManager(proxy=through(forwarder.origin), ssl=client_context) as manager,
        client_of(sandbox, session_manager=manager) as client,
    ):
        await client.update_message_metadata(ID, "x")
        await client.update_message_metadata(ID, "y")
        # One tunnel for the token, which the calls then use too: sandbox has one origin.
        assert [request.method for request in forwarder.received] == ["CONNECT"]
        assert "authorization" not in forwarder.received[0].headers
        assert "proxy-authorization" not in sandbox.requests[0].headers
        assert sandbox.open_connections == 1


@pytest.mark.parametrize(("status", "attempts"), [(407, 1), (403, 1), (502, 5), (503, 5)])
async def test_a_proxy_that_refuses_has_sent_nothing_on(client_context, status, attempts):
    async def script(peer):
        await peer.receive()
        await peer.send(http(status))

    async with (
        Server(script) as forwarder,
        SessionManager(proxy=through(forwarder.origin), ssl=client_context) as manager,
        client_of(
            forwarder, session_manager=manager, conversation_origin="https://127.0.0.1:9"
        ) as client,
    ):
        with pytest.raises(TransportError, match=f"the proxy answered {status}") as caught:
            await client.update_message_metadata(ID, "x")
        assert (caught.value.sent, caught.value.attempts) == ("no", attempts)


async def test_a_proxy_that_is_not_there():
    async with Server(hang) as nobody:
        pass
    async with (
        SessionManager(proxy=nobody.origin) as manager,
        client_of(
            nobody, session_manager=manager, conversation_origin="https://127.0.0.1:9"
        ) as client,
    ):
        with pytest.raises(TransportError, match="no connection") as caught:
            await client.update_message_metadata(ID, "x")
        assert caught.value.sent == "no"


# Slots


async def test_no_more_than_max_connections_are_under_way(sandbox):
    async with (
        SessionManager(max_connections=3) as manager,
        client_of(sandbox, session_manager=manager, auth="basic", rate_limit=None) as client,
    ):
        async with sandbox.holding():
            calls = [
                asyncio.create_task(client.update_message_metadata(ID, "x")) for _ in range(10)
            ]
            await sandbox.wait_for_requests(3)
            await settle()
            assert (manager.stats().in_flight, manager.stats().waiting) == (3, 7)
        await asyncio.gather(*calls)
        assert sandbox.peak_in_flight == 3
        assert sandbox.peak_connections == 3


# Lifetime


async def test_closing_fails_what_waits_and_lets_finish_what_is_under_way(sandbox):
    async with SessionManager(max_connections=1) as manager:
        client = client_of(sandbox, session_manager=manager, auth="basic")
        sandbox.hold()
        under_way = asyncio.create_task(client.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(1)
        waiting = [asyncio.create_task(client.update_message_metadata(ID, "y")) for _ in range(5)]
        await settle()
        closing = asyncio.create_task(manager.close())
        for call in waiting:
            with pytest.raises(ClientStateError):
                await call
        assert not closing.done()
        assert client.closed
        with pytest.raises(ClientStateError):
            await client.update_message_metadata(ID, "z")
        sandbox.release()
        await closing
        assert (await under_way).metadata == "x"
        assert len(sandbox.requests) == 1


async def test_closing_ends_the_wait_for_a_token(sandbox):
    client = client_of(sandbox)
    sandbox.hold_tokens()
    calls = [asyncio.create_task(client.update_message_metadata(ID, "x")) for _ in range(5)]
    calls.append(asyncio.create_task(client.authenticate()))
    await sandbox.wait_for_token_requests(1)
    await client.close()
    for call in calls:
        with pytest.raises(ClientStateError):
            await call
    sandbox.release_tokens()


async def test_closing_ends_the_wait_before_a_retry(sandbox):
    async with client_of(sandbox, retry=RetryPolicy(base_delay=1000, max_delay=1000)) as client:
        sandbox.fail_next(503)
        call = asyncio.create_task(client.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(1)
        while not client._sender.lifetime.waiting:
            await asyncio.sleep(0)
        await client.close()
        with pytest.raises(ClientStateError) as caught:
            await call
        assert caught.value.attempts == 1


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_nothing_is_tried_again_once_closing(sandbox, status):
    client = client_of(sandbox, retry=AT_ONCE)
    await client.authenticate()
    sandbox.hold()
    sandbox.fail_next(status, times=9)
    call = asyncio.create_task(client.update_message_metadata(ID, "x"))
    await sandbox.wait_for_requests(1)
    closing = asyncio.create_task(client.close())
    await settle()
    sandbox.release()
    await closing
    with pytest.raises(ApiError) as caught:
        await call
    assert caught.value.http_status == status
    assert len(sandbox.requests) == 1


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("turns", range(12))
async def test_closing_at_any_turn_of_a_cold_call_leaves_nothing(sandbox, turns):
    client = client_of(sandbox)
    call = asyncio.create_task(client.update_message_metadata(ID, "x"))
    for _ in range(turns):
        await asyncio.sleep(0)
    await client.close()
    # By then a faster event loop has the answer.
    with pytest.raises(ClientStateError) if turns < 10 else contextlib.suppress(ClientStateError):
        await call


async def test_closing_in_the_tick_of_the_grant_gives_the_turn_back(sandbox):
    async with SessionManager(max_connections=1) as manager:
        # So fast that the second's turn has come, however soon the first is answered.
        options = {"session_manager": manager, "auth": "basic", "rate_limit": 100_000}
        other, client = client_of(sandbox, **options), client_of(sandbox, **options)
        sandbox.hold()

        async def call_and_close():
            await other.update_message_metadata(ID, "x")  # gives its slot to the second
            assert manager.stats().waiting == 0
            client._sender.lifetime.fail_waiting()

        first = asyncio.create_task(call_and_close())
        await sandbox.wait_for_requests(1)
        second = asyncio.create_task(client.update_message_metadata(ID, "y"))
        await settle()
        sandbox.release()
        await first
        with pytest.raises(ClientStateError):
            await second
        await other.update_message_metadata(ID, "z")
        assert len(sandbox.requests) == 2


async def test_a_client_on_a_shared_manager_closes_its_own_calls_only(sandbox):
    async with SessionManager(max_connections=1) as manager:
        one, two = (client_of(sandbox, session_manager=manager, auth="basic") for _ in range(2))
        sandbox.hold()
        under_way = asyncio.create_task(two.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(1)
        mine = asyncio.create_task(one.update_message_metadata(ID, "y"))
        others = asyncio.create_task(two.update_message_metadata(ID, "z"))
        await settle()
        await one.close()
        with pytest.raises(ClientStateError):
            await mine
        assert (one.closed, two.closed, manager.closed) == (True, False, False)
        sandbox.release()
        await asyncio.gather(under_way, others)


async def test_a_client_joined_to_a_closed_manager_is_closed(sandbox):
    manager = SessionManager()
    await manager.close()
    client = client_of(sandbox, session_manager=manager)
    assert client.closed
    for use in (client.authenticate, lambda: client.update_message_metadata(ID, "x")):
        with pytest.raises(ClientStateError):
            await use()
    await client.close()


async def test_a_client_joined_while_its_manager_closes_is_closed(sandbox):
    manager = SessionManager()
    client = client_of(sandbox, session_manager=manager, auth="basic")
    sandbox.hold()
    call = asyncio.create_task(client.update_message_metadata(ID, "x"))
    await sandbox.wait_for_requests(1)
    closing = asyncio.create_task(manager.close())
    await settle()
    with pytest.raises(ClientStateError):
        await client_of(sandbox, session_manager=manager).update_message_metadata(ID, "y")
    sandbox.release()
    await closing
    await call


async def test_a_client_closed_before_its_first_call_binds_nothing(sandbox):
    async with SessionManager() as manager:
        client = client_of(sandbox, session_manager=manager)
        await client.close()
        with pytest.raises(ClientStateError):
            await client.update_message_metadata(ID, "x")
        assert repr(manager).startswith("<SessionManager unused")


async def test_closing_twice_one_after_the_other_and_at_once(sandbox):
    client = client_of(sandbox)
    await client.update_message_metadata(ID, "x")
    sandbox.hold()
    call = asyncio.create_task(client.update_message_metadata(ID, "y"))
    await sandbox.wait_for_requests(2)
    closings = [asyncio.create_task(client.close()) for _ in range(3)]
    await settle()
    assert not any(closing.done() for closing in closings)
    sandbox.release()
    await asyncio.gather(call, *closings)
    await client.close()
    assert client.closed


async def test_closing_that_was_cancelled_can_be_done_again(sandbox):
    """As by a program that ends by cancelling all its tasks."""
    client = client_of(sandbox)
    async with sandbox.holding():
        call = asyncio.create_task(client.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(1)
        closing = asyncio.create_task(client.close())
        await settle()
        (inner,) = (
            task for task in asyncio.all_tasks() if task.get_name() == "sinch_conv_async closing"
        )
        inner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    await call
    await client.close()
    while sandbox.open_connections:
        await asyncio.sleep(0)


async def test_cancelling_whoever_closes_leaves_nothing_open(sandbox):
    client = client_of(sandbox)
    await client.update_message_metadata(ID, "x")
    sandbox.hold()
    call = asyncio.create_task(client.update_message_metadata(ID, "y"))
    await sandbox.wait_for_requests(2)
    closing = asyncio.create_task(client.close())
    await settle()
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    sandbox.release()
    await call
    while sandbox.open_connections:
        await asyncio.sleep(0)


async def test_the_manager_of_many_projects_forgets_those_out_of_use(sandbox, monkeypatch):
    time = Time()
    manager = SessionManager()
    monkeypatch.setattr("sinch_conv_async._core.binding.clock_of", lambda loop: time.clock)
    async with manager:
        for number in range(200):
            name = f"project-{number}"
            sandbox.add_project(name, key_id=f"key-{number}", key_secret="secret")
            options = {
                **sandbox.client_options(name),
                "session_manager": manager,
                "rate_limit": None,
            }
            async with ConversationClient(**options) as client:
                if number % 50 == 0:
                    await client.update_message_metadata(f"m{number}", "x")
            time.now += 3700
        assert len(manager.stats().projects) < 100
        stats = manager.stats()
        assert (stats.calls, stats.attempts, stats.token_requests) == (4, 4, 4)


def test_forgetting_needs_no_event_loop(monkeypatch):
    manager = SessionManager()

    async def use():
        async with Sandbox(auto_create=True) as sandbox:
            monkeypatch.setattr("sinch_conv_async._core.binding.clock_of", lambda loop: time.clock)
            await client_of(sandbox, session_manager=manager).update_message_metadata(ID, "x")

    time = Time()
    asyncio.run(use())
    time.now += 3500  # old enough to be renewed
    for number in range(200):
        ConversationClient(
            project_id=f"p{number}",
            key_id="k",
            key_secret="s",
            conversation_region="eu",
            session_manager=manager,
        )


async def test_stats_and_repr_say_what_state_it_is_in(sandbox):
    manager = SessionManager(max_connections=7)
    assert repr(manager) == (
        "<SessionManager unused: 0 of 7 in flight, 0 waiting, calls 0, attempts 0, retries 0, throttled 0, token requests 0>"
    )
    async with manager:
        client = client_of(sandbox, session_manager=manager)
        sandbox.fail_next(429)
        await client.update_message_metadata(ID, "x")
        stats = await asyncio.to_thread(manager.stats)
        assert (
            stats.calls,
            stats.attempts,
            stats.retries,
            stats.throttled,
            stats.token_requests,
        ) == (
            1,
            2,
            1,
            1,
            1,
        )
        (project,) = stats.projects
        assert (project.origin, project.project_id) == (sandbox.origin, "sandbox-project")
        assert (project.in_flight, project.waiting, project.throttled) == (0, 0, 1)
        assert 0 < project.pace < 800
        assert re.fullmatch(
            r"<SessionManager open: 0 of 7 in flight, 0 waiting, calls 1, attempts 2, retries 1, throttled 1, token requests 1; "
            r"pace sandbox-project \d+/s>",
            repr(manager),
        )
        for number in range(5):
            ConversationClient(
                project_id=f"p{number}",
                key_id="k",
                key_secret="s",
                conversation_region="eu",
                session_manager=manager,
            )
        assert repr(manager).endswith(" and 3 more>")
    assert repr(manager).startswith("<SessionManager closed")


async def test_a_log_record_tells_of_each_attempt(sandbox, caplog):
    caplog.set_level(logging.DEBUG, "sinch_conv_async")
    async with client_of(sandbox) as client:
        sandbox.fail_next(503)
        sandbox.drop_next()
        await client.update_message_metadata(ID, "x")
    attempts = [record for record in caplog.records if record.getMessage().startswith("attempt")]
    fields = [record.sinch_conv_async for record in attempts]
    assert [(one["attempt"], one["status"], one["error"], one["final"]) for one in fields] == [
        (1, 503, "ServerError", False),
        (2, None, "TransportError", False),
        (3, 200, None, True),
    ]
    assert {(one["message_id"], one["project_id"]) for one in fields} == {(ID, "sandbox-project")}
    assert [one["retry_in"] is None for one in fields] == [False, False, True]
    (ended,) = (record for record in caplog.records if record.getMessage().startswith("call ended"))
    assert ended.sinch_conv_async["attempts"] == 3
    assert ended.sinch_conv_async["outcome"] == "succeeded"
    assert 0 <= ended.sinch_conv_async["waited"] < ended.sinch_conv_async["seconds"]


# Event loops, threads, processes


class Outside:
    """A sandbox in a thread of its own: it lives on while the test's loops come and go."""

    def __enter__(self):
        self.ready = threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self.serve(),))
        self.thread.start()
        self.ready.wait()
        return self

    async def serve(self):
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        async with Sandbox(auto_create=True) as self.sandbox:
            self.ready.set()
            await self.over.wait()

    def __exit__(self, *exc):
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()


def test_a_second_loop_gets_a_fresh_pool_and_the_old_token():
    with Outside() as outside, warnings.catch_warnings():
        warnings.simplefilter("error")
        client = client_of(outside.sandbox)
        for number in range(3):
            asyncio.run(client.update_message_metadata(ID, str(number)))
            gc.collect()
        asyncio.run(client.close())
        assert len(outside.sandbox.token_requests) == 1
        assert outside.sandbox.peak_connections <= 2


def test_a_loop_that_ended_in_the_middle_of_everything_leaves_nothing_in_the_way_of_the_next():
    async def in_the_middle(client, outside):
        calls = [asyncio.ensure_future(client.update_message_metadata(ID, "x")) for _ in range(5)]
        while len(outside.sandbox.token_requests) < 1:
            await asyncio.sleep(0.001)
        del calls

    with Outside() as outside:
        outside.loop.call_soon_threadsafe(outside.sandbox.hold_tokens)
        client = client_of(outside.sandbox)
        asyncio.run(in_the_middle(client, outside))
        outside.loop.call_soon_threadsafe(outside.sandbox.release_tokens)
        asyncio.run(client.update_message_metadata(ID, "y"))
        stats = stats_of(client)
        assert (stats.in_flight, stats.waiting) == (0, 0)
        asyncio.run(client.close())


def run_and_close_roughly(*coroutines):
    """The tasks that are left on an event loop which was closed over them, as no ``asyncio.run``
    would.
    """
    loop = asyncio.new_event_loop()
    try:
        tasks = [loop.create_task(coroutine) for coroutine in coroutines]
        loop.run_until_complete(asyncio.wait(tasks, timeout=0.1))
        return [task for task in tasks if not task.done()]
    finally:
        loop.close()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore:unclosed")
@pytest.mark.parametrize("shared", [False, True])
def test_closing_after_the_loop_was_closed_over_calls_that_waited(shared):
    with Outside() as outside:
        manager = SessionManager() if shared else None
        client = client_of(outside.sandbox, session_manager=manager, rate_limit=0.001)
        left = run_and_close_roughly(*(client.update_message_metadata(ID, "x") for _ in range(3)))
        assert len(left) == 2
        asyncio.run(client.close())
        assert client.closed
        if manager is not None:
            asyncio.run(manager.close())
        del left
        gc.collect()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore:unclosed")
def test_what_a_closed_loop_left_of_a_token_request_does_not_end_another():
    with Outside() as outside:
        client = client_of(outside.sandbox)
        outside.loop.call_soon_threadsafe(outside.sandbox.hold_tokens)
        left = run_and_close_roughly(client.update_message_metadata(ID, "x"))
        left.append(client._sender.authorization._fetching)

        async def again():
            call = asyncio.ensure_future(client.update_message_metadata(ID, "y"))
            while stats_of(client).token_requests < 2:
                await asyncio.sleep(0.001)
            left.clear()
            gc.collect()
            outside.loop.call_soon_threadsafe(outside.sandbox.release_tokens)
            await call
            await client.close()

        asyncio.run(again())


def test_closing_after_the_loop_has_ended():
    with Outside() as outside:
        for shared in (None, SessionManager()):
            client = client_of(outside.sandbox, session_manager=shared)
            asyncio.run(client.update_message_metadata(ID, "x"))
            asyncio.run(client.close())
            assert client.closed


async def test_another_loop_gets_an_error_at_once_while_the_first_goes_on(sandbox):
    async with client_of(sandbox) as client:
        sandbox.hold()
        call = asyncio.create_task(client.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(1)
        for use in (
            client.authenticate,
            client.close,
            lambda: client.update_message_metadata(ID, "y"),
        ):
            with pytest.raises(ClientStateError, match="another event loop"):
                await asyncio.to_thread(lambda use=use: asyncio.run(use()))
        assert not client.closed
        sandbox.release()
        assert (await call).metadata == "x"


async def test_a_client_of_a_shared_manager_is_not_closed_from_another_loop_either(sandbox):
    async with SessionManager() as manager, client_of(sandbox, session_manager=manager) as client:
        await client.update_message_metadata(ID, "x")
        with pytest.raises(ClientStateError):
            await asyncio.to_thread(asyncio.run, client.close())
        assert not client.closed
        await client.update_message_metadata(ID, "y")


async def test_in_a_forked_child_the_manager_is_the_parents(sandbox, monkeypatch):
    manager = SessionManager()
    client = client_of(sandbox, session_manager=manager)
    await client.update_message_metadata(ID, "x")
    connector = manager._binder.current.connections._connector
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        for use in (
            client.authenticate,
            client.close,
            manager.close,
            lambda: client.update_message_metadata(ID, "y"),
        ):
            with pytest.raises(ClientStateError, match="forked"):
                await use()
        manager.__del__()  # in silence
    assert not connector.closed
    await connector.close()


FORKED = """
import asyncio, logging, os, sys
logging.disable(logging.WARNING)  # asyncio's debug mode tells of the wait for the child
from sinch_conv_async import ClientStateError, ConversationClient
from sinch_conv_async.sandbox import Sandbox

def child(client):
    async def use(what):
        try:
            await what()
        except ClientStateError as error:
            return "forked" in str(error)
    ok = [asyncio.run(use(what)) for what in (
        client.authenticate, client.close, lambda: client.update_message_metadata("m", "x"))]
    return 0 if ok == [True] * 3 and not client.closed else 1

async def main():
    async with Sandbox(auto_create=True) as sandbox, ConversationClient(**sandbox.client_options()) as client:
        await client.update_message_metadata("m", "one")
        pid = os.fork()
        if not pid:
            import threading
            status = []
            thread = threading.Thread(target=lambda: status.append(child(client)))
            thread.start(); thread.join()
            del client
            import gc; gc.collect()
            os._exit(status[0])
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        await client.update_message_metadata("m", "two")
        assert sandbox.open_connections == 1, sandbox.open_connections
        return status

sys.exit(asyncio.run(main()))
"""


def test_a_forked_child_gets_an_error_while_the_parent_goes_on():
    command = [sys.executable, "-W", "error", "-c", FORKED]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert (process.returncode, process.stdout) == (0, b"")


async def test_a_forgotten_manager_warns_and_its_connections_are_closed_all_the_same(sandbox):
    client = client_of(sandbox)
    await client.update_message_metadata(ID, "x")
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, *_: shown.append((category, str(message)))
        del client
    assert [(category, text.partition(":")[0]) for category, text in shown] == [
        (ResourceWarning, "unclosed <SessionManager open")
    ]
    while sandbox.open_connections:
        await asyncio.sleep(0)


async def test_a_forgotten_manager_whose_renewal_is_under_way_asks_for_nothing(sandbox):
    manager = SessionManager()
    request = token_requester(sandbox.origin, manager._binder, Counters())
    del manager
    failure = await request(None)
    assert isinstance(failure.error, TokenError)
    assert not failure.retryable


@pytest.mark.skipif(
    os.environ.get("EVENT_LOOP") == "uvloop",
    reason="uvloop 0.23 gives the factory an argument that it does not take",
)
@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("hook_raises", [False, True])
async def test_eager_tasks_change_nothing(sandbox, hook_raises):
    trace = aiohttp.TraceConfig()

    async def hook(session, context, parameters):
        if hook_raises:
            raise ZeroDivisionError

    trace.on_request_start.append(hook)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    async with (
        SessionManager(trace_configs=[trace]) as manager,
        client_of(sandbox, session_manager=manager) as client,
    ):
        calls = [client.update_message_metadata(ID, "x") for _ in range(5)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {
            TokenError if hook_raises else ConversationMessage
        }
    loop.set_task_factory(None)


# Cancellation


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(
    ("script", "timeout"),
    [
        ("as usual", None),
        ("as usual", 60.0),
        ("503 first", None),
        ("503 first", 60.0),
        ("401 first", None),
        ("dropped first", None),
        ("slow body", None),
    ],
)
async def test_a_call_is_cancelled_cleanly_at_any_turn_of_the_loop(sandbox, warm, timeout, script):
    def prepare():
        sandbox.clear_faults()
        if script == "503 first":
            sandbox.fail_next(503)
        elif script == "401 first":
            sandbox.fail_next(401)
        elif script == "dropped first":
            sandbox.drop_next()
        elif script == "slow body":
            sandbox.trickle_next(0)

    turn = cancelled = 0
    while True:
        async with client_of(sandbox, rate_limit=None) as client:
            if warm:
                await client.update_message_metadata(ID, "warm")
            prepare()
            tasks = asyncio.all_tasks()
            call = asyncio.create_task(client.update_message_metadata(ID, "x", timeout=timeout))
            for _ in range(turn):
                await asyncio.sleep(0)
            if call.done():
                await call
                break
            call.cancel("this one")
            with pytest.raises(asyncio.CancelledError) as caught:
                await call
            cancelled += 1
            assert caught.value.args == ("this one",)
            assert caught.value.__cause__ is None
            stats = stats_of(client)
            assert (stats.in_flight, stats.waiting) == (0, 0)
            sandbox.clear_faults()
            assert (await client.update_message_metadata(ID, "next")).metadata == "next"
            # aiohttp's own: of its server, and from 4.0 on of trace hooks, for a pass of the loop.
            others = ("sandbox", "web_protocol", "_on_chunk_response_received")
            left = {
                task
                for task in asyncio.all_tasks() - tasks
                if not any(name in repr(task) for name in others)
            }
            assert not left
        # After so many turns only the slow body is still coming, byte by byte, and each turn is
        # much like the one before.
        turn += 1 if turn < 60 else 211
    assert cancelled > 3


@pytest.mark.usefixtures("each_way")
async def test_the_cancelled_error_is_the_same_instance_without_frames_that_hold_headers(sandbox):
    async with client_of(sandbox) as client:
        await client.authenticate()
        sandbox.hold()
        call = asyncio.create_task(client.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await call
        frames = [
            frame.f_code.co_filename for frame, _ in traceback.walk_tb(caught.value.__traceback__)
        ]
        assert not [name for name in frames if "aiohttp" in name]
        assert caught.value.__context__ is None
        sandbox.release()


async def test_cancelling_a_waiting_call_passes_its_place_on(sandbox):
    async with (
        SessionManager(max_connections=1) as manager,
        client_of(sandbox, session_manager=manager, auth="basic") as client,
    ):
        sandbox.hold()
        first, second, third = (
            asyncio.create_task(client.update_message_metadata(ID, str(n))) for n in range(3)
        )
        await sandbox.wait_for_requests(1)
        second.cancel()
        await asyncio.wait([second])
        sandbox.release()
        await asyncio.gather(first, third)
        assert [request.metadata for request in sandbox.requests] == ["0", "2"]


@pytest.mark.parametrize("which", ["attempt_timeout", "timeout"])
@pytest.mark.parametrize("first", ["cancellation", "timeout"])
async def test_a_cancellation_that_meets_a_timeout_in_one_tick_is_still_a_cancellation(
    sandbox, first, which
):
    """Both timers are due when the event loop looks again, and run in the order of their times."""
    seconds = 0.6
    async with client_of(sandbox, auth="basic", **{which: seconds}) as client:
        sandbox.hold()
        loop = asyncio.get_running_loop()
        began = loop.time()
        call = asyncio.create_task(client.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(1)
        loop.call_at(
            began + (seconds / 2 if first == "cancellation" else seconds * 1.4), call.cancel
        )
        clocks.sleep(began + seconds * 1.5 - loop.time())
        await asyncio.wait([call])
        assert call.cancelled()
        sandbox.release()


async def test_clients_with_one_key_share_its_token_however_many_others_came_before(sandbox):
    async with SessionManager() as manager:
        # One without a token, so that the manager looks for what is of no use any more when a
        # pair's first client comes.
        kept = [client_of(sandbox, auth="basic", session_manager=manager)]
        for number in range(40):
            options = {
                "project_id": f"p{number}",
                "key_id": f"k{number}",
                "session_manager": manager,
            }
            one, other = (client_of(sandbox, **options) for _ in range(2))
            kept += [one, other]
            # A token request for each would show it too, and take a second each.
            assert one._sender.authorization is other._sender.authorization
            assert one._sender.project is other._sender.project


@pytest.mark.parametrize("answer", ["refused", "mute"])
async def test_authenticate_takes_no_longer_than_the_timeout_and_says_what_it_waited_for(
    sandbox, answer
):
    if answer == "refused":
        sandbox.fail_next_token(503, times=1_000)
    else:
        sandbox.hold_tokens()
    async with client_of(sandbox, timeout=0.2) as client:
        with pytest.raises(
            TokenError, match=r"no access token within the timeout of 0\.2 s"
        ) as caught:
            await client.authenticate()
        assert ("answered 503" in str(caught.value)) == (answer == "refused")
        assert caught.value.http_status == (503 if answer == "refused" else None)
        sandbox.release_tokens()


async def test_a_call_whose_timeout_passes_while_it_waits_for_a_token_says_why_there_is_none(
    sandbox,
):
    sandbox.fail_next_token(503, times=1_000)
    async with client_of(sandbox, timeout=0.2) as client:
        with pytest.raises(CallTimeoutError) as caught:
            await client.update_message_metadata(ID, "x")
    assert isinstance(caught.value.last, TokenError)
    assert caught.value.last.http_status == 503
    assert (caught.value.attempts, caught.value.sent) == (0, "no")
