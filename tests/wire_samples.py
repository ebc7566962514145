"""Secrets, a request and responses that the tests of ``_wire`` share."""

from __future__ import annotations

import json

from multidict import CIMultiDict

from sinch_conv_async._wire.operations import UpdateMetadata
from sinch_conv_async._wire.responses import Response

ORIGIN = "https://eu.conversation.api.sinch.com"
PATH = "/v1/projects/project-1/messages/"
SECRETS = [
    "s3cr3t~with.usual_characters-",
    'q"u\\o/te',
    "a&b<c>d='e'",
    "with space",
    "per%cent+plus",
    "it-ends-with==",
    "space and/slash",  # differs in every way of quoting
    "abcdefabW",  # with this id its Basic form ends with an X and no padding
    "\\begins-with-a-backslash",  # is a part of its own form in JSON
    "it-ends-with&",  # is the beginning of its own form in HTML
]


def update(message_id="01", metadata="x", source=None):
    return UpdateMetadata.of(ORIGIN, PATH, message_id, metadata, source).request


REQUEST = update("01MESSAGE", "new")


def no_scrub(text):
    return text


def answer(status=200, body=b"{}", **headers):
    """Header names are given as `Retry_After`."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(
        status,
        CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}),
        body,
    )


def read(*args, scrub=no_scrub, reused=True, **headers):
    return UpdateMetadata(REQUEST).read(answer(*args, **headers), scrub=scrub, reused=reused)
