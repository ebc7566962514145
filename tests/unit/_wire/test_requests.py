"""A request goes over the wire as RFC 9112 writes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinch_conv_async._wire.arguments import (
    Credentials,
    basic_authorization,
    checked_origin,
)
from sinch_conv_async._wire.operations import UpdateMetadata
from sinch_conv_async._wire.requests import (
    request_head,
    request_headers,
    serialized,
    token_request,
)
from tests.wire_samples import PATH, REQUEST, SECRETS, update

# The request as bytes


def test_a_request_goes_over_the_wire_as_rfc_9112_writes_it():
    request = update("01", "é", "DISPATCH_SOURCE")
    assert serialized(request, request_head(request, "Bearer token", "agent/1 (x)")) == (
        b"PATCH /v1/projects/project-1/messages/01?messages_source=DISPATCH_SOURCE HTTP/1.1\r\n"
        b"Host: eu.conversation.api.sinch.com\r\n"
        b"Authorization: Bearer token\r\n"
        b"Accept: application/json\r\n"
        b"Accept-Encoding: identity\r\n"
        b"User-Agent: agent/1 (x)\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: 18\r\n"
        b"\r\n"
        b'{"metadata": "\xc3\xa9"}'
    )


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://api.example", b"api.example"),
        ("https://api.example:8443", b"api.example:8443"),
        ("http://127.0.0.1:8080", b"127.0.0.1:8080"),
        ("https://[2001:db8::1]", b"[2001:db8::1]"),
        ("http://[::1]:8080", b"[::1]:8080"),
        ("https://xn--bcher-kva.example", b"xn--bcher-kva.example"),
    ],
)
def test_the_host_field_is_the_origins_host_and_the_port_that_is_not_the_schemes_own(origin, host):
    request = UpdateMetadata.of(
        checked_origin("conversation_origin", origin), PATH, "01", "x"
    ).request
    assert b"\r\nHost: " + host + b"\r\n" in serialized(
        request, request_head(request, "Bearer t", "a")
    )


@given(
    st.text("aZ9._~-", min_size=3),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(SECRETS),
)
def test_nothing_that_was_checked_can_end_its_line(message_id, metadata, secret):
    request = update(message_id[:256], metadata[:1024])
    data = serialized(
        request, request_head(request, basic_authorization(Credentials("id", secret)), "agent")
    )
    head, _, body = data.partition(b"\r\n\r\n")
    assert len(head.split(b"\r\n")) == 8
    assert (head.count(b"\r"), head.count(b"\n"), head.count(b"\0")) == (7, 7, 0)
    assert body == request.body
    assert head.endswith(b"Content-Length: %d" % len(body))


def test_a_head_shows_no_authorization():
    assert "canary" not in repr(request_head(REQUEST, "Bearer canary", "agent"))


def test_the_header_fields_are_those_of_the_bytes():
    fields = request_headers(REQUEST, "Bearer token", "agent")
    data = serialized(REQUEST, request_head(REQUEST, "Bearer token", "agent"))
    for name, value in fields.items():
        assert f"\r\n{name}: {value}\r\n".encode() in data


def test_a_token_request_is_a_form_that_holds_no_secret():
    request = token_request("https://auth.example")
    assert (request.method, str(request.url)) == ("POST", "https://auth.example/oauth2/token")
    assert (request.body, request.content_type) == (
        b"grant_type=client_credentials",
        "application/x-www-form-urlencoded",
    )
