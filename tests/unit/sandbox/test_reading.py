"""Messages are read, one or a list: the filters, the order and the pages of the
published document.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY
from urllib.parse import urlencode

import pytest

from sinch_conv_async.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIST = "/v1/projects/sandbox-project/messages"


class Reader:
    """Reads from a sandbox with a token of its own, over one connection."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.token = "a token"

    async def get(self, target: str) -> tuple[int, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.sandbox.port)
        try:
            writer.write(
                f"GET {target} HTTP/1.1\r\nHost: sandbox\r\nConnection: close\r\n"
                f"Authorization: {self.authorization}\r\n\r\n".encode()
            )
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
        return int(head.split()[1]), json.loads(body)

    @property
    def authorization(self) -> str:

        options = self.sandbox.client_options()
        pair = f"{options['key_id']}:{options['key_secret']}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    async def page(self, **query: object) -> tuple[list[str], str]:
        status, answer = await self.get(f"{LIST}?{urlencode(query)}")
        assert status == 200, answer
        return [message["id"] for message in answer["messages"]], answer["next_page_token"]

    async def ids(self, **query: object) -> list[str]:
        found, token = await self.page(**query)
        assert token == ""
        return found


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def reader(sandbox: Sandbox) -> Reader:
    return Reader(sandbox)


def fill(sandbox: Sandbox, number: int) -> None:
    for at in range(number):
        sandbox.add_message(
            f"m{at:04d}", accept_time=f"2026-03-01T00:{at // 60:02d}:{at % 60:02d}Z"
        )


async def test_one_message_is_answered_as_an_update_would_answer_it(sandbox, reader):
    sandbox.add_message("m", metadata="what is there", extra={"odd": 1}, omit=["sender_id"])
    status, message = await reader.get(f"{LIST}/m")
    assert status == 200
    assert (message["id"], message["metadata"], message["odd"]) == ("m", "what is there", 1)
    assert "sender_id" not in message
    (request,) = sandbox.requests
    assert (request.method, request.message_id, request.applied) == ("GET", "m", False)
    assert sandbox.updates_applied == 0


async def test_a_message_that_is_not_there_or_is_another_projects_gets_404(sandbox, reader):
    sandbox.add_project("other", key_id="k2", key_secret="s2")
    sandbox.add_message("theirs", project_id="other")
    for name in ("theirs", "nowhere"):
        status, answer = await reader.get(f"{LIST}/{name}")
        assert (status, answer["error"]["status"]) == (404, "NOT_FOUND")
    assert await reader.ids() == []


async def test_faults_hit_reads_like_updates(sandbox, reader):
    fill(sandbox, 1)
    sandbox.fail_next(503)
    sandbox.fail_next(429, message_id="m0000")
    assert (await reader.get(LIST))[0] == 503
    assert (await reader.get(LIST))[0] == 200
    assert (await reader.get(f"{LIST}/m0000"))[0] == 429


async def test_a_list_is_newest_first_and_has_ten_messages_a_page(sandbox, reader):
    fill(sandbox, 25)
    first, token = await reader.page()
    assert first == [f"m{at:04d}" for at in range(24, 14, -1)]
    second, token = await reader.page(page_token=token)
    third, end = await reader.page(page_token=token)
    assert first + second + third == [f"m{at:04d}" for at in range(24, -1, -1)]
    assert end == ""


async def test_a_page_that_is_asked_for_again_is_the_same_whatever_has_come_meanwhile(
    sandbox, reader
):
    fill(sandbox, 4)
    _, token = await reader.page(page_size=2)
    once = await reader.page(page_size=2, page_token=token)
    fill(sandbox, 9)
    assert await reader.page(page_size=2, page_token=token) == once


async def test_messages_of_one_time_come_last_added_first_and_those_without_a_time_last(
    sandbox, reader
):
    for name, accept_time in (
        ("none", ""),
        ("a", "2026-03-01T00:00:00Z"),
        ("b", "2026-03-01T01:00:00+01:00"),
        ("naive", "2026-03-01T00:00:00"),
    ):
        sandbox.add_message(name).accept_time = accept_time
    assert await reader.ids() == ["naive", "b", "a", "none"]


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("conversation_id", "conversation_id", "c1"),
        ("contact_id", "contact_id", "c1"),
        ("app_id", "app_id", "a1"),
        ("channel_identity", "identity", "46700000000"),
        ("channel", "channel", "WHATSAPP"),
        ("direction", "direction", "TO_APP"),
    ],
)
async def test_each_filter_keeps_what_has_the_value(sandbox, reader, name, attribute, value):
    fill(sandbox, 3)
    sandbox.add_message("m0001", **{attribute: value})
    assert await reader.ids(**{name: value}) == ["m0001"]


