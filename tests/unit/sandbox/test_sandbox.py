"""The sandbox, spoken to over plain loopback connections: what it answers, what it records, how it
misbehaves.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import socket
import ssl
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trustme

from sinch_conv_async.sandbox import Sandbox, SandboxMessage
from sinch_conv_async.sandbox.connections import refuse_unreadable
from sinch_conv_async.sandbox.faults import Gate
from tests.servers import Time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from typing import Self

ID = "01SANDBOXTESTMESSAGE000001"
OTHER = "01SANDBOXTESTMESSAGE000002"
PATH = f"/v1/projects/sandbox-project/messages/{ID}"
LIST = "/v1/projects/sandbox-project/messages"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@attrs.frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """A caller of the API on one connection to the sandbox."""

    def __init__(self, sandbox: Sandbox, *, ssl: ssl.SSLContext | None = None) -> None:
        self.sandbox = sandbox
        self.ssl = ssl
        self.token: str | None = None

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.sandbox.port, ssl=self.ssl
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: sandbox", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def read(self, *, body: bool = True) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])
        }
        length = int(headers.get("content-length", 0)) if body else 0
        return Answer(int(head[0].split()[1]), headers, await self.reader.readexactly(length))

    async def ask(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        self.send(method, target, headers, body)
        return await self.read(body=method != "HEAD")

    async def fetch_token(
        self,
        secret: str | None = None,
        *,
        method: str = "POST",
        headers: Mapping[str, str] = FORM,
        body: bytes = b"grant_type=client_credentials",
    ) -> Answer:
        options = self.sandbox.client_options()
        credentials = basic(options["key_id"], options["key_secret"] if secret is None else secret)
        answer = await self.ask(
            method, "/oauth2/token", {"Authorization": credentials, **headers}, body
        )
        with contextlib.suppress(ValueError, KeyError, TypeError):
            self.token = answer.json["access_token"]
        return answer

    def send_update(
        self, message_id: str = ID, metadata: object = "new", *, query: str = ""
    ) -> None:
        target = f"/v1/projects/{self.sandbox.client_options()['project_id']}/messages/{message_id}{query}"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self.send("PATCH", target, headers, json.dumps({"metadata": metadata}).encode())

    async def update(
        self, message_id: str = ID, metadata: object = "new", *, query: str = ""
    ) -> Answer:
        self.send_update(message_id, metadata, query=query)
        return await self.read()

    async def rest(self) -> bytes:
        """What comes until the sandbox closes the connection."""
        return await self.reader.read()


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def basic(name: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


async def until(fact: Callable[[], bool]) -> None:
    """Let the loop turn until something has come about that has no event of its own."""
    async with asyncio.timeout(10):
        while not fact():
            await asyncio.sleep(0.001)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        sandbox.add_message(ID, metadata="old")
        yield sandbox


@pytest.fixture
async def peer(sandbox: Sandbox) -> AsyncIterator[Caller]:
    async with Caller(sandbox) as peer:
        await peer.fetch_token()
        yield peer


class TestAnswers:
    async def test_an_update_is_applied_and_answered_with_every_field_of_the_specification(
        self, sandbox, peer
    ):
        answer = await peer.update(metadata="näw 🎉")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"] == f"{1:032x}"
        assert answer.headers["date"].endswith(" GMT")
        message = sandbox.messages[ID]
        assert answer.json == {
            "id": ID,
            "accept_time": message.accept_time,
            "channel_identity": {"identity": message.identity, "channel": "SMS", "app_id": ""},
            "contact_id": message.contact_id,
            "conversation_id": message.conversation_id,
            "direction": "TO_CONTACT",
            "metadata": "näw 🎉",
            "injected": False,
            "sender_id": "",
            "processing_mode": "CONVERSATION",
            "app_message": {"text_message": {"text": message.text}},
        }
        assert (message.metadata, message.updates, sandbox.updates_applied) == ("näw 🎉", 1, 1)

    async def test_a_message_from_a_contact_carries_a_contact_message(self, sandbox, peer):
        sandbox.add_message(
            OTHER, direction="TO_APP", channel="WHATSAPP", accept_time="2024-01-02T03:04:05Z"
        )
        body = (await peer.update(OTHER)).json
        assert "app_message" not in body
        assert body["contact_message"]["text_message"]["text"]
        assert body["channel_identity"]["channel"] == "WHATSAPP"
        assert body["accept_time"] == "2024-01-02T03:04:05Z"

    async def test_extra_is_laid_over_the_answer_and_omit_takes_fields_away(self, sandbox, peer):
        message = sandbox.add_message(
            OTHER, extra={"direction": None, "new": [1]}, omit=["id", "no_such_field"]
        )
        body = (await peer.update(OTHER)).json
        assert body["direction"] is None
        assert body["new"] == [1]
        assert "id" not in body
        message.extra.clear()
        assert (await peer.update(OTHER)).json["direction"] == "TO_CONTACT"

    async def test_an_id_may_be_percent_encoded(self, sandbox, peer):
        answer = await peer.update("%30" + ID[1:])
        assert answer.json["id"] == ID
        assert sandbox.requests[0].message_id == ID
        assert sandbox.requests[0].path == "/v1/projects/sandbox-project/messages/%30" + ID[1:]

    @pytest.mark.parametrize("source", ["CONVERSATION_SOURCE", "DISPATCH_SOURCE"])
    async def test_both_message_sources_are_known(self, sandbox, peer, source):
        assert (await peer.update(query=f"?messages_source={source}")).status == 200
        assert sandbox.requests[0].messages_source == source
        assert sandbox.requests[0].query == f"messages_source={source}"

    @pytest.mark.parametrize(
        "query",
        [
            "messages_source=",
            "messages_source=conversation_source",
            "messages_source=DISPATCH_SOURCE&messages_source=DISPATCH_SOURCE",
        ],
    )
    async def test_another_message_source_gets_400(self, sandbox, peer, query):
        answer = await peer.update(query="?" + query)
        assert answer.status == 400
        assert (
            answer.json["error"]["details"][0]["field_violations"][0]["field"] == "messages_source"
        )
        assert sandbox.messages[ID].metadata == "old"

    async def test_an_unknown_query_parameter_is_ignored(self, sandbox, peer):
        assert (await peer.update(query="?other=1")).status == 200
        assert sandbox.requests[0].messages_source is None

    @pytest.mark.parametrize(
        ("body", "recorded"),
        [
            (b"", None),
            (b"{", None),
            (b"\xff", None),
            (b"[" * 100_000, None),
            (b"[]", None),
            (b"null", None),
            (b"{}", None),
            (b'{"metadata": null}', None),
            (b'{"metadata": 1}', None),
            (json.dumps({"metadata": "x" * 1025}).encode(), "x" * 1025),
            (b'{"metadata": "\\ud800"}', "\ud800"),
        ],
    )
    async def test_a_body_that_is_not_what_the_api_takes_gets_400(
        self, sandbox, peer, body, recorded
    ):
        headers = {"Authorization": f"Bearer {peer.token}", "Content-Type": "application/json"}
        # A query in order does not hide what is wrong with the body.
        answer = await peer.ask("PATCH", PATH + "?messages_source=DISPATCH_SOURCE", headers, body)
        assert answer.status == 400
        assert answer.json["error"]["code"] == 400
        assert answer.json["error"]["status"] == "INVALID_ARGUMENT"
        assert sandbox.messages[ID].metadata == "old"
        assert sandbox.requests[0].metadata == recorded
        assert not sandbox.requests[0].applied

    async def test_1024_characters_fit_whatever_their_bytes(self, sandbox, peer):
        assert (await peer.update(metadata="🎉" * 1024)).status == 200
        assert sandbox.messages[ID].metadata == "🎉" * 1024

    @pytest.mark.parametrize("content_type", [None, "text/plain"])
    async def test_another_content_type_gets_400(self, sandbox, peer, content_type):
        headers = {"Authorization": f"Bearer {peer.token}"}
        if content_type is not None:
            headers["Content-Type"] = content_type
        assert (await peer.ask("PATCH", PATH, headers, b'{"metadata": "new"}')).status == 400

    async def test_the_content_type_may_name_a_charset(self, sandbox, peer):
        headers = {
            "Authorization": f"Bearer {peer.token}",
            "Content-Type": "Application/JSON; charset=utf-8",
        }
        assert (await peer.ask("PATCH", PATH, headers, b'{"metadata": "new"}')).status == 200

    async def test_an_unknown_id_gets_404(self, sandbox, peer):
        answer = await peer.update("nobody")
        assert answer.status == 404
        assert answer.json["error"]["status"] == "NOT_FOUND"

    async def test_auto_create_answers_for_any_id_of_a_known_project(self):
        async with Sandbox(auto_create=True) as sandbox, Caller(sandbox) as peer:
            await peer.fetch_token()
            assert (await peer.update("anybody")).json["id"] == "anybody"
            assert sandbox.messages["anybody"].metadata == "new"
            sandbox.fail_next(500, applied=True)
            target = "/v1/projects/nobodys/messages/somebody"
            await peer.ask(
                "PATCH", target, {"Content-Type": "application/json"}, b'{"metadata": ""}'
            )
            assert "somebody" not in sandbox.messages

    @pytest.mark.parametrize(
        "path", ["/", "/v1/projects/sandbox-project/messages/", "/v1/messages/x", PATH + "/y"]
    )
    async def test_an_unknown_path_gets_404(self, sandbox, peer, path):
        answer = await peer.ask("PATCH", path, {"Authorization": f"Bearer {peer.token}"}, b"{}")
        assert answer.status == 404
        assert answer.json["error"]["status"] == "NOT_FOUND"
        assert sandbox.requests[0].path == path
        assert sandbox.requests[0].message_id is None

    async def test_another_method_gets_405(self, peer):
        answer = await peer.ask("DELETE", PATH, {})
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, PATCH"
        assert answer.json["error"]["code"] == 405
        answer = await peer.ask("PATCH", LIST, {})
        assert (answer.status, answer.headers["allow"]) == (405, "GET")

    async def test_a_head_request_gets_no_body(self, peer):
        answer = await peer.ask("HEAD", PATH, {})
        assert answer.status == 405
        assert int(answer.headers["content-length"]) > 0
        assert (await peer.update()).status == 200

    async def test_a_connection_that_is_to_be_closed_is_closed(self, sandbox, peer):
        answer = await peer.ask("GET", PATH, {"Connection": "close"})
        assert answer.headers["connection"] == "close"
        assert await peer.rest() == b""

    async def test_a_scripted_answer_on_a_connection_to_be_closed_closes_it_too(
        self, sandbox, peer
    ):
        sandbox.fail_next(503)
        answer = await peer.ask("PATCH", PATH, {"Connection": "close"})
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert await peer.rest() == b""

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"PATCH /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf", b""),
            (
                b"PATCH /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
                b"400",
            ),
            (b"neither a request\r\n\r\n", b"400"),
        ],
        ids=["broken off", "not chunked", "no request line"],
    )
    async def test_a_request_that_does_not_arrive_in_full_is_none(
        self, sandbox, sent, status, caplog
    ):
        async with Caller(sandbox) as peer:
            peer.writer.write(sent)
            if not status:
                peer.writer.write_eof()
            assert (await peer.rest())[9:12] == status
        await until(lambda: sandbox.open_connections == 0)
        assert sandbox.requests == []
        assert not caplog.records

    @pytest.mark.parametrize("request_", [object(), SimpleNamespace(pre_handler_error=None)])
    def test_a_request_that_could_be_read_is_let_through(self, request_):
        refuse_unreadable(request_)

    def test_the_error_of_a_request_that_could_not_be_read_is_raised(self):
        error = ValueError("not HTTP")
        with pytest.raises(ValueError, match="not HTTP") as caught:
            refuse_unreadable(SimpleNamespace(pre_handler_error=error))
        assert caught.value is error

    async def test_a_field_that_is_no_json_is_logged_and_gets_500(self, sandbox, peer, caplog):
        sandbox.messages[ID].extra["odd"] = object()
        peer.send_update()
        assert (await peer.read()).status == 500
        assert [record.name for record in caplog.records] == ["sinch_conv_async.sandbox"]
        assert "not JSON serializable" in caplog.text


class TestCredentials:
    async def test_basic_authentication_is_accepted(self, sandbox):
        async with Caller(sandbox) as peer:
            headers = {
                "Authorization": basic("sandbox-key-id", "sandbox-key-secret"),
                "Content-Type": "application/json",
            }
            assert (await peer.ask("PATCH", PATH, headers, b'{"metadata": "new"}')).status == 200

    @pytest.mark.parametrize(
        "authorization",
        [
            "",
            "Bearer",
            "Bearer made-up",
            "Digest x",
            "Basic",
            "Basic ???",
            "Basic " + base64.b64encode(b"\xff").decode(),
            "Basic " + base64.b64encode(b"sandbox-key-id").decode(),
            basic("sandbox-key-id", "wrong"),
            basic("nobody", "sandbox-key-secret"),
        ],
    )
    async def test_bad_credentials_get_401_with_a_challenge(self, sandbox, authorization):
        async with Caller(sandbox) as peer:
            answer = await peer.ask("PATCH", PATH, {"Authorization": authorization}, b"{}")
        assert answer.status == 401
        assert answer.headers["www-authenticate"]

    async def test_another_project_gets_403(self, sandbox, peer):
        sandbox.add_project("second", key_id="k2", key_secret="s2")
        for project_id in ("second", "unknown"):
            headers = {"Authorization": f"Bearer {peer.token}", "Content-Type": "application/json"}
            target = f"/v1/projects/{project_id}/messages/{ID}"
            answer = await peer.ask("PATCH", target, headers, b'{"metadata": "new"}')
            assert answer.status == 403
            assert answer.json["error"]["status"] == "PERMISSION_DENIED"

    async def test_a_key_may_open_several_projects_but_messages_stay_in_theirs(self, sandbox, peer):
        sandbox.add_project("second", key_id="sandbox-key-id", key_secret="sandbox-key-secret")
        sandbox.add_message(OTHER, project_id="second")
        headers = {"Authorization": f"Bearer {peer.token}", "Content-Type": "application/json"}
        for message_id, status in ((OTHER, 200), (ID, 404)):
            target = f"/v1/projects/second/messages/{message_id}"
            assert (
                await peer.ask("PATCH", target, headers, b'{"metadata": "new"}')
            ).status == status

    async def test_projects_and_keys_are_told_apart(self, sandbox):
        with pytest.raises(ValueError, match="exists already"):
            sandbox.add_project("sandbox-project", key_id="k", key_secret="s")
        with pytest.raises(ValueError, match="another secret"):
            sandbox.add_project("second", key_id="sandbox-key-id", key_secret="s")
        sandbox.add_project("second", key_id="k2", key_secret="s2")
        assert sandbox.client_options("second") == {
            "project_id": "second",
            "key_id": "k2",
            "key_secret": "s2",
            "conversation_origin": sandbox.origin,
            "auth_origin": sandbox.origin,
        }
        with pytest.raises(KeyError):
            sandbox.client_options("third")

    async def test_a_rotated_secret_ends_the_old_one_but_no_token(self, sandbox, peer):
        sandbox.rotate_secret("sandbox-key-id", "fresh")
        refused = await peer.fetch_token("sandbox-key-secret")
        assert refused.status == 401
        assert refused.json["error"] == "invalid_client"
        assert (await peer.update()).status == 200
        assert (await peer.fetch_token()).status == 200


class TestTokens:
    async def test_a_token_is_issued_as_the_endpoint_does(self, sandbox):
        async with Caller(sandbox) as peer:
            answer = await peer.fetch_token()
        assert answer.status == 200
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json == {
            "access_token": peer.token,
            "expires_in": 3600,
            "scope": "",
            "token_type": "bearer",
        }
        record = sandbox.token_requests[0]
        assert (record.number, record.key_id, record.status) == (1, "sandbox-key-id", 200)

    @pytest.mark.parametrize(
        ("changes", "status", "error"),
        [
            ({"method": "GET"}, 405, "invalid_request"),
            ({"headers": {}}, 400, "invalid_request"),
            ({"body": b""}, 400, "invalid_request"),
            ({"body": b"grant_type=a&grant_type=b"}, 400, "invalid_request"),
            ({"body": b"grant_type=password"}, 400, "unsupported_grant_type"),
            ({"secret": "wrong"}, 401, "invalid_client"),
            ({"headers": {**FORM, "Authorization": ""}}, 401, "invalid_client"),
        ],
    )
    async def test_a_bad_token_request_gets_its_oauth_error(self, sandbox, changes, status, error):
        async with Caller(sandbox) as peer:
            answer = await peer.fetch_token(**changes)
        assert (answer.status, answer.json["error"]) == (status, error)
        assert sandbox.token_requests[0].status == status

    async def test_a_head_request_for_a_token_gets_no_body(self, sandbox):
        async with Caller(sandbox) as peer:
            assert (await peer.fetch_token(method="HEAD", body=b"")).status == 405
            assert (await peer.fetch_token(headers={**FORM, "Connection": "close"})).status == 200
            assert await peer.rest() == b""

    async def test_the_endpoint_is_a_token_bucket_without_retry_after(self):
        clock = Time()
        async with (
            Sandbox(token_burst=3, token_rate=10, clock=clock) as sandbox,
            Caller(sandbox) as peer,
        ):
            assert [(await peer.fetch_token()).status for _ in range(4)] == [200, 200, 200, 429]
            clock.now += 0.2
            refused = [await peer.fetch_token() for _ in range(3)]
            assert [answer.status for answer in refused] == [200, 200, 429]
            assert "retry-after" not in refused[2].headers
            clock.now += 3600
            assert [(await peer.fetch_token()).status for _ in range(4)] == [200, 200, 200, 429]

    async def test_the_endpoint_may_be_without_a_limit(self):
        async with Sandbox(token_burst=1, token_rate=None) as sandbox, Caller(sandbox) as peer:
            assert {(await peer.fetch_token()).status for _ in range(5)} == {200}

    async def test_a_token_expires_by_the_clock(self):
        clock = Time()
        async with Sandbox(token_lifetime=1.5, clock=clock) as sandbox, Caller(sandbox) as peer:
            sandbox.add_message(ID)
            assert (await peer.fetch_token()).json["expires_in"] == 1.5
            clock.now += 1.4
            assert (await peer.update()).status == 200
            clock.now += 0.1
            assert (await peer.update()).status == 401

    async def test_an_expired_token_is_told_by_a_bearer_challenge(self, sandbox, peer):
        sandbox.expire_tokens()
        answer = await peer.update()
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith(
            'Bearer error="invalid_token", error_description="Jwt expired at 2'
        )
        assert answer.json == {"error": "token expired"}
        await peer.fetch_token()
        assert (await peer.update()).status == 200

    async def test_a_revoked_token_is_told_by_a_problem_document(self, sandbox, peer):
        sandbox.revoke_tokens()
        answer = await peer.update()
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Basic realm="Realm"'
        assert answer.headers["content-type"] == "application/problem+json"
        assert b"expired" not in answer.body
        await peer.fetch_token()
        assert (await peer.update()).status == 200

    @pytest.mark.parametrize(("form", "challenge"), [("expired", "Bearer"), ("revoked", "Basic")])
    async def test_all_tokens_may_be_refused_until_it_is_taken_back(
        self, sandbox, peer, form, challenge
    ):
        sandbox.refuse_tokens(form)
        for _ in range(2):
            await peer.fetch_token()
            answer = await peer.update()
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith(challenge)
        sandbox.refuse_tokens(None)
        assert (await peer.update()).status == 200

    async def test_the_next_tokens_text_may_be_chosen(self, sandbox, peer):
        sandbox.next_token = "chosen"
        assert (await peer.fetch_token()).json["access_token"] == "chosen"
        assert (await peer.update()).status == 200
        assert (await peer.fetch_token()).json["access_token"] != "chosen"

    async def test_a_scripted_token_answer_is_sent_as_it_is_and_its_token_is_accepted(
        self, sandbox, peer
    ):
        sandbox.answer_next_token({"access_token": "odd", "expires_in": float("nan")})
        answer = await peer.fetch_token()
        assert answer.body == b'{"access_token": "odd", "expires_in": NaN}'
        assert (await peer.update()).status == 200

    async def test_a_scripted_token_answer_may_be_without_a_token(self, sandbox, peer):
        sandbox.answer_next_token({"access_token": 5}, times=2)
        assert [(await peer.fetch_token()).body for _ in range(2)] == [b'{"access_token": 5}'] * 2
        sandbox.answer_next_token({})
        assert (await peer.fetch_token()).json == {}

    @pytest.mark.parametrize(
        ("script", "content_type", "body"),
        [
            ({"error": "invalid_client"}, "application/json", b'{"error": "invalid_client"'),
            ({"body": "<html>", "content_type": "text/html"}, "text/html", b"<html>"),
            ({"body": b"\xff"}, "application/json", b"\xff"),
            ({}, None, b""),
        ],
    )
    async def test_token_requests_fail_as_scripted(self, sandbox, peer, script, content_type, body):
        sandbox.fail_next_token(503, retry_after=2, **script)
        answer = await peer.fetch_token()
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert answer.headers.get("content-type") == content_type
        assert answer.body.startswith(body)
        assert bool(answer.body) == bool(body)
        assert (await peer.fetch_token()).status == 200

    async def test_a_scripted_token_answer_costs_the_bucket_nothing_and_needs_no_credentials(self):
        async with (
            Sandbox(token_burst=1, token_rate=0, clock=Time()) as sandbox,
            Caller(sandbox) as peer,
        ):
            sandbox.fail_next_token(500)
            answer = await peer.ask("POST", "/oauth2/token", {})
            assert (answer.status, "retry-after" in answer.headers) == (500, False)
            assert sandbox.token_requests[0].key_id is None
            assert (await peer.fetch_token()).status == 200

    async def test_token_requests_are_dropped_as_scripted(self, sandbox, peer):
        sandbox.drop_next_token()
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await peer.fetch_token()
        assert caught.value.partial == b""
        assert sandbox.token_requests[-1].status is None

    async def test_token_requests_are_redirected_as_scripted(self, sandbox, peer):
        sandbox.redirect_next_token(307, "http://elsewhere.invalid/")
        answer = await peer.fetch_token()
        assert (answer.status, answer.headers["location"]) == (307, "http://elsewhere.invalid/")

    async def test_token_requests_are_delayed_as_scripted(self, sandbox, peer):
        sandbox.delay_next_token(0.001)
        assert (await peer.fetch_token()).status == 200
        sandbox.delay_next_token(3600)
        asking = asyncio.create_task(peer.fetch_token())
        await sandbox.wait_for_token_requests(3)
        async with Caller(sandbox) as other:
            assert (await other.fetch_token()).status == 200
        assert sandbox.token_requests[2].status is None
        await sandbox.close()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asking

    async def test_token_answers_may_be_held(self, sandbox, peer):
        sandbox.hold_tokens()
        sandbox.hold_tokens()
        asking = asyncio.create_task(peer.fetch_token())
        await sandbox.wait_for_token_requests(2)
        assert sandbox.token_requests[1].status is None
        assert (await other_update(sandbox, peer)).status == 200
        sandbox.release_tokens()
        assert (await asking).status == 200
        sandbox.release_tokens()


async def other_update(sandbox: Sandbox, peer: Caller) -> Answer:
    async with Caller(sandbox) as other:
        other.token = peer.token
        return await other.update()


class TestRateLimit:
    async def test_no_window_of_a_second_takes_more_and_the_refused_do_not_count(self):
        clock = Time()
        async with Sandbox(rate_limit=2, clock=clock) as sandbox, Caller(sandbox) as peer:
            sandbox.add_message(ID)
            await peer.fetch_token()
            assert (await peer.update()).status == 200
            clock.now += 0.6
            assert [(await peer.update()).status for _ in range(3)] == [200, 429, 429]
            clock.now += 0.4
            refused = [await peer.update() for _ in range(2)]
            assert [answer.status for answer in refused] == [200, 429]
            assert refused[1].json["error"]["status"] == "RESOURCE_EXHAUSTED"
            assert "retry-after" not in refused[1].headers
            assert sandbox.messages[ID].updates == 3

    async def test_each_project_has_its_own_and_bad_credentials_do_not_count(self):
        async with Sandbox(rate_limit=1, clock=Time()) as sandbox, Caller(sandbox) as peer:
            sandbox.add_project(
                "second", key_id="sandbox-key-id", key_secret="sandbox-key-secret", rate_limit=1
            )
            assert (await peer.update()).status == 401
            sandbox.fail_next(503)
            assert (await peer.update()).status == 503
            await peer.fetch_token()
            headers = {"Authorization": f"Bearer {peer.token}"}
            for project_id in ("sandbox-project", "second"):
                target = f"/v1/projects/{project_id}/messages/x"
                assert [(await peer.ask("PATCH", target, headers)).status for _ in range(2)] == [
                    400,
                    429,
                ]


class TestRecord:
    async def test_requests_are_recorded_in_order(self, sandbox, peer):
        await peer.update(metadata="1")
        await peer.update("nobody", "2", query="?a=b")
        first, second = sandbox.requests
        assert (first.number, first.method, first.path, first.query) == (1, "PATCH", PATH, "")
        assert (first.project_id, first.message_id, first.metadata) == ("sandbox-project", ID, "1")
        assert (first.status, first.applied, first.headers) == (200, True, None)
        assert first.messages_source is None
        assert (second.number, second.message_id, second.status, second.applied) == (
            2,
            "nobody",
            404,
            False,
        )
        assert first.time <= second.time

    async def test_headers_are_kept_when_asked_for(self):
        async with Sandbox(keep_headers=True) as sandbox, Caller(sandbox) as peer:
            await peer.ask("PATCH", PATH, {"X-Own": "1"})
            assert sandbox.requests[0].headers == {
                "host": "sandbox",
                "content-length": "0",
                "x-own": "1",
            }

    @pytest.mark.parametrize(("keep", "numbers"), [(2, [2, 3]), (0, [])])
    async def test_only_the_latest_are_kept_when_asked_for(self, keep, numbers):
        async with Sandbox(keep_requests=keep) as sandbox, Caller(sandbox) as peer:
            for _ in range(3):
                await peer.update()
                await peer.fetch_token()
            assert [request.number for request in sandbox.requests] == numbers
            assert [request.number for request in sandbox.token_requests] == numbers

    async def test_no_repr_shows_a_secret_a_token_or_metadata(self):
        options = {"key_secret": "canary-secret"}
        async with Sandbox(keep_headers=True, **options) as sandbox, Caller(sandbox) as peer:
            sandbox.add_message(ID, metadata="canary-old", extra={"metadata": "canary-extra"})
            sandbox.next_token = "canary-token"
            await peer.fetch_token()
            await peer.update(metadata="canary-new", query="?messages_source=DISPATCH_SOURCE")
            shown = repr([sandbox, sandbox.messages, sandbox.requests, sandbox.token_requests])
        assert ID in shown
        assert "canary" not in shown

    async def test_the_repr_tells_the_state_in_a_line(self, sandbox, peer):
        await peer.update()
        sandbox.fail_next(503, times=2)
        sandbox.fail_next(503, message_id=OTHER)
        sandbox.drop_next_token()
        shown = f"messages=1 requests=1 applied=1 in_flight=0 scripted={sandbox.pending_faults}>"
        assert repr(sandbox) == f"<Sandbox {sandbox.origin} {shown}"
        assert sandbox.pending_faults == 4
        await sandbox.close()
        assert repr(sandbox) == f"<Sandbox closed {shown}"

    async def test_connections_and_requests_in_flight_are_counted(self, sandbox, peer):
        async with Caller(sandbox) as second, sandbox.holding():
            second.token = peer.token
            peer.send_update()
            second.send_update()
            await sandbox.wait_for_requests(2)
            assert (sandbox.open_connections, sandbox.in_flight) == (2, 2)
        await peer.read()
        assert (sandbox.peak_connections, sandbox.peak_in_flight, sandbox.in_flight) == (2, 2, 0)
        await until(lambda: sandbox.open_connections == 1)
        await sandbox.close()
        assert (sandbox.peak_connections, sandbox.open_connections) == (2, 0)

    async def test_waiting_for_requests_ends_when_they_have_arrived(self, sandbox, peer):
        async with asyncio.TaskGroup() as group:
            one, both = (group.create_task(sandbox.wait_for_requests(number)) for number in (1, 2))
            given_up = group.create_task(sandbox.wait_for_requests(3))
            await peer.update()
            await one
            assert not both.done()
            await peer.update()
            await both
            given_up.cancel()
        await sandbox.wait_for_requests(2)


class TestHolding:
    async def test_held_answers_are_given_on_release_in_order_of_arrival(self, sandbox, peer):
        async with Caller(sandbox) as second:
            second.token = peer.token
            sandbox.hold()
            sandbox.hold()
            second.send_update(metadata="first")
            await sandbox.wait_for_requests(1)
            peer.send_update(metadata="second")
            await sandbox.wait_for_requests(2)
            assert sandbox.messages[ID].metadata == "old"
            assert sandbox.requests[0].status is None
            sandbox.release()
            sandbox.release()
            assert {(await second.read()).status, (await peer.read()).status} == {200}
            assert sandbox.messages[ID].metadata == "second"

    async def test_a_token_that_expires_while_the_answer_is_held_gets_401(self, sandbox, peer):
        async with sandbox.holding():
            peer.send_update()
            await sandbox.wait_for_requests(1)
            sandbox.expire_tokens()
        assert (await peer.read()).status == 401

    async def test_a_caller_who_has_gone_does_not_keep_the_update_from_being_made(
        self, sandbox, peer
    ):
        async with sandbox.holding():
            async with Caller(sandbox) as second:
                second.token = peer.token
                second.send_update()
                await sandbox.wait_for_requests(1)
            await until(lambda: sandbox.open_connections == 1)
        await until(lambda: sandbox.in_flight == 0)
        assert sandbox.messages[ID].metadata == "new"
        assert sandbox.requests[0].applied

    async def test_a_connection_that_has_gone_cannot_be_reset(self, sandbox, peer):
        sandbox.drop_next(reset=True)
        async with sandbox.holding():
            async with Caller(sandbox) as second:
                second.send_update()
                await sandbox.wait_for_requests(1)
            await until(lambda: sandbox.open_connections == 1)
        await until(lambda: sandbox.in_flight == 0)
        assert sandbox.requests[0].status is None


class TestFailing:
    async def test_the_next_requests_fail_and_then_all_is_well(self, sandbox, peer):
        sandbox.fail_next(503, times=2, retry_after=1)
        sandbox.fail_next(429)
        answers = [await peer.update() for _ in range(4)]
        assert [answer.status for answer in answers] == [503, 503, 429, 200]
        assert [answer.headers.get("retry-after") for answer in answers] == ["1", "1", None, None]
        error = answers[0].json["error"]
        assert (error["code"], error["status"]) == (503, "UNAVAILABLE")
        assert error["message"]
        assert set(error["details"][0]) == {"type_url", "value"}
        assert [request.applied for request in sandbox.requests] == [False, False, False, True]

    @pytest.mark.parametrize(
        ("retry_after", "sent"),
        [
            (0, "0"),
            (2.0, "2"),
            (0.5, "0.5"),
            ("Wed, 21 Oct 2015 07:28:00 GMT",) * 2,
            (float("nan"), "nan"),
        ],
    )
    async def test_retry_after_is_seconds_or_text(self, sandbox, peer, retry_after, sent):
        sandbox.fail_next(429, retry_after=retry_after)
        assert (await peer.update()).headers["retry-after"] == sent

    @pytest.mark.parametrize(
        ("body", "content_type", "held"),
        [
            ("envelope", "application/json", b'{"error": {"code": 502'),
            ("flat", "application/json", b'{"code": 502'),
            ("problem", "application/problem+json", b'{"type": "about:blank"'),
            ("html", "text/html", b"<html>"),
            ("text", "text/plain", b"upstream"),
            ("string", "application/json", b'{"error": "bad gateway"}'),
            (b"[1", "application/json", b"[1"),
        ],
    )
    async def test_an_error_takes_each_of_the_shapes_seen(
        self, sandbox, peer, body, content_type, held
    ):
        sandbox.fail_next(502, body=body)
        sandbox.fail_next(502, body=body, content_type="text/x-own", headers={"X-Own": "1"})
        answer = await peer.update()
        assert (answer.status, answer.headers["content-type"]) == (502, content_type)
        assert answer.body.startswith(held)
        answer = await peer.update()
        assert (answer.headers["content-type"], answer.headers["x-own"]) == ("text/x-own", "1")

    async def test_an_error_may_be_without_a_body(self, sandbox, peer):
        sandbox.fail_next(500, body="empty")
        answer = await peer.update()
        assert (answer.headers["content-length"], answer.headers.get("content-type")) == ("0", None)

    async def test_a_status_that_has_no_body_gets_none(self, sandbox, peer):
        sandbox.fail_next(204)
        answer = await peer.update()
        assert answer.status == 204
        assert "content-length" not in answer.headers
        assert (await peer.update()).status == 200

    async def test_a_status_nobody_knows_is_sent(self, sandbox, peer):
        sandbox.fail_next(599)
        answer = await peer.update()
        assert (answer.status, answer.json["error"]["status"]) == (599, "UNKNOWN")

    async def test_a_failure_may_come_after_the_update_was_made(self, sandbox, peer):
        sandbox.fail_next(504, applied=True)
        assert (await peer.update()).status == 504
        assert sandbox.messages[ID].metadata == "new"
        assert (sandbox.requests[0].status, sandbox.requests[0].applied) == (504, True)

    async def test_a_failure_hits_whatever_comes_next(self, sandbox, peer):
        sandbox.fail_next(500, times=2, applied=True)
        assert (await peer.ask("GET", PATH, {})).status == 500
        assert (await peer.ask("PATCH", "/nowhere", {})).status == 500
        assert sandbox.updates_applied == 0

    async def test_a_script_for_one_message_waits_for_it_and_older_scripts_go_first(
        self, sandbox, peer
    ):
        sandbox.fail_next(500, message_id=OTHER)
        sandbox.fail_next(502)
        sandbox.fail_next(503, message_id=OTHER)
        sandbox.fail_next(504)
        assert (await peer.update(ID)).status == 502
        assert [(await peer.update(OTHER)).status for _ in range(4)] == [500, 503, 504, 404]
        sandbox.fail_next(502)
        sandbox.fail_next(503, message_id=OTHER, times=2)
        assert [(await peer.update(OTHER)).status for _ in range(4)] == [502, 503, 503, 404]
        sandbox.fail_next(503, message_id=OTHER)
        assert (await peer.update(ID)).status == 200

    async def test_scripts_are_forgotten_on_request(self, sandbox, peer):
        sandbox.fail_next(500)
        sandbox.fail_next(500, message_id=ID)
        sandbox.drop_next_token()
        sandbox.refuse_tokens()
        sandbox.clear_faults()
        assert sandbox.pending_faults == 0
        assert (await peer.update()).status == 200

    @pytest.mark.parametrize("status", [100, 199, 600])
    async def test_only_final_statuses_can_be_scripted(self, sandbox, status):
        with pytest.raises(ValueError, match="status"):
            sandbox.fail_next(status)

    async def test_scripts_of_no_request_are_refused(self, sandbox):
        with pytest.raises(ValueError, match="times"):
            sandbox.fail_next(500, times=0)
        with pytest.raises(ValueError, match="times"):
            sandbox.drop_next_token(times=0)
        with pytest.raises(ValueError, match="shape"):
            sandbox.fail_next(500, body="sonnet")

    async def test_a_redirect_names_its_location(self, sandbox, peer):
        sandbox.redirect_next(303, "http://elsewhere.invalid/?a=b")
        answer = await peer.update()
        assert (answer.status, answer.headers["location"]) == (303, "http://elsewhere.invalid/?a=b")
        assert sandbox.messages[ID].metadata == "old"


class TestWireFaults:
    @pytest.mark.parametrize("applied", [False, True])
    @pytest.mark.parametrize(
        ("when", "seen"),
        [("before_answer", 0), ("mid_headers", 1), ("mid_body", 2), ("after_answer", 3)],
    )
    async def test_a_connection_is_dropped_at_the_point_asked_for(
        self, sandbox, peer, when, seen, applied
    ):
        sandbox.drop_next(when=when, applied=applied)
        peer.send_update()
        received = await peer.rest()
        head, blank, body = received.partition(b"\r\n\r\n")
        assert bool(received) == (seen > 0)
        assert bool(blank) == (seen > 1)
        if seen:
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"Connection: close" not in head
        if seen == 2:
            assert body.startswith(b'{"id": ')
            with pytest.raises(ValueError):
                json.loads(body)
        if seen == 3:
            assert json.loads(body)["metadata"] == "new"
        changed = applied or seen == 3
        assert sandbox.requests[0].applied == changed
        assert sandbox.messages[ID].metadata == ("new" if changed else "old")
        assert sandbox.requests[0].status == (200 if seen == 3 else None)

    @pytest.mark.parametrize("when", ["before_answer", "after_answer"])
    async def test_a_connection_is_reset(self, sandbox, peer, when):
        sandbox.drop_next(when=when, reset=True)
        peer.send_update()
        with pytest.raises(ConnectionResetError):
            await peer.rest()

    async def test_a_delayed_request_lets_others_pass(self, sandbox, peer):
        sandbox.delay_next(3600)
        peer.send_update(metadata="late")
        await sandbox.wait_for_requests(1)
        assert (await other_update(sandbox, peer)).status == 200
        assert sandbox.requests[0].status is None
        assert sandbox.messages[ID].metadata == "new"

    async def test_a_delayed_request_is_served_after_its_wait(self, sandbox, peer):
        sandbox.delay_next(0.001)
        assert (await peer.update()).status == 200

    async def test_a_delayed_request_may_change_the_message_before_its_wait(self, sandbox, peer):
        sandbox.delay_next(0.001, applied=True)
        assert (await peer.update()).status == 200
        sandbox.delay_next(3600, applied=True)
        peer.send_update(metadata="newer")
        await sandbox.wait_for_requests(2)
        assert sandbox.messages[ID].metadata == "newer"
        assert sandbox.requests[1].status is None

    @pytest.mark.parametrize(("number", "failed"), [(1, 30), (5, 6), (30, 1), (31, 0)])
    async def test_every_so_many_requests_a_fault_comes_again_also_for_those_that_arrive_together(
        self, sandbox, peer, number, failed
    ):
        sandbox.every(number, lambda: sandbox.fail_next(503))
        answers = await asyncio.gather(*(other_update(sandbox, peer) for _ in range(30)))
        assert [answer.status for answer in answers].count(503) == failed
        sandbox.clear_faults()
        assert (await peer.update()).status == 200

    async def test_every_time_is_not_often_enough(self, sandbox):
        with pytest.raises(ValueError, match="1 or more"):
            sandbox.every(0, sandbox.expire_tokens)

    async def test_latency_delays_every_answer(self, sandbox, peer):
        sandbox.latency = 0.001
        sandbox.fail_next(503)
        assert [(await peer.update()).status for _ in range(2)] == [503, 200]
        sandbox.latency = 3600
        peer.send_update()
        await sandbox.wait_for_requests(3)
        sandbox.latency = 0
        assert (await other_update(sandbox, peer)).status == 200
        assert sandbox.requests[2].status is None

    async def test_a_body_trickles_in_byte_by_byte(self, sandbox, peer):
        sandbox.trickle_next(0.00001)
        peer.send_update()
        assert (await peer.read()).json["metadata"] == "new"

    async def test_a_trickle_ends_when_the_caller_has_gone(self, sandbox, peer):
        sandbox.trickle_next(0.01)
        async with Caller(sandbox) as second:
            second.token = peer.token
            second.send_update()
            await second.reader.readuntil(b"\r\n\r\n")
        await until(lambda: sandbox.in_flight == 0)
        assert sandbox.open_connections == 1

    async def test_a_raw_answer_is_sent_to_the_byte(self, sandbox, peer):
        raw = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
        sandbox.answer_next(raw)
        peer.send_update()
        assert await peer.reader.readexactly(len(raw)) == raw
        assert sandbox.requests[0].status == 200
        assert (await peer.update()).status == 200

    async def test_a_raw_answer_may_end_the_connection_and_be_no_http_at_all(self, sandbox, peer):
        sandbox.answer_next(b"SSH-2.0-nonsense\r\n", close=True, applied=True)
        peer.send_update()
        assert await peer.rest() == b"SSH-2.0-nonsense\r\n"
        assert sandbox.requests[0].status is None
        assert sandbox.messages[ID].metadata == "new"

    async def test_a_swapped_answer_belongs_to_another_message(self, sandbox, peer):
        sandbox.swap_next(times=3, applied=True)
        made_up = (await peer.update()).json
        assert made_up["id"] not in sandbox.messages
        assert sandbox.messages[ID].metadata == "new"
        sandbox.add_message(OTHER, metadata="others")
        assert (await peer.update()).json["id"] == OTHER
        assert (await peer.update(OTHER)).json["id"] == ID

    @pytest.mark.parametrize("after", [0, 0.001])
    async def test_an_unsolicited_answer_follows_the_one_asked_for(self, sandbox, peer, after):
        sandbox.unsolicited_next(after=after)
        answer = await peer.update()
        assert answer.json["metadata"] == "new"
        await sandbox.wait_for_unsolicited(1)
        second = await peer.read()
        assert (second.status, second.json["id"], second.json["metadata"]) == (
            200,
            ID,
            "unsolicited",
        )
        assert (await peer.update(metadata="newer")).json["metadata"] == "newer"

    async def test_an_unsolicited_answer_may_be_an_error_or_any_bytes(self, sandbox, peer):
        sandbox.unsolicited_next(status=404, after=0)
        sandbox.unsolicited_next(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", after=0)
        for status in (404, 500):
            assert (await peer.update()).status == 200
            assert (await peer.read()).status == status

    async def test_an_unsolicited_answer_for_a_caller_who_has_gone_is_lost(self, sandbox, peer):
        sandbox.unsolicited_next(after=0.05)
        async with Caller(sandbox) as second:
            second.token = peer.token
            await second.update()
        await sandbox.wait_for_unsolicited(1)
        assert (await peer.update()).status == 200

    async def test_unsolicited_answers_can_be_sent_on_idle_connections_at_once(self, sandbox, peer):
        async with Caller(sandbox) as second, sandbox.holding():
            second.token = peer.token
            second.send_update()
            await sandbox.wait_for_requests(1)
            assert sandbox.send_unsolicited() == 1
            assert sandbox.send_unsolicited(b"HTTP/1.1 204 No Content\r\n\r\n") == 1
            assert [(await peer.read()).status for _ in range(2)] == [200, 204]
            sandbox.release()
            assert (await second.read()).json["metadata"] == "new"

    async def test_idle_connections_can_be_closed_at_once(self, sandbox, peer):
        async with Caller(sandbox) as second, sandbox.holding():
            second.token = peer.token
            second.send_update()
            await sandbox.wait_for_requests(1)
            assert sandbox.close_idle() == 1
            assert await peer.rest() == b""
            sandbox.release()
            assert (await second.read()).status == 200


class TestLife:
    async def test_starting_and_closing_twice_is_fine(self):
        sandbox = Sandbox()
        await sandbox.close()
        await sandbox.start()
        port = sandbox.port
        await sandbox.start()
        assert sandbox.port == port
        await sandbox.close()
        await sandbox.close()
        assert sandbox.send_unsolicited() == 0

    async def test_it_has_no_origin_before_it_is_started(self):
        sandbox = Sandbox()
        with pytest.raises(RuntimeError, match="started"):
            _ = sandbox.origin
        assert "closed" in repr(sandbox)

    async def test_started_again_it_is_at_the_same_port_and_knows_what_it_knew(self, sandbox, peer):
        port = sandbox.port
        await sandbox.close()
        with pytest.raises(ConnectionError):
            await other_update(sandbox, peer)
        await sandbox.start()
        assert sandbox.port == port
        assert (await other_update(sandbox, peer)).status == 200

    async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(self, sandbox):
        second = Sandbox(port=sandbox.port)
        with pytest.raises(OSError, match="address already in use"):
            await second.start()
        assert second.open_connections == 0

    async def test_closing_resets_idle_and_waiting_connections(self, sandbox, peer):
        sandbox.hold()
        async with Caller(sandbox) as waiting:
            waiting.send_update()
            await sandbox.wait_for_requests(1)
            await sandbox.close()
            assert sandbox.in_flight == 0
            for connection in (peer, waiting):
                with contextlib.suppress(ConnectionResetError):
                    assert await connection.rest() == b""

    @pytest.mark.parametrize("turns", range(4))
    async def test_a_connection_that_is_just_being_accepted_is_closed_too(self, sandbox, turns):
        with socket.create_connection(("127.0.0.1", sandbox.port)) as connection:
            for _ in range(turns):
                await asyncio.sleep(0)
            await sandbox.close()
            connection.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""

    async def test_it_serves_until_cancelled(self):
        sandbox = Sandbox()
        serving = asyncio.create_task(sandbox.serve_forever())
        await until(lambda: "closed" not in repr(sandbox))
        async with Caller(sandbox) as peer:
            assert (await peer.fetch_token()).status == 200
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert "closed" in repr(sandbox)

    def test_one_that_was_never_closed_warns(self):
        async def forget() -> None:
            await Sandbox().start()

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            asyncio.run(forget())
            gc.collect()
        assert any(
            "was never closed" in str(w.message) for w in caught if w.category is ResourceWarning
        )

    def test_one_that_was_never_made_does_not(self):
        with pytest.raises(TypeError):
            Sandbox(no_such_argument=1)
        gc.collect()

    async def test_it_speaks_tls(self):
        authority = trustme.CA()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server)
        authority.configure_trust(client)
        async with Sandbox(ssl=server) as sandbox:
            assert (
                sandbox.conversation_origin
                == sandbox.auth_origin
                == f"https://127.0.0.1:{sandbox.port}"
            )
            sandbox.add_message(ID)
            async with Caller(sandbox, ssl=client) as peer:
                await peer.fetch_token()
                assert (await peer.update()).status == 200
                sandbox.drop_next(reset=True)
                peer.send_update()
                with pytest.raises(ConnectionError):
                    await peer.rest()
            # A handshake that ends after the sandbox was closed leads nowhere.
            connection = socket.create_connection(("127.0.0.1", sandbox.port))
            for _ in range(5):
                await asyncio.sleep(0)
            await sandbox.close()

            def shake_hands() -> bytes:
                connection.settimeout(10)
                with client.wrap_socket(connection, server_hostname="127.0.0.1") as wrapped:
                    return wrapped.recv(1)

            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert await asyncio.to_thread(shake_hands) == b""

    async def test_an_ipv6_host_is_bracketed_in_the_origin(self):
        sandbox = Sandbox(host="::1", port=1)
        assert sandbox.origin == "http://[::1]:1"

    @pytest.mark.parametrize(
        ("host", "origin"),
        [("", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1")],
    )
    def test_the_origin_of_one_that_listens_on_all_addresses_is_the_loopbacks(self, host, origin):
        assert Sandbox(host=host, port=1).origin == origin

    def test_a_message_has_a_repr_without_its_metadata(self):
        message = SandboxMessage(id="a", metadata="canary", project_id="p", accept_time="t")
        assert "canary" not in repr(message)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda sandbox: sandbox.drop_next(when="befor_answer"),
        lambda sandbox: sandbox.refuse_tokens("gone"),
    ],
)
async def test_a_word_that_is_none_is_refused_with_those_that_are(sandbox, misuse):
    with pytest.raises(ValueError, match=r"must be one of .*, not '"):
        misuse(sandbox)
    assert sandbox.pending_faults == 0


# What a user's function is told


async def test_each_request_that_is_over_is_told(caplog):
    told = []
    async with Sandbox(on_request=told.append) as sandbox, Caller(sandbox) as peer:
        await peer.fetch_token()
        await peer.update("nobody")
        sandbox.drop_next()
        peer.send_update()
        assert await peer.rest() == b""
    assert [type(each).__name__ for each in told] == [
        "SandboxTokenRequest",
        "SandboxRequest",
        "SandboxRequest",
    ]
    assert [each.status for each in told] == [200, 404, None]


async def test_an_error_of_the_function_is_logged_and_changes_no_answer(caplog):
    def fail(request):
        raise LookupError(request.number)

    async with Sandbox(on_request=fail, auto_create=True) as sandbox, Caller(sandbox) as peer:
        await peer.fetch_token()
        assert (await peer.update()).status == 200
        assert (await peer.update()).status == 200
    assert [record.getMessage() for record in caplog.records] == ["on_request failed"] * 3


# Several scripts, methods, dice


async def test_a_script_may_be_for_one_method(sandbox, peer):
    sandbox.fail_next(503, method="PATCH")
    sandbox.fail_next(404, message_id=ID, method="GET")
    sandbox.fail_next(500, message_id=ID)
    authorization = {"Authorization": f"Bearer {peer.token}"}
    assert (await peer.ask("GET", LIST, authorization)).status == 200
    assert (await peer.ask("GET", PATH, authorization)).status == 404
    assert (await peer.ask("GET", PATH, authorization)).status == 500
    assert (await peer.update(OTHER)).status == 503
    assert (await peer.update()).status == 200


async def test_a_share_of_the_requests_fails_the_same_ones_for_a_seed():
    async def statuses(seed: int) -> list[int]:
        async with Sandbox(auto_create=True) as sandbox, Caller(sandbox) as peer:
            await peer.fetch_token()
            sandbox.at_random(0.2, lambda: sandbox.fail_next(429), seed=seed)
            return [(await peer.update()).status for _ in range(200)]

    one = await statuses(1)
    assert one == await statuses(1)
    assert one != await statuses(2)
    assert 20 <= one.count(429) <= 60


async def test_the_rate_limit_may_be_a_token_bucket():
    clock = Time()
    async with (
        Sandbox(rate_limit=2, rate_burst=3, auto_create=True, clock=clock) as sandbox,
        Caller(sandbox) as peer,
    ):
        await peer.fetch_token()
        assert [(await peer.update()).status for _ in range(4)] == [200, 200, 200, 429]
        clock.now += 0.5
        assert [(await peer.update()).status for _ in range(2)] == [200, 429]


async def test_the_limit_is_one_for_all_connections():
    async with Sandbox(rate_limit=3, auto_create=True, clock=Time()) as sandbox:
        statuses = []
        for _ in range(5):
            async with Caller(sandbox) as peer:
                await peer.fetch_token()
                statuses.append((await peer.update()).status)
    assert statuses == [200, 200, 200, 429, 429]


async def test_a_caller_who_goes_while_the_answer_is_held_is_not_in_the_way(sandbox, peer):
    sandbox.hold()
    async with Caller(sandbox) as gone:
        gone.token = peer.token
        gone.send_update()
        await sandbox.wait_for_requests(1)
    peer.send_update()
    await sandbox.wait_for_requests(2)
    sandbox.release()
    assert (await peer.read()).status == 200


def test_one_who_was_held_on_a_loop_that_is_closed_is_not_in_the_way():
    gate = Gate()
    gate.shut()
    held = gate.passed()

    async def begin() -> None:
        held.send(None)

    asyncio.run(begin())
    gate.open()
    assert not gate.is_shut
    held.close()


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
async def test_one_that_listens_on_all_addresses_has_one_port_on_all_of_them():
    async with Sandbox(host="") as sandbox:
        for address in ("127.0.0.1", "::1"):
            _, writer = await asyncio.open_connection(address, sandbox.port)
            writer.close()
            await writer.wait_closed()
