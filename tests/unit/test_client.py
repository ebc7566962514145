"""The client: what it is made of, what it refuses, and who opens and closes."""

from __future__ import annotations

import asyncio
import gc
import math
import warnings

import pytest

from sinch_conv_async import (
    ClientStateError,
    ConversationClient,
    InvalidArgumentError,
    MessagesSource,
    Region,
    RetryPolicy,
    SessionManager,
    SinchError,
    TokenError,
    to_dict,
)
from sinch_conv_async.sandbox import Sandbox
from tests.servers import ID, client_of

KEY = {"project_id": "project", "key_id": "key", "key_secret": "secret"}
US = {**KEY, "conversation_region": "us"}


@pytest.fixture
def environment(monkeypatch):
    """An environment without a word of Sinch; returns how to set one."""
    names = (
        "PROJECT_ID",
        "KEY_ID",
        "KEY_SECRET",
        "CONVERSATION_REGION",
        "CONVERSATION_ORIGIN",
        "AUTH_ORIGIN",
    )
    for name in names:
        monkeypatch.delenv(f"SINCH_{name}", raising=False)

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"SINCH_{name.upper()}", value)

    return put


# What it is made of


@pytest.mark.parametrize("region", [*Region, *(str(region) for region in Region)])
def test_a_region_is_a_member_or_its_text(region):
    client = ConversationClient(**KEY, conversation_region=region)
    assert f"https://{region}.conversation.api.sinch.com" in repr(client)


@pytest.mark.parametrize(
    "origin",
    [
        "https://gateway.example",
        "https://gateway.example/",
        "http://127.0.0.1:8",
        "http://localhost",
        "http://[::1]:8",
    ],
)
def test_an_origin_stands_in_for_the_region(origin):
    assert origin.rstrip("/") in repr(ConversationClient(**KEY, conversation_origin=origin))


def test_an_origin_goes_before_the_region():
    client = ConversationClient(**US, conversation_origin="https://gateway.example")
    assert "https://gateway.example" in repr(client)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"conversation_region": None}, "conversation_region is missing"),
        ({"conversation_region": "mars"}, "must be one of 'us', 'eu', 'br'"),
        (
            {"conversation_region": "mars", "conversation_origin": "https://gateway.example"},
            "must be one of",
        ),
        ({"conversation_region": 7}, "must be one of"),
        *(
            ({"project_id": hostile}, "project_id")
            for hostile in ("../x", "..", ".", "", "a/b", "a\r\n", "x" * 257, None, b"x")
        ),
        *(
            ({"key_id": hostile}, "key_id")
            for hostile in ("", "a\r\n", "a\nb", "\x00", "a:b", "ü", None, b"x")
        ),
        *(
            ({"key_secret": hostile}, "key_secret")
            for hostile in ("", "a\r\n", "a\nb", "\x00", "ü", None, b"x")
        ),
        ({"auth": "digest"}, "auth must be"),
        ({"auth": None}, "auth must be"),
        ({"session_manager": object()}, "not an aiohttp.ClientSession"),
        ({"retry": 4}, "retry"),
        *(
            ({name: hostile}, name)
            for name in ("timeout", "attempt_timeout", "rate_limit")
            for hostile in (0, -1, math.nan, math.inf, True, "1", 10**400)
        ),
        ({"attempt_timeout": None}, "attempt_timeout"),
        *(
            ({name: hostile}, name)
            for name in ("conversation_origin", "auth_origin")
            for hostile in (
                "http://example.com",
                "http://10.0.0.1",
                "ftp://127.0.0.1",
                "https://",
                "example.com",
                "https://user:password@host",
                "https://host/path",
                "https://host?query",
                "https://host#fragment",
                "https://host\r\n",
                "https://[::1",
                "",
                7,
            )
        ),
    ],
)
def test_an_argument_that_cannot_be_right_is_refused(wrong, problem):
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        ConversationClient(**{**US, **wrong})
    assert isinstance(caught.value, ValueError)
    assert caught.value.attempts == 0


