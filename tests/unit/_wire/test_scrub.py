"""No credential gets out of what a server says, however it is spelled there."""

from __future__ import annotations

import base64
import html
import json
import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sinch_conv_async._wire.arguments import (
    Credentials,
)
from sinch_conv_async._wire.responses import read_token_response
from sinch_conv_async._wire.scrub import forms, scrub
from tests.wire_samples import SECRETS, answer, read


def in_html(text):
    names = {"+": "&plus;", "/": "&sol;", "=": "&equals;", "&": "&AMP;", "%": "&percnt;"}
    return "".join(names.get(sign, sign) for sign in text)


# How one layer of software may write a text that the next one reads.
ENCODINGS = {
    "percent-quoted": lambda text: quote(text, safe=""),
    "percent-quoted in small letters": lambda text: re.sub(
        "%..", lambda m: m[0].lower(), quote(text, safe="")
    ),
    "percent-quoted as a path": quote,
    "percent-quoted as a form": quote_plus,
    "percent-quoted throughout": lambda text: "".join(f"%{ord(sign):02x}" for sign in text),
    "percent-quoted as IIS writes it": lambda text: "".join(f"%u{ord(sign):04X}" for sign in text),
    "in JSON": lambda text: json.dumps(text)[1:-1],
    "in JSON as PHP writes it": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "in JSON, in escapes": lambda text: "".join(f"\\u{ord(sign):04x}" for sign in text),
    "in JSON, in escapes of capitals": lambda text: "".join(f"\\u{ord(sign):04X}" for sign in text),
    "in a program's text": lambda text: "".join(f"\\x{ord(sign):02x}" for sign in text),
    "in a program's text, in eights": lambda text: "".join(f"\\{ord(sign):03o}" for sign in text),
    "in a program's text, in braces": lambda text: "".join(
        f"\\u{{{ord(sign):x}}}" for sign in text
    ),
    "in a program's text, in 32 bits": lambda text: "".join(f"\\U{ord(sign):08x}" for sign in text),
    "in a pattern": re.escape,
    "in HTML": html.escape,
    "in HTML, by names": in_html,
    "in HTML, by numbers": lambda text: "".join(f"&#{ord(sign)};" for sign in text),
    "in HTML, by long numbers": lambda text: "".join(f"&#{ord(sign):012};" for sign in text),
    "in HTML, by hexadecimal numbers": lambda text: "".join(f"&#x{ord(sign):x};" for sign in text),
    "in HTML, by HEXADECIMAL NUMBERS": lambda text: "".join(
        f"&#X{ord(sign):X}" + ";" for sign in text
    ),
    "in HTML without semicolons": lambda text: (
        text.replace("&", "&amp").replace("<", "&lt").replace(">", "&gt")
    ),
}


def spellings(secret):
    """How a server may say a secret that it was sent, or a gateway that it logged."""
    basic = base64.b64encode(f"my-id:{secret}".encode()).decode()
    return {
        "plain": secret,
        "basic": f"Basic {basic}",
        "basic without padding": basic.rstrip("="),
        "basic as URLs have it": basic.replace("+", "-").replace("/", "_"),
        **{name: encode(secret) for name, encode in ENCODINGS.items()},
        "percent-quoted twice": quote(quote(secret, safe=""), safe=""),
        "percent-quoted, in HTML, in JSON": json.dumps(html.escape(quote(secret, safe="")))[1:-1],
        "in JSON, in JSON": json.dumps(json.dumps(secret)[1:-1])[1:-1],
        "half in one, half in another": quote(secret[:4], safe="") + html.escape(secret[4:]),
    }


@pytest.mark.parametrize("spelling", spellings(""))
def test_every_usual_spelling_of_a_secret_is_cut_out(spelling):
    for secret in SECRETS:
        text = spellings(secret)[spelling]
        scrubbed = Credentials("my-id", secret).scrub(f"before {text} between {text}, after")
        assert re.fullmatch(
            r"before (Basic )?\[redacted\]=* between (Basic )?\[redacted\]=*, after", scrubbed
        )


@pytest.mark.parametrize("spelling", spellings(""))
def test_an_echoed_secret_is_in_no_part_of_an_error(spelling):
    for secret in SECRETS:
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
def test_a_secret_that_the_token_endpoint_echoes_is_in_no_part_of_the_error(spelling):
    for secret in SECRETS:
        echo = spellings(secret)[spelling]
        body = {"error": f"invalid_client {echo}", "error_description": f"no key {echo}"}
        failure = read_token_response(answer(401, body), scrub=Credentials("my-id", secret).scrub)
        for part in (str(failure.error), failure.error.error, repr(failure)):
            assert echo not in part
            assert secret not in part


SIGNS = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
# Not the one without semicolons: what follows it may belong to a longer name.
LAYERS = st.lists(
    st.sampled_from([encode for name, encode in ENCODINGS.items() if "without" not in name]),
    max_size=3,
)


@given(st.text(SIGNS, min_size=8, max_size=24).filter(lambda text: text == text.strip()), LAYERS)
@example("no sense\\;", [])
def test_whatever_the_secret_and_its_encodings_it_is_cut_out_and_nothing_else_is(secret, layers):
    text = secret
    for encode in layers:
        text = encode(text)
    assume(len(text) < 60_000)  # a longer one is dropped as a whole
    assert scrub(f"before | {text} | after", forms(secret)) == "before | [redacted] | after"


def test_a_credential_of_less_than_eight_characters_is_left_where_it_is():
    assert Credentials("id", "sevenxx").scrub("sevenxx") == "sevenxx"
    assert Credentials("id", "eightxxx").scrub("eightxxx") == "[redacted]"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "100 %",
        "%zz &nbsp; &#128512; \\ud83d \\n %C3%A9",
        "a & b < c",
        "&#0; &#x7f; \\x00 \\777",
    ],
)
def test_a_text_without_the_credential_stays_as_it_is(text):
    assert Credentials("id", "a-long-secret").scrub(text) == text


def test_parts_that_overlap_get_one_mark():
    assert scrub("x abcdabcdabcd y abcdabcd", forms("abcdabcd")) == "x [redacted] y [redacted]"
    assert scrub("0123456789abcdef", forms("0123456789", "56789abcdef")) == "[redacted]"


def test_nine_encodings_within_each_other_are_too_many():
    eight = nine = "a secret / of mine"
    for _ in range(8):
        eight = quote(eight, safe="")
    nine = quote(eight, safe="")
    searched = forms("a secret / of mine")
    assert scrub(eight, searched) == "[redacted]"
    assert scrub(nine, searched) == nine


@pytest.mark.parametrize(
    "part", ["%25", "%", "&amp;", "\\\\", "&#0000000041", "%41", "&", "\\u{0000041}", "&#x"]
)
def test_a_long_hostile_text_is_searched_to_its_end(part):
    text = part * (256 * 1024 // len(part))
    searched = forms("a-long-secret")
    assert scrub(f"{text} a-long-secret", searched) == f"{text} [redacted]"
    assert scrub(f"{text} a%2dlong%2dsecret", searched) == "[redacted]"


@pytest.mark.parametrize("part", ["%25", "&amp;", "\\\\"])
def test_a_credential_is_cut_out_of_a_text_of_64_kibi_characters(part):
    text = part * (64 * 1024 // len(part) - 20)
    assert scrub(f"{text} a%2dlong%2dsecret", forms("a-long-secret")) == f"{text} [redacted]"
