"""A user's code, read by mypy and pyright and never run: thousands of updates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from sinch_conv_async import (
    ConversationClient,
    ConversationMessage,
    MessagesSource,
    MetadataUpdate,
    SinchError,
    UpdateOutcome,
)


def updates() -> Iterator[MetadataUpdate]:
    yield MetadataUpdate("01FC66621XXXXX119Z8PMV1QPA", "one")
    yield MetadataUpdate("id", "two", messages_source=MessagesSource.DISPATCH_SOURCE)
    yield MetadataUpdate(message_id="id", metadata="three", messages_source="DISPATCH_SOURCE")


async def rows() -> AsyncIterator[tuple[str, str]]:
    yield "01FC66621XXXXX119Z8PMV1QPA", "one"


async def job(client: ConversationClient) -> int:
    failed = 0
    async with client.update_many(updates()) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, UpdateOutcome)
            assert_type(outcome.update, MetadataUpdate)
            assert_type(outcome.message, ConversationMessage | None)
            assert_type(outcome.error, SinchError | None)
            assert_type(outcome.attempts, int)
            assert_type(outcome.ok, bool)
            failed += not outcome.ok
    async for outcome in client.update_many([("id", "x"), ("id", "y")], concurrency=20):
        assert_type(outcome, UpdateOutcome)
    stream = client.update_many(rows(), concurrency=None)
    assert_type(await anext(stream), UpdateOutcome)
    assert_type(await stream.aclose(), None)
    return failed
