"""No credential gets out of what a server says, however it is spelled there."""

from __future__ import annotations

import base64
import html
import json
import re
from urllib.parse import quote, quote_plus

import pytest
from multidict import CIMultiDict

from sinch_conv_async._wire.arguments import (
    Credentials,
)
from sinch_conv_async._wire.operations import UpdateMetadata
from sinch_conv_async._wire.responses import Response, read_token_response

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
        status, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), body
    )


def read(*args, scrub=no_scrub, reused=True, **headers):
    return UpdateMetadata(REQUEST).read(answer(*args, **headers), scrub=scrub, reused=reused)


def spellings(secret):
    """How a server may say a secret that it was sent, or a gateway that it logged."""
    basic = base64.b64encode(f"my-id:{secret}".encode()).decode()
    return {
        "plain": secret,
        "basic": f"Basic {basic}",
        "basic without padding": basic.rstrip("="),
        "percent-quoted": quote(secret, safe=""),
        "percent-quoted as a path": quote(secret),
        "percent-quoted as a form": quote_plus(secret),
        "in JSON": json.dumps(secret)[1:-1],
        "in JSON as PHP writes it": json.dumps(secret)[1:-1].replace("/", "\\/"),
        "in HTML": html.escape(secret),
    }


@pytest.mark.parametrize("spelling", spellings(""))
@pytest.mark.parametrize("secret", SECRETS)
def test_every_usual_spelling_of_a_secret_is_cut_out(secret, spelling):
    text = spellings(secret)[spelling]
    scrubbed = Credentials("my-id", secret).scrub(f"before {text} between {text}, after")
    assert re.fullmatch(r"before (Basic )?\[redacted\]=* between (Basic )?\[redacted\]=*, after", scrubbed)


@pytest.mark.parametrize("spelling", spellings(""))
@pytest.mark.parametrize("secret", SECRETS)
def test_an_echoed_secret_is_in_no_part_of_an_error(secret, spelling):
    credentials = Credentials("my-id", secret)
    echo = spellings(secret)[spelling]
    shown = {secret, echo}
    said = {
        "error": {
            "message": echo,
            "status": echo,
            "details": [{"type_url": echo, "value": echo, echo: [echo]}],
        }
    }
    as_page, as_json = f"<p>{echo}</p>".encode(), json.dumps(said).encode()
    as_escapes = "".join(f"\\u{ord(character):04x}" for character in echo)
    for body in (
        as_page,
        as_json,
        f'{{"error": "{as_escapes}"}}'.encode(),
        json.dumps({"error": echo}).encode(),
    ):
        error = read(401, body, scrub=credentials.scrub, X_Request_Id=echo).error
        parts = [
            *(str(error), error.message, error.status or "", error.request_id, error.body),
            *(text for detail in error.details for text in (detail.type_url, detail.value)),
            *(
                text
                for detail in error.details
                for pair in detail.extra.items()
                for text in (pair[0], pair[1][0])
            ),
        ]
        for part in parts:
            assert not any(text in part for text in shown), part
        assert "[redacted]" in error.request_id
        assert "[redacted]" in error.body
        assert as_escapes not in error.body


@pytest.mark.parametrize("spelling", spellings(""))
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_that_the_token_endpoint_echoes_is_in_no_part_of_the_error(secret, spelling):
    echo = spellings(secret)[spelling]
    body = {"error": f"invalid_client {echo}", "error_description": f"no key {echo}"}
    failure = read_token_response(answer(401, body), scrub=Credentials("my-id", secret).scrub)
    for part in (str(failure.error), failure.error.error, repr(failure)):
        assert echo not in part
        assert secret not in part
