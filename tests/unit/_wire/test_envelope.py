"""Of whatever a server sends in an error's place, the four fields are found, and nothing else is
lost.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinch_conv_async import to_dict
from sinch_conv_async._wire.envelope import error_fields, token_error_fields
from sinch_conv_async._wire.structure import structure_error

DETAIL = {"type": "type.example/BadRequest", "field_violations": [{"field": "metadata"}]}

# What a server sent: code, message, status, details, extra.
BODIES = {
    "documented": (
        {"error": {"code": 3, "message": "no", "status": "INVALID_ARGUMENT", "details": [DETAIL]}},
        (3, "no", "INVALID_ARGUMENT", [DETAIL], {}),
    ),
    "documented, with more inside": (
        {"error": {"code": 3, "error": "malformed", "message": "no", "reference": "r"}},
        (3, "no", None, [], {"error": "malformed", "reference": "r"}),
    ),
    "documented, with more beside it": (
        {"error": {"code": 3, "message": "no"}, "traceId": "t", "message": "outer"},
        (3, "no", None, [], {"traceId": "t", "message": "outer"}),
    ),
    "one name inside and beside": (
        {"error": {"message": "no", "traceId": "inner", "reference": "r"}, "traceId": "outer"},
        (
            None,
            "no",
            None,
            [],
            {"traceId": "outer", "reference": "r", "error": {"traceId": "inner"}},
        ),
    ),
    "one name inside and beside, and an error inside": (
        {"error": {"message": "no", "traceId": "inner", "error": "e"}, "traceId": "outer"},
        (None, "no", None, [], {"traceId": "outer", "error": {"traceId": "inner", "error": "e"}}),
    ),
    "an empty error, and the fields beside it": (
        {"error": {}, "message": "m", "code": 7},
        (7, "m", None, [], {}),
    ),
    "flat": (
        {"code": 501, "message": "not yet", "status": "UNIMPLEMENTED", "details": []},
        (501, "not yet", "UNIMPLEMENTED", [], {}),
    ),
    "a problem document": (
        {
            "type": "https://errors.example/too-many-requests",
            "title": "Too many",
            "status": 429,
            "detail": "wait",
            "instance": "/x",
        },
        (
            429,
            "wait",
            None,
            [],
            {
                "type": "https://errors.example/too-many-requests",
                "title": "Too many",
                "instance": "/x",
            },
        ),
    ),
    "a problem document with a title alone": (
        {"type": "https://errors.example/expired", "title": "Token expired"},
        (None, "Token expired", None, [], {"type": "https://errors.example/expired"}),
    ),
    "a problem document with errors": (
        {
            "title": "Invalid",
            "errors": [{"pointer": "/metadata", "detail": "too long"}],
            "details": [],
        },
        (None, "Invalid", None, [{"pointer": "/metadata", "detail": "too long"}], {}),
    ),
    "details and errors": (
        {"details": [1], "errors": [2]},
        (None, "", None, [1], {"errors": [2]}),
    ),
    "details that are no list": (
        {"error": {"code": 3, "details": {"reason": "quota"}}},
        (3, "", None, [], {"details": {"reason": "quota"}}),
    ),
    "a text": ({"error": "token expired"}, (None, "token expired", None, [], {})),
    "OAuth's": (
        {
            "error": "invalid_request",
            "error_description": "the grant is missing",
            "error_hint": "h",
        },
        (None, "the grant is missing", None, [], {"error": "invalid_request", "error_hint": "h"}),
    ),
    "a text and a message": (
        {"error": "gone", "message": "no"},
        (None, "no", None, [], {"error": "gone"}),
    ),
    "code and text": (
        {"code": "invalid_id", "text": "no such id"},
        (None, "no such id", "invalid_id", [], {}),
    ),
    "errorCode": (
        {"errorCode": 40401, "message": "no number", "reference": "r"},
        (40401, "no number", None, [], {"reference": "r"}),
    ),
    "a code as text": ({"error": {"code": "400", "message": "no"}}, (400, "no", None, [], {})),
    "a code with a fraction of nothing": (
        {"code": 400.0, "message": "no"},
        (400, "no", None, [], {}),
    ),
    "a code with a fraction": ({"code": 400.5}, (None, "", None, [], {"code": 400.5})),
    "a code beyond all numbers": ({"code": 1e300}, (None, "", None, [], {"code": 1e300})),
    "a code of many digits": ({"code": "9" * 30}, (None, "", "9" * 30, [], {})),
    "two numbers": ({"code": 5, "status": 404}, (5, "", None, [], {"status": 404})),
    "wrong types": (
        {"error": {"code": True, "message": ["no"], "status": {}, "details": "none"}},
        (None, "", None, [], {"code": True, "message": ["no"], "status": {}, "details": "none"}),
    ),
    "nulls": (
        {"error": {"code": None, "message": None, "status": None, "details": None}},
        (None, "", None, [], {}),
    ),
    "an error that is null": ({"error": None, "message": "no"}, (None, "no", None, [], {})),
    "an error that is false": (
        {"error": False, "message": "no"},
        (None, "no", None, [], {"error": False}),
    ),
    "an error that is a list": ({"error": [1], "message": "no"}, (None, "no", None, [1], {})),
    "a bare text": ("upstream gone", (None, "upstream gone", None, [], {})),
    "a bare list": ([DETAIL], (None, "", None, [DETAIL], {})),
    "a bare number": (7, (None, "", None, [], {"error": 7})),
    "nothing": ({}, (None, "", None, [], {})),
    "null": (None, (None, "", None, [], {})),
}


def plain(text):
    return text


@pytest.mark.parametrize("name", BODIES)
def test_the_four_fields_are_found_and_the_rest_is_extra(name):
    said, (code, message, status, details, extra) = BODIES[name]
    before = json.dumps(said)
    assert error_fields(said, plain) == {
        "code": code,
        "message": message,
        "status": status,
        "details": details,
        "extra": extra,
    }
    assert json.dumps(said) == before


@pytest.mark.parametrize("name", BODIES)
def test_plain_data_of_an_error_has_every_field(name):
    said, (code, message, status, _, extra) = BODIES[name]
    error = structure_error(400, json.dumps(said).encode(), scrub=plain)
    written = to_dict(error)
    assert (error.code, error.message, error.status, error.extra) == (code, message, status, extra)
    found = {"code": code, "message": message, "status": status}
    assert all(written[name] == value for name, value in found.items() if value)
    twice = written.pop("extra", {})
    assert {**{name: written[name] for name in extra}, **twice} == extra
    assert set(written) == {*extra, "code", "message", "status", "details"}


NAMES = st.sampled_from(
    [
        "error",
        "code",
        "message",
        "status",
        "details",
        "detail",
        "errors",
        "title",
        "type",
        "text",
        "errorCode",
        "traceId",
        "reference",
    ]
)


JSON = st.recursive(
    st.integers(10, 99) | st.text("xyz", min_size=1, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def values(value):
    """Every number and every text that is not a name."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [found for item in value for found in values(item)]
    return [str(value)] if value not in (None, "") else []


@given(st.dictionaries(NAMES, JSON, max_size=6))
def test_no_value_is_lost_and_none_is_made_up(said):
    assert sorted(values(error_fields(said, plain))) == sorted(values(said))


def upper(text):
    return text.upper()


def test_values_and_unknown_names_are_scrubbed_and_known_names_are_not():
    said = {
        "error": {
            "message": "m",
            "details": [{"reason": "r", "mine": ["v"]}],
            "other": {"message": "x"},
        }
    }
    assert error_fields(said, upper) == {
        "code": None,
        "message": "M",
        "status": None,
        "details": [{"reason": "R", "MINE": ["V"]}],
        "extra": {"OTHER": {"message": "X"}},
    }


def test_an_error_of_the_token_endpoint_holds_no_tokens():
    said = {
        "error": "e",
        "error_hint": "h",
        "access_token": "a",
        "refresh_token": "r",
        "id_token": "i",
    }
    assert token_error_fields(said, upper) == {"error": "E", "error_hint": "H"}
