"""The control API under /_sandbox/, spoken to as a program in another language does."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import pytest

from sinch_conv_async.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

LIST = "/v1/projects/sandbox-project/messages"


class Caller:
    """Speaks to a sandbox over one connection, with the made-up key's Basic credentials."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=30)

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        content_type: str | None = "application/json",
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Authorization": "Basic c2FuZGJveC1rZXktaWQ6c2FuZGJveC1rZXktc2VjcmV0"}
        if data is not None and content_type is not None:
            headers["Content-Type"] = content_type
        self.connection.request(method, path, data, headers)
        response = self.connection.getresponse()
        self.headers = response.headers
        return response.status, json.loads(response.read())

    def control(self, method: str, path: str, body: object = None) -> Any:
        status, answer = self.send(method, f"/_sandbox/{path}", body)
        assert status == 200, answer
        return answer

    def update(self, message_id: str, metadata: str = "new") -> int:
        return self.send("PATCH", f"{LIST}/{message_id}", {"metadata": metadata})[0]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def caller(sandbox: Sandbox) -> Iterator[Caller]:
    caller = Caller(sandbox)
    yield caller
    caller.connection.close()


def test_messages_are_added_shown_and_forgotten(sandbox, caller):
    assert caller.control("POST", "messages", {"id": "a", "metadata": "old"}) == {"added": 1}
    assert caller.control(
        "POST", "messages", [{"id": "b"}, {"message_id": "c/d", "app_id": "x"}]
    ) == {"added": 2}
    assert caller.update("a") == 200
    shown = caller.control("GET", "messages/a")
    assert (shown["metadata"], shown["updates"], shown["omit"]) == ("new", 1, [])
    assert caller.control("GET", "messages/c%2Fd")["app_id"] == "x"
    assert [each["id"] for each in caller.control("GET", "messages")["messages"]] == [
        "a",
        "b",
        "c/d",
    ]
    assert caller.control("DELETE", "messages/a") == {}
    assert list(sandbox.messages) == ["b", "c/d"]
    assert caller.control("DELETE", "messages") == {}
    assert caller.send("GET", "/_sandbox/messages/b")[0] == 404
    assert caller.send("DELETE", "/_sandbox/messages/b")[0] == 404


def test_a_message_as_the_api_answers_it_can_be_put_back(sandbox, caller):
    sandbox.add_message("a", metadata="m", direction="TO_APP", extra={"app_id": "x"})
    _, answered = caller.send("GET", f"{LIST}/a")
    del answered["app_id"]
    caller.control("DELETE", "messages")
    caller.control("POST", "messages", answered)
    assert caller.send("GET", f"{LIST}/a")[1] == answered


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("a", "a message is a JSON object"),
        ({}, "a message needs an id"),
        ({"id": 1}, "id must be text"),
        ({"id": "a", "metdata": "x"}, "a message has no attribute 'metdata'"),
        ({"id": "a", "channel_identity": 1}, "channel_identity must be an object"),
        ({"id": "a", "extra": 1}, "extra must be an object"),
        ({"id": "a", "omit": [1]}, "omit must be a list of texts"),
        ({"id": "a", "injected": "no"}, "injected must be true or false"),
        ({"id": "a", "project_id": "nobody's"}, 'there is no project "nobody\'s"'),
        ([{"id": "b"}, {"id": ""}], "a message needs an id"),
    ],
)
def test_a_message_that_is_not_valid_is_refused_and_none_is_added(sandbox, caller, body, sentence):
    status, answer = caller.send("POST", "/_sandbox/messages", body)
    assert (status, answer["error"]) == (400, sentence)
    assert sandbox.messages == {}


def test_what_arrived_is_told_and_forgotten(sandbox, caller):
    sandbox.add_message("a")
    caller.update("a", "one")
    caller.update("nobody", "two")
    caller.send("POST", "/oauth2/token")
    first, second = caller.control("GET", "requests")["requests"]
    assert (first["number"], first["method"], first["path"]) == (1, "PATCH", f"{LIST}/a")
    assert (first["metadata"], first["status"], first["applied"], first["headers"]) == (
        "one",
        200,
        True,
        None,
    )
    assert (second["message_id"], second["status"], second["applied"]) == ("nobody", 404, False)
    assert caller.control("GET", "requests?after=1")["requests"] == [second]
    assert caller.send("GET", "/_sandbox/requests?after=x")[0] == 400
    (token,) = caller.control("GET", "token_requests")["token_requests"]
    assert (token["number"], token["key_id"], token["status"]) == (1, "sandbox-key-id", 400)
    assert caller.control("DELETE", "requests") == {}
    assert caller.control("DELETE", "token_requests") == {}
    assert (sandbox.requests, sandbox.token_requests) == ([], [])