def test_a_client_ready_made_session_is_not_taken():
    with pytest.raises(TypeError):
        ConversationClient(**US, session=object())


def test_the_constructor_needs_no_event_loop_and_opens_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = ConversationClient(**US)
        assert not client.closed
        del client
        gc.collect()


def test_a_client_made_outside_any_loop_binds_at_its_first_call():
    async def use(make):
        async with Sandbox(auto_create=True, port=0) as sandbox:
            client = make(sandbox)
            await asyncio.sleep(0)
            await client.update_message_metadata(ID, "x")
            await client.close()

    asyncio.run(use(client_of))


def test_a_client_that_was_not_constructed_says_so():
    assert (
        repr(ConversationClient.__new__(ConversationClient))
        == "<ConversationClient not constructed>"
    )
    assert repr(SessionManager.__new__(SessionManager)) == "<SessionManager not constructed>"


# The environment


async def test_from_env_reads_every_word(sandbox, environment):
    environment(
        project_id="sandbox-project",
        key_id="sandbox-key-id",
        key_secret="sandbox-key-secret",
        conversation_origin=sandbox.origin,
        auth_origin=sandbox.origin,
    )
    async with ConversationClient.from_env() as client:
        assert (await client.update_message_metadata(ID, "x")).metadata == "x"


def test_from_env_reads_the_region(environment):
    environment(project_id="p", key_id="k", key_secret="s", conversation_region="br")
    assert "https://br.conversation" in repr(ConversationClient.from_env())


def test_from_env_names_what_is_missing(environment):
    environment(key_id="k", conversation_region="us")
    with pytest.raises(
        InvalidArgumentError,
        match=r"^not set in the environment: SINCH_PROJECT_ID, SINCH_KEY_SECRET$",
    ):
        ConversationClient.from_env()


def test_an_empty_variable_is_missing(environment):
    environment(project_id="p", key_id="k", key_secret="", conversation_region="us")
    with pytest.raises(InvalidArgumentError, match="SINCH_KEY_SECRET"):
        ConversationClient.from_env()


def test_from_env_needs_no_region_where_an_origin_is_set(environment):
    environment(
        project_id="p", key_id="k", key_secret="s", conversation_origin="https://gateway.example"
    )
    assert "gateway.example" in repr(ConversationClient.from_env())


def test_what_from_env_is_given_wins(environment):
    environment(project_id="p", key_id="k", key_secret="s", conversation_region="us")
    client = ConversationClient.from_env(conversation_region=Region.EU, project_id="other")
    assert "project other at https://eu." in repr(client)


def test_what_from_env_is_given_is_not_missed(environment):
    assert ConversationClient.from_env(**US)


# Use


async def test_an_update_gives_the_message_back(sandbox):
    sandbox.add_message(ID, metadata="old", channel="WHATSAPP")
    async with client_of(sandbox) as client:
        answer = await client.update_message_metadata(
            ID, "new", messages_source=MessagesSource.CONVERSATION_SOURCE
        )
    assert (answer.id, answer.metadata, answer.channel_identity.channel) == (ID, "new", "WHATSAPP")
    assert to_dict(answer)["id"] == ID
    assert sandbox.messages[ID].metadata == "new"


@pytest.mark.parametrize("source", ["", "OTHER", 7, None])
async def test_an_unknown_messages_source_is_refused(sandbox, source):
    async with client_of(sandbox) as client:
        if source is None:
            await client.update_message_metadata(ID, "x", messages_source=source)
            return
        with pytest.raises(InvalidArgumentError, match="messages_source"):
            await client.update_message_metadata(ID, "x", messages_source=source)
    assert sandbox.requests == []


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, True, "1", 10**400])
async def test_a_timeout_of_one_call_is_a_positive_number(sandbox, timeout):
    async with client_of(sandbox) as client:
        with pytest.raises(InvalidArgumentError, match="timeout"):
            await client.update_message_metadata(ID, "x", timeout=timeout)
    assert sandbox.requests == []


