"""A second opinion: the client's requests and the sandbox's answers fit an OpenAPI document, as
openapi-core reads it.

The client and the sandbox share no code, but one person may misread a page twice in the same way.
The document is a third reading.
"""

from __future__ import annotations

import asyncio
import datetime
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import attrs
import pytest

from sinch_conv_async import (
    ApiError,
    ConversationClient,
    NotFoundError,
    RetryPolicy,
    TokenError,
)
from sinch_conv_async._wire.operations import GetMessage, ListMessages
from sinch_conv_async._wire.requests import Request, messages_path, request_head, serialized
from sinch_conv_async.sandbox import Sandbox
from tests.servers import ID, OTHER, Peer, Received, Server, http

openapi_core = pytest.importorskip("openapi_core")
# After it, because openapi-core brings them.
from openapi_core.datatypes import RequestParameters  # noqa: E402
from openapi_core.exceptions import OpenAPIError  # noqa: E402
from werkzeug.datastructures import Headers, ImmutableMultiDict  # noqa: E402

DOCUMENT = openapi_core.OpenAPI.from_file_path(str(Path(__file__).with_name("openapi.yaml")))
PROJECT = "01PROJECT"
PATH = messages_path(PROJECT)


@attrs.define
class Asked:
    """A request as openapi-core wants it."""

    received: Received
    parameters: RequestParameters

    @classmethod
    def of(cls, received: Received) -> Asked:
        query = ImmutableMultiDict(
            parse_qsl(urlsplit(received.target).query, keep_blank_values=True)
        )
        return cls(
            received, RequestParameters(query=query, header=Headers(list(received.headers.items())))
        )

    host_url = "http://127.0.0.1"
    method = property(lambda self: self.received.method.lower())
    path = property(lambda self: urlsplit(self.received.target).path)
    body = property(lambda self: self.received.body or None)
    content_type = property(lambda self: self.received.headers.get("content-type", ""))


@attrs.define
class Answered:
    """A response as openapi-core wants it."""

    status_code: int
    headers: Headers
    data: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "")


