"""A user's code, read by mypy and pyright and never run: a client, its manager, answers, errors."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Mapping
from typing import Any, Literal, assert_type

import aiohttp

import sinch_conv_async
from sinch_conv_async import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    CallTimeoutError,
    Channel,
    ChannelIdentity,
    ClientStateError,
    ConversationClient,
    ConversationMessage,
    Direction,
    ErrorDetail,
    InvalidArgumentError,
    MessagesSource,
    NotFoundError,
    PermissionDeniedError,
    ProcessingMode,
    RateLimitedError,
    Region,
    ResponseFormatError,
    RetryPolicy,
    ServerError,
    SessionManager,
    SinchError,
    TokenError,
    TransportError,
    merge_json,
    to_dict,
)

version: str = sinch_conv_async.__version__


async def one_call() -> str | None:
    async with ConversationClient.from_env() as client:
        assert_type(client, ConversationClient)
        message = await client.update_message_metadata(
            "01FC66621XXXXX119Z8PMV1QPA", '{"ticket": "closed"}'
        )
        assert_type(message, ConversationMessage)
        if message.channel_identity is not None:
            print(message.channel_identity.channel)
        return message.metadata


async def every_option() -> None:
    manager = SessionManager(
        max_connections=100,
        ssl=ssl.create_default_context(),
        proxy="http://user:password@proxy.example:3128",
        resolver=aiohttp.ThreadedResolver(),
        trace_configs=[aiohttp.TraceConfig()],
    )
    client = ConversationClient(
        project_id="project",
        key_id="key",
        key_secret="secret",
        conversation_region=Region.EU,
        auth="oauth2",
        session_manager=manager,
        rate_limit=400,
        retry=RetryPolicy(
            max_retries=2,
            base_delay=0.1,
            max_delay=5.0,
            max_retry_after=30.0,
            retry_maybe_sent=False,
        ),
        timeout=30,
        attempt_timeout=2.5,
        conversation_origin="http://127.0.0.1:8080",
        auth_origin="http://127.0.0.1:8080",
    )
    ConversationClient(
        project_id="project",
        key_id="key",
        key_secret="secret",
        conversation_region="us",
        auth="basic",
        rate_limit=None,
        timeout=None,
    )
    ConversationClient.from_env(conversation_region="br", rate_limit=100)
    ConversationClient.from_env(conversation_region="EU")
    ConversationClient.from_env(conversation_region=None)
    assert_type(await client.authenticate(), None)
    assert_type(client.closed, bool)
    message = await client.update_message_metadata(
        "01FC66621XXXXX119Z8PMV1QPA",
        "new",
        messages_source=MessagesSource.DISPATCH_SOURCE,
        timeout=5,
    )
    await client.update_message_metadata(
        "id", "new", messages_source="DISPATCH_SOURCE", timeout=None
    )
    assert_type(to_dict(message), dict[str, Any])
    assert_type(await client.close(), None)
    await manager.close()
    async with SessionManager() as shared:
        assert_type(shared, SessionManager)


async def many_at_once(client: ConversationClient, ids: list[str]) -> None:
    plain = await asyncio.gather(*[client.update_message_metadata(one, "x") for one in ids])
    assert_type(plain, list[ConversationMessage])
    mixed = await asyncio.gather(
        *[client.update_message_metadata(one, "x") for one in ids], return_exceptions=True
    )
    assert_type(mixed, list[ConversationMessage | BaseException])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(client.update_message_metadata("id", "x"))
    assert_type(task, asyncio.Task[ConversationMessage])


def answers(message: ConversationMessage) -> None:
    assert_type(message.id, str | None)
    assert_type(message.accept_time, datetime.datetime | None)
    assert_type(message.channel_identity, ChannelIdentity | None)
    assert_type(message.contact_id, str | None)
    assert_type(message.conversation_id, str | None)
    assert_type(message.direction, Direction | str | None)
    assert_type(message.metadata, str | None)
    assert_type(message.injected, bool | None)
    assert_type(message.sender_id, str | None)
    assert_type(message.processing_mode, ProcessingMode | str | None)
    assert_type(message.extra, Mapping[str, Any])
    if identity := message.channel_identity:
        assert_type(identity.identity, str | None)
        assert_type(identity.channel, Channel | str | None)
        assert_type(identity.app_id, str | None)
        assert_type(identity.extra, Mapping[str, Any])
        if identity.channel == Channel.WHATSAPP:
            print("by WhatsApp")
    # A word that an enum does not know stays as its text, and members are text too.
    word: str | None = message.direction
    print(word, Direction.TO_APP.lower())
    assert_type(merge_json(message, {"tag": "x", "old": None}), str)
    ConversationMessage(
        id="made up", metadata="for a test of one's own", channel_identity=ChannelIdentity()
    )


async def errors(client: ConversationClient) -> float | None:
    try:
        await client.update_message_metadata("id", "x")
    except InvalidArgumentError as error:
        as_value_error: ValueError = error
        print(as_value_error)
    except ClientStateError as error:
        as_runtime_error: RuntimeError = error
        print(as_runtime_error)
    except CallTimeoutError as error:
        as_timeout: TimeoutError = error
        as_transport: TransportError = error
        assert_type(error.last, SinchError | None)
        print(as_timeout, as_transport)
    except TransportError as error:
        assert_type(error.sent, Literal["no", "maybe"])
    except TokenError as error:
        assert_type(error.attempts, int)
        assert_type(error.extra, Mapping[str, Any])
    except ResponseFormatError as error:
        assert_type(error.http_status, int | None)
    except RateLimitedError as error:
        return error.retry_after
    except (
        BadRequestError,
        AuthenticationError,
        PermissionDeniedError,
        NotFoundError,
        ServerError,
    ) as error:
        as_api_error: ApiError = error
        print(as_api_error)
    except ApiError as error:
        assert_type(error.code, int | None)
        assert_type(error.message, str)
        assert_type(error.status, str | None)
        assert_type(error.http_status, int)
        assert_type(error.retry_after, float | None)
        assert_type(error.request_id, str | None)
        assert_type(error.body, str)
        assert_type(error.extra, Mapping[str, Any])
        for detail in error.details:
            assert_type(detail, ErrorDetail)
            assert_type(detail.type_url, str | None)
            assert_type(detail.value, str | None)
            assert_type(detail.extra, Mapping[str, Any])
    except SinchError as error:
        assert_type(error.attempts, int)
    return None


async def refused(client: ConversationClient, message: ConversationMessage) -> None:
    """What a type checker must object to: mypy and pyright both report an ignore that ignores
    nothing.
    """
    await client.update_message_metadata(1, "x")  # type: ignore[arg-type]
    await client.update_message_metadata("id", b"x")  # type: ignore[arg-type]
    await client.update_message_metadata("id", "x", None)  # type: ignore[call-arg]
    ConversationClient("project", "key", "secret", "us")  # type: ignore[call-arg]
    ConversationClient(
        project_id="p",
        key_id="k",
        key_secret="s",
        conversation_region="us",
        auth="none",  # type: ignore[arg-type]
    )
    ConversationClient(project_id="p", key_id="k", key_secret="s", conversation_region="moon")  # type: ignore[arg-type]
    await client.update_message_metadata("id", "x", messages_source="DISPATCH")  # type: ignore[arg-type]
    RetryPolicy(4)  # type: ignore[call-arg]
    message.metadata = "models are frozen"  # type: ignore[misc]


async def reads(client: ConversationClient) -> None:
    assert_type(await client.get_message("id", timeout=5), ConversationMessage)
    async with client.list_messages(channel="SMS", page_size=10) as messages:
        async for message in messages:
            assert_type(message, ConversationMessage)