async def test_authenticate_has_a_token_and_then_costs_nothing(sandbox):
    async with client_of(sandbox) as client:
        for _ in range(3):
            await client.authenticate()
        assert len(sandbox.token_requests) == 1
        await client.update_message_metadata(ID, "x")
        assert len(sandbox.token_requests) == 1


async def test_authenticate_tells_of_a_wrong_key(sandbox):
    async with client_of(sandbox, key_secret="wrong") as client:
        with pytest.raises(TokenError) as caught:
            await client.authenticate()
    assert (caught.value.error, caught.value.http_status, caught.value.attempts) == (
        "invalid_client",
        401,
        0,
    )


# Who opens, closes


async def test_a_client_closes_the_manager_that_it_made(sandbox):
    client = client_of(sandbox)
    await client.update_message_metadata(ID, "x")
    await client.close()
    assert client.closed
    assert client._manager.closed


async def test_a_client_leaves_a_shared_manager_open(sandbox):
    async with SessionManager() as manager:
        async with client_of(sandbox, session_manager=manager) as client:
            await client.update_message_metadata(ID, "x")
        assert client.closed
        assert not manager.closed
        async with client_of(sandbox, session_manager=manager) as client:
            await client.update_message_metadata(ID, "x")
        assert sandbox.peak_connections == 1


async def test_closing_the_manager_closes_its_clients(sandbox):
    manager = SessionManager()
    client = client_of(sandbox, session_manager=manager)
    await manager.close()
    assert client.closed
    with pytest.raises(ClientStateError):
        await client.update_message_metadata(ID, "x")


async def test_a_closed_client_refuses_every_use(sandbox):
    client = client_of(sandbox)
    await client.close()
    await client.close()
    with pytest.raises(ClientStateError, match="closed") as caught:
        await client.update_message_metadata(ID, "x")
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, SinchError)
    with pytest.raises(ClientStateError):
        await client.authenticate()


async def test_the_lowest_rate_limit_of_a_project_wins_while_its_client_is_there(sandbox):
    async with SessionManager() as manager:
        clients = [
            client_of(sandbox, session_manager=manager, rate_limit=limit)
            for limit in (700, 30, None)
        ]
        assert [project.pace for project in manager.stats().projects] == [30.0]
        await clients[1].close()
        assert [project.pace for project in manager.stats().projects] == [700.0]


async def test_a_repr_says_what_state_it_is_in(sandbox):
    async with client_of(sandbox, rate_limit=700) as client:
        where = f"project sandbox-project at {sandbox.origin}, <Project pace=700.0/s waiting=0 in_flight=0>>"
        assert repr(client) == f"<ConversationClient open: {where}"
    assert repr(client) == f"<ConversationClient closed: {where}"


async def test_a_client_forgotten_with_calls_under_way_on_a_shared_manager_warns(sandbox):
    async with SessionManager() as manager:
        client = client_of(sandbox, session_manager=manager, auth="basic")
        sandbox.hold()
        call = asyncio.create_task(client.update_message_metadata(ID, "x"))
        await sandbox.wait_for_requests(1)
        shown = []
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, category, *_: shown.append(
                (category, str(message))
            )
            client.__del__()
            assert [(category, text[:30]) for category, text in shown] == [
                (ResourceWarning, "unclosed <ConversationClient o")
            ]
        sandbox.release()
        await call


async def test_a_policy_is_the_clients_own(sandbox):
    async with SessionManager() as manager:
        patient = client_of(sandbox, session_manager=manager)
        impatient = client_of(sandbox, session_manager=manager, retry=RetryPolicy(max_retries=0))
        sandbox.fail_next(503, times=2)
        with pytest.raises(SinchError):
            await impatient.update_message_metadata(ID, "x")
        assert (await patient.update_message_metadata(ID, "x")).id == ID