class Witness(Server):
    """Stands between client and sandbox, and holds what passes against the document."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(self._pass_on)
        self.sandbox = sandbox
        self.seen: Counter[tuple[str, int]] = Counter()
        self.objections: list[str] = []

    async def _pass_on(self, peer: Peer) -> None:
        async with aiohttp.ClientSession(self.sandbox.origin) as session:
            while True:
                received = await peer.receive()
                headers = {
                    name: value for name, value in received.headers.items() if name != "host"
                }
                async with session.request(
                    received.method, received.target, headers=headers, data=received.body or None
                ) as response:
                    body = await response.read()
                self._hold(
                    received,
                    Answered(response.status, Headers(list(response.headers.items())), body),
                )
                await peer.send(http(response.status, body, "Content-Type: application/json"))

    def _hold(self, received: Received, answered: Answered) -> None:
        asked = Asked.of(received)
        self.seen[
            asked.path.removeprefix(PATH).removeprefix(PATH[:-1]) or "list", answered.status_code
        ] += 1
        try:
            DOCUMENT.validate_request(asked)
            DOCUMENT.validate_response(asked, answered)
        except OpenAPIError as error:
            reasons = getattr(error.__cause__, "schema_errors", [])
            said = [reason.message for reason in reasons] or [str(error.__cause__ or error)]
            self.objections.append(
                f"{received.method} {received.target}: {error}: {'; '.join(said)}"
            )


def client_of(witness: Witness, **options) -> ConversationClient:
    given = {
        **witness.sandbox.client_options(),
        "project_id": PROJECT,
        "conversation_origin": witness.origin,
        "auth_origin": witness.origin,
        "retry": RetryPolicy(max_retries=0),
    }
    return ConversationClient(**{**given, **options})


async def raw(witness: Witness, operation, authorization: str):
    """One exchange with the bytes that the client sends for an operation."""
    reader, writer = await asyncio.open_connection("127.0.0.1", witness.port)
    head = request_head(operation.request, authorization, "test")
    writer.write(serialized(operation.request, head))
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body


@pytest.fixture
async def witness():
    async with Sandbox(project_id=PROJECT) as sandbox:
        for at, message_id in enumerate([ID, OTHER, "a.b_c~d-e"]):
            sandbox.add_message(
                message_id,
                metadata=f"old {at}",
                direction="TO_APP" if at == 1 else "TO_CONTACT",
                channel="WHATSAPP",
            )
        async with Witness(sandbox) as witness:
            yield witness


async def bearer(witness: Witness) -> str:
    async with client_of(witness) as client:
        await client.update_message_metadata(ID, "new")
    return witness.received[-1].headers["authorization"]


async def test_updates_and_tokens_fit_the_document(witness):
    async with client_of(witness) as client:
        for message_id in (ID, OTHER, "a.b_c~d-e"):
            for metadata in ("", "new", "é\N{GRINNING FACE}\0\n", '"' * 1024):
                message = await client.update_message_metadata(message_id, metadata)
                assert message.metadata == metadata
        await client.update_message_metadata(ID, "x", messages_source="CONVERSATION_SOURCE")
    assert witness.objections == []
    assert witness.seen["/oauth2/token", 200] == 1
    assert witness.seen[ID, 200] == 5


async def test_basic_authorization_fits_the_document(witness):
    async with client_of(witness, auth="basic") as client:
        await client.update_message_metadata(ID, "new")
    assert witness.objections == []
    assert witness.seen == {(ID, 200): 1}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 501, 503])
async def test_errors_fit_the_document(witness, status):
    witness.sandbox.fail_next(status, times=2)
    async with client_of(witness) as client:
        with pytest.raises(ApiError) as caught:
            await client.update_message_metadata(ID, "new")
    assert caught.value.http_status == status
    assert caught.value.message
    assert witness.objections == []
    assert witness.seen[ID, status] >= 1


async def test_a_message_that_is_not_there_and_a_wrong_key_fit_the_document(witness):
    async with client_of(witness) as client:
        with pytest.raises(ApiError):
            await client.update_message_metadata("01NOWHERE", "new")
    async with client_of(witness, key_secret="wrong-secret") as client:
        with pytest.raises(TokenError):
            await client.update_message_metadata(ID, "new")
    assert witness.objections == []
    assert witness.seen["01NOWHERE", 404] == 1
    assert (
        sum(
            count
            for (path, status), count in witness.seen.items()
            if path == "/oauth2/token" and status >= 400
        )
        == 1
    )


@pytest.mark.parametrize("source", [None, "CONVERSATION_SOURCE", "DISPATCH_SOURCE"])
async def test_reads_of_a_message_fit_the_document(witness, source):
    async with client_of(witness) as client:
        for message_id in (ID, OTHER, "a.b_c~d-e"):
            message = await client.get_message(message_id, messages_source=source)
            assert message.id == message_id
        with pytest.raises(NotFoundError):
            await client.get_message("01NOWHERE", messages_source=source)
    assert witness.objections == []
    assert witness.seen["01NOWHERE", 404] == 1


NOON = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
FILTERS = {
    "none": {},
    "texts": {
        "conversation_id": "01CONVERSATION",
        "contact_id": "01CONTACT",
        "app_id": "01APP",
        "channel_identity": "+46 70&1=é#",
    },
    "words": {
        "channel": "WHATSAPP",
        "direction": "TO_APP",
        "view": "WITHOUT_METADATA",
        "messages_source": "CONVERSATION_SOURCE",
    },
    "flags": {"only_recipient_originated": True},
    "a period": {"start_time": NOON, "end_time": NOON + datetime.timedelta(days=400)},
    "a page of one": {"page_size": 1},
    "the largest page": {"page_size": 1000},
}


@pytest.mark.parametrize("name", FILTERS)
async def test_lists_and_their_pages_fit_the_document(witness, name):
    async with client_of(witness) as client, client.list_messages(**FILTERS[name]) as messages:
        found = [message.id async for message in messages]
    assert len(set(found)) == len(found)
    assert witness.objections == []
    assert witness.seen["list", 200] == (3 if name == "a page of one" else 1)


async def test_the_document_objects_to_what_does_not_fit(witness):
    """A check that cannot fail would be none."""
    authorization = await bearer(witness)
    for change in ("?page_size=1001", "?direction=UP", "?page_size=ten"):
        operation = ListMessages.of(witness.origin, PATH)
        path = operation.request.target.partition("?")[0]
        bent = Request("GET", witness.origin, path + change)
        await raw(witness, ListMessages(bent), authorization)
    await raw(witness, GetMessage.of(witness.origin, PATH, ID), "Digest x")
    witness.sandbox.add_message("01ODD", extra={"direction": 7, "accept_time": "yesterday"})
    await raw(witness, GetMessage.of(witness.origin, PATH, "01ODD"), authorization)
    assert len(witness.objections) == 5
