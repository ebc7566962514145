"""A user's code, read by mypy and pyright and never run: thousands of updates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from sinch_conv_async import (
    BulkUpdate,
    ConversationClient,
    ConversationMessage,
    MessagesSource,
    MetadataUpdate,
    NotUpdated,
    SinchError,
    Unchanged,
    Updated,
    UpdateOutcome,
    UpdateQueue,
    merge_json,
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
    async for outcome in client.update_many(client.list_messages(conversation_id="C")):
        assert_type(outcome, UpdateOutcome)
    stream = client.update_many(rows(), concurrency=None)
    assert_type(await anext(stream), UpdateOutcome)
    assert_type(await stream.aclose(), None)
    return failed


def by_ok(outcome: UpdateOutcome) -> str | None:
    """Both narrow by `is True`."""
    if outcome.ok is True:
        assert_type(outcome, Updated | Unchanged)
        assert_type(outcome.message, ConversationMessage)
        assert_type(outcome.error, None)
        return outcome.message.id
    assert_type(outcome, NotUpdated)
    assert_type(outcome.message, None)
    assert_type(outcome.error, SinchError)
    return outcome.error.message


def by_truth(outcome: UpdateOutcome) -> str | None:
    """mypy narrows by the truth of `ok` alone. pyright does not, by its design, whatever the type
    of `ok`.
    """
    if outcome.ok:
        return outcome.message.id  # pyright: ignore[reportOptionalMemberAccess]
    return outcome.error.message  # pyright: ignore[reportOptionalMemberAccess]


def by_error(outcome: UpdateOutcome) -> str | None:
    if outcome.error is None:
        assert_type(outcome, Updated | Unchanged)
        return outcome.message.id
    assert_type(outcome, NotUpdated)
    return outcome.error.message


def by_class(outcome: UpdateOutcome) -> str | None:
    match outcome:
        case Updated():
            return outcome.message.metadata
        case Unchanged(message=message):
            return message.id
        case NotUpdated():
            return outcome.error.message


def made_for_a_test(update: MetadataUpdate, message: ConversationMessage) -> list[UpdateOutcome]:
    _ = Updated(update)  # type: ignore[call-arg]  # an applied update has a message
    _ = NotUpdated(update)  # type: ignore[call-arg]  # a failed one has an error
    return [
        Updated(update, message, attempts=1),
        Unchanged(update, message),
        NotUpdated(update, error=SinchError("made up"), attempts=5),
    ]


async def transformed(
    client: ConversationClient, messages: list[str | ConversationMessage]
) -> None:
    def plain(message: ConversationMessage) -> str | None:
        return message.metadata

    async def asynchronous(message: ConversationMessage) -> str:
        return merge_json(message, {"tag": "x"})

    assert_type(client.transform_many(messages, plain), BulkUpdate)
    assert_type(client.transform_many(client.list_messages(), asynchronous), BulkUpdate)
    client.transform_many(
        ["m1"], lambda message: None, messages_source="DISPATCH_SOURCE", max_outage=None
    )


async def queued(client: ConversationClient) -> None:
    async with UpdateQueue(client, on_outcome=print, stop_within=3.0) as queue:
        queue.put_nowait("m1", "x")
        await queue.put("m1", "x", messages_source=MessagesSource.DISPATCH_SOURCE)
    assert_type(queue.pending, tuple[MetadataUpdate, ...])
    assert_type(queue.error, SinchError | None)
