"""Whatever arrives is a value, or a failure that says whether a repeat can help."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from sinch_conv_async import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    ConversationMessage,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ResponseFormatError,
    ServerError,
    TokenError,
    TransportError,
)
from sinch_conv_async._wire.failure import Failure
from sinch_conv_async._wire.operations import UpdateMetadata
from sinch_conv_async._wire.requests import (
    MAX_RESPONSE,
)
from sinch_conv_async._wire.responses import (
    Response,
    TokenResponse,
    read_token_response,
    retry_after,
)
from tests.wire_samples import REQUEST, answer, no_scrub, read

# Answers


def test_a_message_is_read():
    message = read(200, {"id": "01MESSAGE", "metadata": "new"})
    assert message == ConversationMessage(id="01MESSAGE", metadata="new")


def test_a_message_without_an_id_is_accepted():
    assert read(200, {"metadata": "new"}) == ConversationMessage(metadata="new")
    assert read(200, {"id": "", "metadata": "new"}) == ConversationMessage(id="", metadata="new")


def test_an_id_has_no_case():
    assert read(200, {"id": "01message"}).id == "01message"


@pytest.mark.parametrize("other", ["02MESSAGE", " ", "01MESSAGE "])
def test_another_id_on_a_connection_that_was_used_before_is_a_crossed_answer(other):
    failure = read(200, {"id": other, "metadata": "canary"}, reused=True)
    assert type(failure.error) is TransportError
    assert str(failure.error) == "the answer is about another message than the one asked for"
    assert failure.error.sent == "maybe"
    assert (
        failure.retryable,
        failure.maybe_applied,
        failure.crossed,
        failure.stale_connection,
    ) == (
        True,
        True,
        True,
        False,
    )
    assert "canary" not in f"{failure!r} {failure.error}"


def test_another_id_on_a_fresh_connection_is_not_what_the_api_promises():
    failure = read(200, {"id": "02MESSAGE", "metadata": "canary"}, reused=False)
    assert type(failure.error) is ResponseFormatError
    assert failure.error.http_status == 200
    assert str(failure.error) == "the answer is about another message than the one asked for"
    assert (failure.retryable, failure.maybe_applied, failure.crossed) == (False, True, False)
    assert "canary" not in f"{failure!r} {failure.error}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the 200 answer is not a message: not readable as JSON @ $"),
        (b"<html>", "the 200 answer is not a message: not readable as JSON @ $"),
        (b"[]", "the 200 answer is not a message: expected an object @ $"),
        (
            b'{"channel_identity": {"channel": 7}}',
            "the 200 answer is not a message: expected a string @ $.channel_identity.channel",
        ),
    ],
)
def test_a_200_that_is_no_message_was_applied_and_says_where_it_is_wrong(body, text):
    failure = read(200, body)
    assert type(failure.error) is ResponseFormatError
    assert (str(failure.error), failure.error.http_status) == (text, 200)
    assert (failure.retryable, failure.maybe_applied, failure.crossed) == (False, True, False)


@pytest.mark.parametrize(
    "status", [100, 101, 201, 202, 204, 206, 299, 300, 301, 302, 303, 304, 307, 308, 399, 600, 999]
)
def test_what_is_neither_200_nor_an_error_is_not_what_the_api_promises(status):
    failure = read(
        status, {"id": "01MESSAGE"}, Location="http://evil.example/canary", Retry_After="1"
    )
    assert type(failure.error) is ResponseFormatError
    assert failure.error.http_status == status
    assert str(failure.error) == f"the API answers 200 or an error, not {status}"
    assert (failure.retryable, failure.maybe_applied) == (False, status < 300)


CLASSES = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitedError,
}


def test_an_error_is_tried_again_when_that_can_help():
    body = {"error": {"code": 13, "message": "no", "status": "INTERNAL", "details": []}}
    for status in range(400, 600):
        failure = read(status, body)
        assert type(failure.error) is CLASSES.get(
            status, ServerError if status >= 500 else ApiError
        ), status
        assert failure.error.http_status == status
        assert failure.retryable is (status in {408, 429, 500, 502, 503, 504}), status
        assert failure.maybe_applied is (status in {500, 502, 503, 504}), status
        assert not failure.stale_connection, status
        assert not failure.crossed, status


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_retry_after_is_told_to_the_caller_and_to_those_who_wait(status):
    failure = read(status, b"", Retry_After="7")
    assert failure.error.retry_after == failure.retry_after == 7.0
    without = read(status, b"")
    assert without.error.retry_after is without.retry_after is None


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        ({}, None),
        ({"X_Request_Id": "r-1"}, "r-1"),
        ({"x_request_id": "r-1"}, "r-1"),
        ({"x_request_id": "r-1, r-2"}, "r-1"),
        ({"x_request_id": " , r-2", "cf_ray": "r-3"}, "r-3"),
        ({"X_Request_Id": "", "CF_RAY": "ray"}, "ray"),
        ({"Traceparent": "00-1-2-00", "X_Correlation_Id": "c-1"}, "c-1"),
        ({"X_Request_Id": "r" * 5000}, "r" * 256),
    ],
)
def test_the_request_id_is_whatever_id_header_came(headers, request_id):
    assert read(500, b"", **headers).error.request_id == request_id


@given(
    st.integers(100, 999),
    st.binary(),
    st.dictionaries(
        st.sampled_from(["Retry-After", "Date", "X-Request-Id", "CF-RAY", "Content-Type"]),
        st.text(st.characters(exclude_categories=[]), max_size=40),
    ),
)
def test_whatever_arrives_is_a_message_or_a_failure_of_the_right_kind(status, body, headers):
    response = Response(status, CIMultiDict(headers), body)
    outcome = UpdateMetadata(REQUEST).read(response, scrub=no_scrub, reused=True)
    if isinstance(outcome, ConversationMessage):
        assert status == 200
        return
    assert isinstance(outcome, Failure)
    if 400 <= status <= 599:
        assert type(outcome.error) is CLASSES.get(
            status, ServerError if status >= 500 else ApiError
        )
        wait = outcome.error.retry_after
        assert wait is None or 0 <= wait < math.inf
        assert wait == outcome.retry_after
    else:
        assert type(outcome.error) in (ResponseFormatError, TransportError)


def test_an_answer_shows_neither_headers_nor_body():
    assert repr(answer(200, b"canary", Set_Cookie="canary")) == "Response(status=200)"


# Content-Encoding


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


MESSAGE = json.dumps({"id": REQUEST.message_id}).encode()
CODINGS = {
    "none": ({}, MESSAGE),
    "identity": ({"Content_Encoding": " Identity "}, MESSAGE),
    "gzip": ({"Content_Encoding": "GZIP"}, gzip.compress(MESSAGE)),
    "x-gzip": ({"Content_Encoding": "x-gzip"}, gzip.compress(MESSAGE)),
    "gzip and no more": ({"Content_Encoding": "identity, gzip"}, gzip.compress(MESSAGE)),
    "gzip, of two members": (
        {"Content_Encoding": "gzip"},
        gzip.compress(MESSAGE[:9]) + gzip.compress(MESSAGE[9:]),
    ),
    "gzip, twice": ({"Content_Encoding": "gzip, gzip"}, gzip.compress(gzip.compress(MESSAGE))),
    "deflate, then gzip": (
        {"Content_Encoding": "deflate, gzip"},
        gzip.compress(zlib.compress(MESSAGE)),
    ),
    "gzip once, though said twice": ({"Content_Encoding": "gzip, gzip"}, gzip.compress(MESSAGE)),
    "gzip and padding": ({"Content_Encoding": "gzip"}, gzip.compress(MESSAGE) + b"\x00" * 8),
    "deflate": ({"Content_Encoding": "deflate"}, zlib.compress(MESSAGE)),
    "deflate without zlib's frame": ({"Content_Encoding": "deflate"}, raw_deflate(MESSAGE)),
}
NO_CODINGS = {
    "brotli": ("br", MESSAGE, "not one that can be undone"),
    "brotli in gzip": ("br, gzip", gzip.compress(MESSAGE), "not one that can be undone"),
    "four codings": ("gzip, gzip, gzip, gzip", MESSAGE, "not one that can be undone"),
    "101 members": ("gzip", gzip.compress(b"") * 101, "more than 100 members"),
    "a second member cut short": (
        "gzip",
        gzip.compress(MESSAGE) + gzip.compress(MESSAGE)[:-9],
        "has no end",
    ),
    "a second coding cut short": (
        "gzip, gzip",
        gzip.compress(gzip.compress(MESSAGE)[:-9]),
        "has no end",
    ),
    "not compressed": ("gzip", MESSAGE, "not compressed as its Content-Encoding says"),
    "cut short": ("gzip", gzip.compress(MESSAGE)[:-9], "has no end"),
    "nothing": ("gzip", b"", "has no end"),
    "a byte too long": (
        "deflate",
        zlib.compress(b" " * (MAX_RESPONSE + 1)),
        "longer than 1,048,576 bytes",
    ),
}


@pytest.mark.parametrize("name", CODINGS)
def test_an_answer_is_read_whatever_coding_it_came_in(name):
    headers, body = CODINGS[name]
    assert read(200, body, **headers).id == REQUEST.message_id


def test_two_lines_of_content_encoding_are_one_list():
    headers = CIMultiDict([("Content-Encoding", "identity"), ("content-encoding", "gzip")])
    response = Response(200, headers, gzip.compress(MESSAGE))
    message = UpdateMetadata(REQUEST).read(response, scrub=no_scrub, reused=False)
    assert message.id == REQUEST.message_id


@pytest.mark.parametrize("name", NO_CODINGS)
def test_an_answer_in_a_coding_that_cannot_be_undone_was_applied_and_no_repeat_helps(name):
    coding, body, problem = NO_CODINGS[name]
    outcome = read(200, body, Content_Encoding=coding)
    assert isinstance(outcome.error, ResponseFormatError)
    assert problem in str(outcome.error)
    assert (outcome.error.http_status, outcome.retryable, outcome.maybe_applied) == (
        200,
        False,
        True,
    )


@pytest.mark.parametrize("name", NO_CODINGS)
def test_an_error_in_a_coding_that_cannot_be_undone_is_still_the_error(name):
    coding, body, _ = NO_CODINGS[name]
    outcome = read(503, body, Content_Encoding=coding)
    assert isinstance(outcome.error, ServerError)
    assert outcome.retryable


# Retry-After


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("value", ["0", "Sun, 01 Mar 2026 11:59:00 GMT"])
def test_to_come_back_at_once_is_to_come_back_when_one_thinks_best(status, value):
    outcome = read(status, Retry_After=value, Date=NOON_TEXT)
    assert outcome.error.retry_after == 0
    assert outcome.retry_after is None


NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOON_TEXT = "Sun, 01 Mar 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("007", 7.0),
        (" 120 ", 120.0),
        ("1.5", 1.5),
        ("2.", 2.0),
        ("2147483648", 2.0**31),
        ("99999999999", 2.0**31),
        ("9" * 400, 2.0**31),
        ("9" * 8000, 2.0**31),
        ("0." + "3" * 5000, 1 / 3),
        # Garbage
        ("", None),
        ("-1", None),
        ("-0", None),
        ("+5", None),
        ("1e3", None),
        ("1,5", None),
        ("1 2", None),
        ("0x10", None),
        (".5", None),
        ("1_000", None),
        ("nan", None),
        ("inf", None),
        ("Infinity", None),
        ("soon", None),
        ("١٢", None),
        ("²", None),
        ("\ud800", None),
        ("\x00", None),
        ("5; comment", None),
    ],
)
def test_retry_after_in_seconds(value, seconds):
    found = retry_after({"Retry-After": value, "Date": NOON_TEXT})
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30),
        ("Sunday, 01-Mar-26 12:00:30 GMT", 30),
        ("Sun Mar  1 12:00:30 2026", 30),
        ("Sun, 01 Mar 2026 13:00:30 +0100", 30),
        ("Sun, 01 Mar 2026 12:00:30 -0000", 30),
        ("Sun, 01 Mar 2026 12:00:00 GMT", 0),
        ("Sun, 01 Mar 2026 11:59:00 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 2**31),
        ("Sun, 32 Mar 2026 12:00:30 GMT", None),
        ("Sun, 01 Mar 99999 12:00:30 GMT", None),
        ("Sun, 01 Mar 2026 12:00:30 +999999999999", None),
        ("Sun, 01 Mar " + "9" * 5000 + " 12:00:30 GMT", None),
        ("2026-03-01T12:00:30Z", None),
        ("Sun,", None),
        (",", None),
    ],
)
def test_retry_after_as_a_date_is_held_against_the_answers_own_date(value, seconds):
    assert retry_after({"Retry-After": value, "Date": NOON_TEXT}) == seconds


@pytest.mark.parametrize("date", [None, "", "now", "0", "Sun, 32 Mar 2026 12:00:00 GMT"])
def test_a_date_with_nothing_to_hold_it_against_gives_none(date):
    headers = {"Retry-After": "Sun, 01 Mar 2026 12:00:30 GMT"} | (
        {} if date is None else {"Date": date}
    )
    assert retry_after(headers) is None


def test_no_retry_after_is_none():
    assert retry_after({"Date": NOON_TEXT}) is None


@given(st.integers(-(10**6), 10**6), st.integers(-(10**9), 10**9))
def test_clocks_that_are_off_cancel_out(wait, off):
    date = NOON + timedelta(seconds=off)
    headers = {
        "Retry-After": format_datetime(date + timedelta(seconds=wait), usegmt=True),
        "Date": format_datetime(date, usegmt=True),
    }
    assert retry_after(headers) == max(0, wait)


DATES = st.builds(
    " ".join,
    st.lists(
        st.sampled_from(
            [
                "Sun,",
                "01",
                "Mar",
                "2026",
                "12:00:30",
                "GMT",
                "+0100",
                "99",
                "12.00.30",
                ":",
                "-",
                ",",
                "(",
                "٣",
            ]
        )
        | st.text(max_size=4),
        max_size=7,
    ),
)


@given(DATES | st.text(st.characters(exclude_categories=[])), DATES | st.just(NOON_TEXT))
def test_whatever_the_header_says_the_wait_is_finite_and_not_negative(value, date):
    wait = retry_after({"Retry-After": value, "Date": date})
    assert wait is None or 0 <= wait <= 2.0**31


# Tokens


def granted(body, status=200):
    return read_token_response(answer(status, body), scrub=no_scrub)


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        ({"expires_in": 3599}, 3599.0),
        ({"expires_in": "3600"}, 3600.0),
        ({"expires_in": " 60 "}, 60.0),
        ({"expires_in": 59.5}, 59.5),
        ({"expires_in": "1e3"}, 1000.0),
        ({"expires_in": None}, 600.0),
        ({}, 600.0),
    ],
)
def test_a_token_is_granted_for_its_lifetime(expires_in, lifetime):
    grant = granted({"access_token": "canary", "token_type": "bearer", "scope": "", **expires_in})
    assert grant == TokenResponse("canary", lifetime)
    assert repr(grant) == f"TokenResponse(lifetime={lifetime!r})"


@pytest.mark.parametrize(
    "expires_in",
    [
        0,
        -1,
        0.0,
        -0.5,
        "0",
        "-5",
        "soon",
        "",
        "nan",
        "inf",
        True,
        False,
        [],
        {},
        10**400,
        "9" * 400,
        "1" * 5000,
        1e999,
        math.nan,
    ],
)
def test_a_lifetime_that_is_none_is_refused(expires_in):
    failure = granted({"access_token": "canary", "expires_in": expires_in})
    assert type(failure.error) is TokenError
    assert str(failure.error) == (
        "the token endpoint's answer has an expires_in that is not a positive number of seconds"
    )
    assert (failure.error.http_status, failure.retryable) == (200, False)
    assert "canary" not in repr(failure)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "has no access_token"),
        (b"canary", "has no access_token"),
        (b"null", "has no access_token"),
        (b"[]", "has no access_token"),
        (b'"canary"', "has no access_token"),
        (b"[" * 100_000, "has no access_token"),
        ({}, "has no access_token"),
        ({"access_token": None}, "has no access_token"),
        ({"access_token": ""}, "has no access_token"),
        ({"access_token": ["canary"]}, "has no access_token"),
        ({"access_token": 5}, "has no access_token"),
        ({"access_token": "canary\r\nX-Evil: 1"}, "has an access_token that no header can carry"),
        ({"access_token": "canary\x00"}, "has an access_token that no header can carry"),
        ({"access_token": "canaryé"}, "has an access_token that no header can carry"),
        ({"access_token": "canary\ud800"}, "has an access_token that no header can carry"),
    ],
)
def test_an_answer_without_a_usable_token_is_told_without_its_text(body, problem):
    failure = granted(body)
    assert type(failure.error) is TokenError
    assert str(failure.error) == f"the token endpoint's answer {problem}"
    assert (failure.error.http_status, failure.error.error, failure.retryable) == (200, None, False)
    assert "canary" not in repr(failure)


@pytest.mark.parametrize(
    ("status", "body", "text", "code"),
    [
        (
            401,
            {"error": "invalid_client", "error_description": "no such key"},
            "the token endpoint answered 401 invalid_client: no such key",
            "invalid_client",
        ),
        (
            400,
            {"error": "invalid_request"},
            "the token endpoint answered 400 invalid_request",
            "invalid_request",
        ),
        (
            400,
            {"error": "x" * 1000, "error_description": "y" * 1000},
            f"the token endpoint answered 400 {'x' * 64}: {'y' * 256}",
            "x" * 64,
        ),
        (
            400,
            {"error": "e", "error_description": ["no text"]},
            "the token endpoint answered 400 e",
            "e",
        ),
        (401, {"error": {"code": 401}}, "the token endpoint answered 401", None),
        (401, {"error_description": "alone"}, "the token endpoint answered 401", None),
        (401, b"invalid_client", "the token endpoint answered 401", None),
        (403, b"<html>", "the token endpoint answered 403", None),
        (502, b"", "the token endpoint answered 502", None),
        (503, b"[" * 100_000, "the token endpoint answered 503", None),
        (201, {"access_token": "canary"}, "the token endpoint answered 201", None),
        (302, {"access_token": "canary"}, "the token endpoint answered 302", None),
    ],
)
def test_an_error_of_the_token_endpoint_has_its_oauth_code(status, body, text, code):
    failure = granted(body, status)
    assert type(failure.error) is TokenError
    assert (str(failure.error), failure.error.error, failure.error.http_status) == (
        text,
        code,
        status,
    )


def test_the_token_endpoint_is_asked_again_after_429_and_5xx():
    for status in (201, 301, 307, *range(400, 600)):
        failure = read_token_response(answer(status, b"", Retry_After="3"), scrub=no_scrub)
        assert failure.retryable is (status in {408, 429} or status >= 500), status
        assert failure.retry_after == 3.0, status


@given(
    st.integers(100, 999),
    st.binary()
    | st.dictionaries(
        st.sampled_from(["access_token", "expires_in", "error"]),
        st.none() | st.text() | st.integers() | st.floats(),
    ),
)
def test_whatever_the_token_endpoint_says_is_a_token_or_a_token_error(status, body):
    outcome = granted(body, status)
    if isinstance(outcome, TokenResponse):
        assert status == 200
        assert outcome.access_token.isprintable()
        assert 0 < outcome.lifetime < math.inf
    else:
        assert type(outcome.error) is TokenError
