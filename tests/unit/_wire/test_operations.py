"""What each operation asks, and how its answer is read."""

from __future__ import annotations

import json

import pytest
from multidict import CIMultiDict

from sinch_conv_async import (
    InvalidArgumentError,
    MessagesSource,
)
from sinch_conv_async._wire.operations import UpdateMetadata
from sinch_conv_async._wire.responses import Response

ORIGIN = "https://eu.conversation.api.sinch.com"
PATH = "/v1/projects/project-1/messages/"


def update(message_id="01", metadata="x", source=None):
    return UpdateMetadata.of(ORIGIN, PATH, message_id, metadata, source).request


REQUEST = update("01MESSAGE", "new")


def no_scrub(text):
    return text


def answer(status=200, body=b"{}", **headers):
    """Header names are given as `Retry_After`."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(
        status, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), body
    )


def read(*args, scrub=no_scrub, reused=True, **headers):
    return UpdateMetadata(REQUEST).read(answer(*args, **headers), scrub=scrub, reused=reused)


# Query, origins, regions


@pytest.mark.parametrize("source", [*MessagesSource, "CONVERSATION_SOURCE", "DISPATCH_SOURCE"])
def test_a_messages_source_is_a_query_parameter(source):
    url = update("01", "x", source).url
    assert str(url) == f"{ORIGIN}{PATH}01?messages_source={str(source)}"  # noqa: RUF010  # what an enum member's str is, is the point


def test_no_messages_source_is_no_query():
    assert update("01", "x", None).url.raw_query_string == ""


@pytest.mark.parametrize(
    "source", ["", "DISPATCH", "dispatch-source", "DISPATCH_SOURCE&a=b", b"DISPATCH_SOURCE", 0, True, [], {}]
)
def test_an_unknown_messages_source_is_refused(source):
    with pytest.raises(
        InvalidArgumentError, match=r"^messages_source must be one of CONVERSATION_SOURCE, DISPATCH_SOURCE$"
    ) as caught:
        update("01", "x", source)
    assert caught.value.__context__ is None