async def test_times_are_bounds_that_do_not_count_themselves(sandbox, reader):
    fill(sandbox, 5)
    at = "2026-03-01T00:00:0{}Z".format
    assert await reader.ids(start_time=at(1)) == ["m0004", "m0003", "m0002"]
    assert await reader.ids(end_time=at(1)) == ["m0000"]
    assert await reader.ids(start_time=at(1), end_time=at(3)) == ["m0002"]


async def test_what_recipients_sent_and_what_is_in_dispatch_mode_can_be_asked_for(sandbox, reader):
    fill(sandbox, 3)
    sandbox.messages["m0000"].direction = "TO_APP"
    sandbox.messages["m0002"].processing_mode = "DISPATCH"
    assert await reader.ids() == ["m0001", "m0000"]
    assert await reader.ids(only_recipient_originated="true") == ["m0000"]
    assert await reader.ids(only_recipient_originated="false") == ["m0001", "m0000"]
    assert await reader.ids(messages_source="DISPATCH_SOURCE") == ["m0002"]


async def test_a_view_without_metadata_leaves_it_out(sandbox, reader):
    sandbox.add_message("m", metadata="x")
    _, answer = await reader.get(f"{LIST}?view=WITHOUT_METADATA")
    assert "metadata" not in answer["messages"][0]
    _, answer = await reader.get(f"{LIST}?view=WITH_METADATA")
    assert answer["messages"][0]["metadata"] == "x"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("page_size=0", "page_size"),
        ("page_size=1001", "page_size"),
        ("page_size=ten", "page_size"),
        ("page_size=1&page_size=2", "page_size"),
        ("page_token=invented", "page_token"),
        ("page_token=%21", "page_token"),
        ("start_time=yesterday", "start_time"),
        ("end_time=2026-03-01T00:00:00", "end_time"),
        ("start_time=2026-03-02T00:00:00Z&end_time=2026-03-01T00:00:00Z", "start_time"),
        ("page_token=W10=", "page_token"),
        (f"page_token={base64.urlsafe_b64encode(b'[1.5, 0, 0]').decode()}", "page_token"),
        ("channel=PIGEON", "channel"),
        ("direction=UP", "direction"),
        ("view=ALL", "view"),
        ("only_recipient_originated=yes", "only_recipient_originated"),
        ("messages_source=ELSEWHERE", "messages_source"),
    ],
)
async def test_a_query_that_cannot_be_right_gets_400_that_names_the_field(reader, query, field):
    status, answer = await reader.get(f"{LIST}?{query}")
    assert status == 400
    assert answer["error"]["details"][0]["field_violations"][0]["field"] == field


async def test_a_page_token_belongs_to_its_filters_and_is_never_forgotten(sandbox, reader):
    fill(sandbox, 3)
    _, token = await reader.page(page_size=1)
    status, answer = await reader.get(f"{LIST}?page_token={token}&channel=SMS")
    assert (status, answer["error"]["details"][0]["field_violations"][0]["field"]) == (
        400,
        "page_token",
    )
    for _ in range(64):
        await reader.page(page_size=1)
    assert await reader.page(page_size=1, page_token=token) == (["m0001"], ANY)
    assert await reader.page(page_size=2, page_token=token) == (["m0001", "m0000"], "")


async def test_messages_that_are_added_between_two_pages_move_nothing(sandbox, reader):
    fill(sandbox, 4)
    _, token = await reader.page(page_size=2)
    sandbox.add_message("newer", accept_time="2026-03-02T00:00:00Z")
    assert await reader.page(page_size=2, page_token=token) == (["m0001", "m0000"], "")
    sandbox.messages["m0001"].accept_time = "2026-02-01T00:00:00Z"
    assert await reader.page(page_size=2, page_token=token) == (["m0000", "m0001"], "")


async def test_an_empty_filter_or_page_token_counts_as_none(sandbox, reader):
    fill(sandbox, 1)
    assert await reader.ids(conversation_id="", app_id="", page_token="") == ["m0000"]