def test_a_fault_hits_the_next_request(sandbox, caller):
    sandbox.add_message("a")
    fault = {"fault": "fail_next", "status": 503, "times": 2, "retry_after": 1, "method": "PATCH"}
    assert caller.control("POST", "faults", fault) == {"pending": 2}
    assert caller.send("GET", f"{LIST}/a")[0] == 200
    assert caller.update("a") == 503
    assert caller.headers["retry-after"] == "1"
    assert caller.control("GET", "faults") == {"pending": 1}
    assert caller.control("DELETE", "faults") == {"pending": 0}
    assert caller.update("a") == 200


def test_a_fault_comes_again_by_number_or_at_random(sandbox, caller):
    sandbox.add_message("a")
    caller.control("POST", "faults", {"fault": "fail_next", "status": 503, "every": 3})
    assert [caller.update("a") for _ in range(6)] == [200, 200, 503, 200, 200, 503]
    caller.control("DELETE", "faults")
    caller.control("POST", "faults", {"fault": "fail_next", "status": 429, "share": 0.5, "seed": 7})
    once = [caller.update("a") for _ in range(40)]
    assert {*once} == {200, 429}
    caller.control("DELETE", "faults")
    caller.control("POST", "faults", {"fault": "fail_next", "status": 429, "share": 0.5, "seed": 7})
    assert [caller.update("a") for _ in range(40)] == once


def test_bytes_are_sent_as_they_are_given(caller):
    raw = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    caller.control("POST", "faults", {"fault": "answer_next", "raw": raw})
    assert caller.send("GET", LIST) == (200, {})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ([], "fault must be one of fail_next, "),
        ({"fault": ["fail_next"]}, "fault must be one of fail_next, "),
        ({"fault": "start"}, "fault must be one of fail_next, "),
        ({"fault": "fail_next"}, "fail_next needs status"),
        ({"fault": "fail_next", "status": "503"}, "status must be a whole number"),
        ({"fault": "fail_next", "status": True}, "status must be a whole number"),
        (
            {"fault": "fail_next", "status": 503, "headers": {"a": 1}},
            "headers must be an object of texts",
        ),
        ({"fault": "fail_next", "status": 99}, "status must be that of a final answer"),
        ({"fault": "fail_next", "status": 99, "every": 2}, "status must be that of a final answer"),
        ({"fault": "fail_next", "status": 503, "every": 0}, "number must be 1 or more"),
        ({"fault": "fail_next", "status": 503, "share": 2}, "share must be between 0 and 1"),
        (
            {"fault": "fail_next", "status": 503, "every": 2, "share": 0.1},
            "a fault comes again with",
        ),
        ({"fault": "fail_next", "status": 503, "seed": 2}, "a fault comes again with"),
        ({"fault": "delay_next", "seconds": -1}, "seconds must be a number of seconds, 0 or more"),
        ({"fault": "hold", "times": 1}, "hold knows no 'times', only every, share, seed"),
    ],
)
def test_a_fault_that_is_not_valid_is_refused_at_once(sandbox, caller, body, sentence):
    status, answer = caller.send("POST", "/_sandbox/faults", body)
    assert status == 400
    assert answer["error"].startswith(sentence)
    assert caller.send("GET", LIST)[0] == 200
    assert sandbox.pending_faults == 0


def test_the_sandbox_tells_its_state_and_changes_its_latency(sandbox, caller):
    assert caller.control("GET", "") == {
        "latency": 0.0,
        "messages": 0,
        "updates_applied": 0,
        "in_flight": 0,
        "open_connections": 1,
        "pending_faults": 0,
    }
    assert caller.control("PATCH", "", {"latency": 0.001})["latency"] == 0.001
    assert sandbox.latency == 0.001
    assert caller.control("PATCH", "", {})["latency"] == 0.001
    assert caller.send("PATCH", "/_sandbox/", {"latency": -1})[0] == 400
    assert caller.send("PATCH", "/_sandbox/", []) == (
        400,
        {"error": "the body must be a JSON object"},
    )


def test_the_control_api_is_no_part_of_the_api(sandbox, caller):
    sandbox.fail_next(503)
    sandbox.hold()
    caller.control("GET", "requests")
    assert (sandbox.requests, sandbox.pending_faults) == ([], 1)


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type", "status"),
    [
        ("GET", "nothing", None, None, 404),
        ("GET", "faults/x", None, None, 404),
        ("PUT", "messages", {"id": "a"}, "application/json", 405),
        ("POST", "messages", {"id": "a"}, None, 415),
        ("POST", "messages", {"id": "a"}, "text/plain", 415),
        ("POST", "messages", b"{", "application/json", 400),
        ("POST", "messages", b"[" * 100_000, "application/json", 400),
    ],
)
def test_what_it_does_not_serve_is_an_error_with_a_sentence(
    caller, method, path, body, content_type, status
):
    answered, answer = caller.send(method, f"/_sandbox/{path}", body, content_type)
    assert answered == status
    assert answer["error"].endswith(".")
    if status == 405:
        assert caller.headers["allow"] == "GET, POST, DELETE"
