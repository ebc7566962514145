"""Whatever a server may answer, over a real socket: the call ends in its own message or a typed
error, says no secret, and the next call is as good as new.

Hypothesis thinks the answers up, with many more examples in ``nox -s fuzz``. Answers that once did
harm, here or to others, are kept in ``fuzz_samples`` and replayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import pickle
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinch_conv_async import (
    ApiError,
    ConversationClient,
    ConversationMessage,
    RetryPolicy,
    SinchError,
    to_dict,
)
from sinch_conv_async._wire.arguments import basic_authorization, checked_credentials
from tests.servers import ID, Peer, Server, http, updated

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = Path(__file__).parent / "fuzz_samples"

KEY, SECRET, TOKEN = "fuzz-key", "fuzz-secret-0123456789", "fuzz-token-0123456789"
BASIC = basic_authorization(checked_credentials(KEY, SECRET)).partition(" ")[2]
SECRETS = (SECRET, TOKEN, BASIC)

# A minute for the three tests in CI on a slow machine: some 10 ms an example, most of it two
# connections.
EXAMPLES = 250
examples = settings(
    max_examples=EXAMPLES
    if os.environ.get("HYPOTHESIS_PROFILE") != "fuzz"
    else settings.get_profile("fuzz").max_examples
)

pytestmark = pytest.mark.fuzz

# What answers are made of: JSON with the fields that the API has, of any type; the shapes of
# errors; the secrets, which a server may echo.
names = st.sampled_from(
    [
        *(
            "id",
            "metadata",
            "accept_time",
            "channel_identity",
            "channel",
            "identity",
            "app_id",
            "direction",
            "injected",
        ),
        *(
            "error",
            "code",
            "message",
            "status",
            "details",
            "@type",
            "type_url",
            "type",
            "title",
            "detail",
            "errors",
        ),
        *("access_token", "expires_in", "token_type", "error_description", "extra", ""),
    ]
) | st.text(max_size=8)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([ID, *SECRETS, "SMS", "2024-01-01T00:00:00.123456789Z", "TO_CONTACT"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(names, json_values, max_size=8) | st.fixed_dictionaries(
    {"id": st.just(ID)},
    optional={"metadata": json_values, "channel_identity": json_values, "accept_time": json_values},
)
nested = st.sampled_from(
    [
        b"[" * 5000,
        b'{"a":' * 5000,
        b'{"id":"' + ID.encode() + b'","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ]
)
bodies = (
    (objects | json_values).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | nested
    | st.sampled_from([secret.encode() for secret in SECRETS])
)

statuses = st.sampled_from(
    [
        200,
        200,
        200,
        201,
        204,
        206,
        301,
        304,
        307,
        400,
        401,
        403,
        404,
        408,
        409,
        429,
        500,
        501,
        502,
        503,
        504,
        599,
    ]
) | st.integers(100, 999)
header_values = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30
) | st.sampled_from(
    [
        *SECRETS,
        *(
            "gzip",
            "deflate",
            "br",
            "identity",
            "chunked",
            "close",
            "keep-alive",
            "0",
            "-1",
            "1e400",
            "99999999999999999999",
        ),
        *(
            "application/json",
            "application/problem+json",
            "text/html; charset=nonsense",
            "Wed, 21 Oct 2015 07:28:00 GMT",
        ),
        *("http://[::1", "/elsewhere", "NaN", "inf", "٣", "a=b; Max-Age=1"),
    ]
)
header_names = st.sampled_from(
    [
        *(
            "Content-Type",
            "Content-Encoding",
            "Transfer-Encoding",
            "Content-Length",
            "Connection",
            "Retry-After",
            "Date",
        ),
        *(
            "Location",
            "Set-Cookie",
            "WWW-Authenticate",
            "x-request-id",
            "Upgrade",
            "Trailer",
            "Content-Type",
        ),
    ]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer that is HTTP, or nearly."""
    body = draw(bodies)
    head = [f"HTTP/1.1 {draw(statuses)} {draw(st.sampled_from(['OK', '', 'A Reason', TOKEN]))}"]
    if draw(st.integers(0, 3)):
        head.append(f"Content-Length: {len(body) + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))}")
    head += [
        f"{name}: {value}"
        for name, value in draw(st.lists(st.tuples(header_names, header_values), max_size=5))
    ]
    return "\r\n".join([*head, "", ""]).encode("utf-8") + body


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An answer some of whose bytes were lost, doubled or changed on the way."""
    raw = bytearray(draw(answers() | st.just(updated())))
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, max(0, len(raw) - 1)))
        what = draw(st.sampled_from(["cut", "lose", "double", "change", "insert"]))
        if what == "cut":
            del raw[where:]
        elif what == "lose":
            del raw[where : where + draw(st.integers(1, 8))]
        elif what == "double":
            raw[where:where] = raw[where : where + 16]
        elif what == "change" and raw:
            raw[where] = draw(st.integers(0, 255))
        else:
            raw[where:where] = draw(st.binary(max_size=6))
    return bytes(raw)


def client_of(server: Server, **options: object) -> ConversationClient:
    return ConversationClient(
        project_id="project",
        key_id=KEY,
        key_secret=SECRET,
        conversation_origin=server.origin,
        auth_origin=server.origin,
        attempt_timeout=5.0,
        retry=RetryPolicy(max_retries=0),
        **options,
    )


def holds_its_tongue(error: SinchError) -> None:
    """No secret in anything that an error says, or that a crash reporter collects."""
    locals_of_ours = [
        repr(value)
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__  # this file's frames hold the answer as it was sent
        for value in frame.f_locals.values()
    ]
    texts = [*locals_of_ours, repr(error), str(error), repr(vars(error)), repr(pickle.dumps(error))]
    told = [secret for secret in SECRETS for text in texts if secret in text]
    assert not told, f"{type(error).__name__} says a secret"
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), str(twin), twin.attempts) == (type(error), str(error), error.attempts)
    seen = {id(error)}
    inner = error.__cause__ or error.__context__
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        assert isinstance(inner, SinchError), f"{type(inner)} behind {error!r}"
        inner = inner.__cause__ or inner.__context__


async def answered(raw: bytes) -> None:
    """One update that is answered so, and one after it that is answered as it should be."""
    told = False

    async def script(peer: Peer) -> None:
        nonlocal told
        while True:
            received = await peer.receive()
            if received.target == "/oauth2/token":
                await peer.send(
                    http(200, json.dumps({"access_token": TOKEN, "expires_in": 3599}).encode())
                )
            elif told:
                await peer.send(updated(metadata="after"))
            else:
                told = True
                await peer.send(raw)
                return

    async with Server(script) as server, client_of(server) as client:
        try:
            message = await client.update_message_metadata(ID, "one")
        except SinchError as error:
            holds_its_tongue(error)
            assert not isinstance(error, ApiError) or error.http_status >= 400, (
                error
            )  # there may be none
            assert told or not error.attempts  # there may be none
        else:
            assert isinstance(message, ConversationMessage)
            assert message.id in (None, ID)
            json.dumps(to_dict(message))
            with contextlib.suppress(
                RecursionError
            ):  # pickle's own limit, where `extra` is thousands of levels deep
                pickle.loads(pickle.dumps(message))
            hash(message)
            repr(message)
        after = await client.update_message_metadata(ID, "two")
        assert after.metadata == "after"


async def token_answered(raw: bytes) -> None:
    """A token request that is answered so, and then an update, if that was a token."""

    async def script(peer: Peer) -> None:
        while True:
            received = await peer.receive()
            if received.target == "/oauth2/token":
                await peer.send(raw)
                return
            await peer.send(updated())

    async with Server(script) as server, client_of(server, timeout=0.3) as client:
        try:
            await client.update_message_metadata(ID, "one")
        except SinchError as error:
            holds_its_tongue(error)
        # The header is one line, whatever the token was.
        for received in server.received:
            if received.method == "PATCH":
                assert received.headers["authorization"].startswith("Bearer ")
                assert len(received.names) == len(set(received.names))


def run(check: Callable[[bytes], object], raw: bytes) -> None:
    asyncio.run(check(raw))


@examples
@given(answers())
def test_any_answer_is_a_message_or_a_typed_error(raw):
    run(answered, raw)


@examples
@given(damaged() | st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_typed_error(raw):
    run(answered, raw)


@settings(examples, max_examples=examples.max_examples // 8)
@given(
    answers()
    | damaged()
    | st.fixed_dictionaries({"access_token": json_values, "expires_in": json_values}).map(
        lambda fields: http(200, json.dumps(fields).encode())
    )
)
def test_any_token_answer_is_a_token_or_a_typed_error(raw):
    run(token_answered, raw)


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.http")), ids=lambda path: path.stem)
def test_answers_that_once_did_harm_do_none(path):
    run(answered, path.read_bytes())
    run(token_answered, path.read_bytes())
