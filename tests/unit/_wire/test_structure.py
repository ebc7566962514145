"""Whatever JSON arrives, the outcome is a model that has lost nothing, or words that say what is
wrong and where.
"""

from __future__ import annotations

import copy
import datetime
import json
import pickle
import re

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sinch_conv_async import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    CallTimeoutError,
    Channel,
    ChannelIdentity,
    ConversationMessage,
    Direction,
    ErrorDetail,
    MessagesSource,
    MetadataUpdate,
    NotFoundError,
    NotUpdated,
    PermissionDeniedError,
    ProcessingMode,
    RateLimitedError,
    ServerError,
    TokenError,
    Updated,
    to_dict,
)
from sinch_conv_async._wire import json as _json
from sinch_conv_async._wire.arguments import Credentials
from sinch_conv_async._wire.structure import structure_error, structure_message, structure_page
from sinch_conv_async.models import MessagePage

UTC = datetime.UTC

MESSAGE = {
    "id": "01HZX0M3SS4G3",
    "accept_time": "2026-03-01T12:30:15.25Z",
    "channel_identity": {"identity": "46701234567", "channel": "MESSENGER", "app_id": "01APP"},
    "contact_id": "01CONTACT",
    "conversation_id": "01CONVERSATION",
    "direction": "TO_APP",
    "metadata": '{"ticket": "closed"}',
    "injected": False,
    "sender_id": "46709999999",
    "processing_mode": "DISPATCH",
}
IDENTITY_FIELDS = ["identity", "channel", "app_id"]
# Words and places, and nothing of what was found there.
WRONG = re.compile(
    r"(?:(?:^|; )expected (?:an object|a string|true or false|an RFC 3339 timestamp) @ \$(?:\.[a-z_]+){0,2})+"
)

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
STAMPS = st.datetimes(
    timezones=st.sampled_from([UTC, datetime.timezone(datetime.timedelta(hours=5.5))])
).map(datetime.datetime.isoformat)
# Names that a wire may use for fields of its own, and that mean something to Python or to the
# models.
NAMES = st.sampled_from(
    ["extra", "self", "cls", "__init__", "", "app_message", "type", "@type"]
) | st.text(max_size=6)


def objects(named, values):
    return st.builds(
        lambda others, fields: {
            **{name: other for name, other in others.items() if name not in named},
            **fields,
        },
        st.dictionaries(NAMES, JSON, max_size=4),
        st.dictionaries(st.sampled_from(named), values, max_size=len(named)),
    )


# Mostly messages, for chance alone never makes one.
IDENTITIES = objects(
    IDENTITY_FIELDS, st.none() | st.text(max_size=8) | st.sampled_from(list(Channel))
)
MESSAGES = st.builds(
    lambda message, identity, stamp, injected: {
        **message,
        "channel_identity": identity,
        "accept_time": stamp,
        "injected": injected,
    },
    objects(
        [name for name in MESSAGE if name not in ("channel_identity", "accept_time", "injected")],
        st.none() | st.text(max_size=8),
    ),
    st.none() | IDENTITIES,
    st.none() | STAMPS,
    st.none() | st.booleans(),
)


@pytest.fixture(params=["orjson", "json"], autouse=True)
def json_library(request, monkeypatch):
    """Each fact holds with the [speedups] and without them."""
    if request.param == "orjson":
        pytest.importorskip("orjson")
    else:
        monkeypatch.setattr(_json, "loads", _json._loads_json)


def read(value):
    return structure_message(json.dumps(value).encode())


def failed(http_status, value, scrub=str):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return structure_error(http_status, body, scrub=scrub)


def without_nulls(fields):
    return {name: value for name, value in fields.items() if value is not None}


# Messages


def test_every_field_of_the_specification_is_read():
    assert read(MESSAGE) == ConversationMessage(
        id="01HZX0M3SS4G3",
        accept_time=datetime.datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC),
        channel_identity=ChannelIdentity("46701234567", Channel.MESSENGER, "01APP"),
        contact_id="01CONTACT",
        conversation_id="01CONVERSATION",
        direction=Direction.TO_APP,
        metadata='{"ticket": "closed"}',
        injected=False,
        sender_id="46709999999",
        processing_mode=ProcessingMode.DISPATCH,
    )


def test_any_field_may_be_missing_or_null():
    for name in MESSAGE:
        others = {other: value for other, value in MESSAGE.items() if other != name}
        assert getattr(read(others), name) is None
        assert read({**others, name: None}) == read(others)


@pytest.mark.parametrize("name", IDENTITY_FIELDS)
def test_any_field_of_the_channel_identity_may_be_missing_or_null(name):
    others = {other: value for other, value in MESSAGE["channel_identity"].items() if other != name}
    missing = read({"channel_identity": others})
    assert getattr(missing.channel_identity, name) is None
    assert read({"channel_identity": {**others, name: None}}) == missing


def test_an_empty_object_is_a_message_of_which_nothing_is_known():
    assert read({}) == ConversationMessage()


def test_all_fields_null_is_a_message_of_which_nothing_is_known():
    assert read(dict.fromkeys(MESSAGE)) == ConversationMessage()
    assert (
        read({"channel_identity": dict.fromkeys(IDENTITY_FIELDS)}).channel_identity
        == ChannelIdentity()
    )


@pytest.mark.parametrize(
    ("text", "member"),
    [
        (text, member)
        for words, place in [(Direction, "direction"), (ProcessingMode, "processing_mode")]
        for text, member in [(word.value, (place, word)) for word in words]
    ],
)
def test_a_known_word_becomes_its_member(text, member):
    place, word = member
    assert getattr(read({place: text}), place) is word


def test_a_known_channel_becomes_its_member():
    for channel in Channel:
        assert (
            read({"channel_identity": {"channel": channel.value}}).channel_identity.channel
            is channel
        )


@pytest.mark.parametrize(
    "word", ["UNDEFINED_DIRECTION", "CHANNEL_UNSPECIFIED", "to_app", "", "__class__"]
)
def test_an_unknown_word_stays_as_its_text(word):
    message = read(
        {"direction": word, "processing_mode": word, "channel_identity": {"channel": word}}
    )
    for value in (message.direction, message.processing_mode, message.channel_identity.channel):
        assert type(value) is str
        assert value == word


@pytest.mark.parametrize(
    "name", ["app_message", "extra", "self", "cls", "__init__", "", "0", "é", "\ud800"]
)
def test_a_field_that_the_models_do_not_name_is_kept_as_it_came(name):
    for value in [None, {}, {"text_message": {"text": "hi"}}, [1, [2.5]], "text", 0, False, 2**70]:
        message = read({"id": "01", name: value, "channel_identity": {name: value}})
        assert message.extra == message.channel_identity.extra == {name: value}
        assert type(message.extra) is dict
        assert to_dict(message) == {"id": "01", name: value, "channel_identity": {name: value}}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T12:30:15Z", datetime.datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)),
        ("2026-03-01t12:30:15z", datetime.datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)),
        ("2026-03-01T12:30:15.1Z", datetime.datetime(2026, 3, 1, 12, 30, 15, 100_000, tzinfo=UTC)),
        (
            "2026-03-01T12:30:15.123456789Z",
            datetime.datetime(2026, 3, 1, 12, 30, 15, 123_456, tzinfo=UTC),
        ),
        (
            "2026-03-01T14:30:15.999999999+02:00",
            datetime.datetime(2026, 3, 1, 12, 30, 15, 999_999, tzinfo=UTC),
        ),
        ("2026-03-01T12:30:15-00:00", datetime.datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)),
        (
            "2016-12-31T23:59:60.5Z",
            datetime.datetime(2016, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC),
        ),
        ("0001-01-01T00:00:00+14:00", datetime.datetime.fromisoformat("0001-01-01T00:00:00+14:00")),
        ("9999-12-31T23:59:59-12:00", datetime.datetime.fromisoformat("9999-12-31T23:59:59-12:00")),
    ],
)
def test_a_timestamp_is_read_with_its_fraction_and_offset(text, moment):
    message = read({"accept_time": text})
    assert message.accept_time == moment
    assert message.accept_time.tzinfo is not None
    assert read(to_dict(message)) == message
    assert hash(message) == hash(pickle.loads(pickle.dumps(message)))


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T12:30:15",
        "2026-03-01T12:30:15.123456789",
        "2026-03-01",
        "2026-02-30T00:00:00Z",
        "2026-03-01T12:30:15+25:00",
        "1772368215",
        "yesterday",
        " ",
        "\ud800",
        "2026-03-01T12:30:15Z\x00",
    ],
)
def test_a_text_that_is_no_timestamp_is_kept_in_extra(text):
    message = read({"id": "01", "accept_time": text})
    assert message == ConversationMessage("01", extra={"accept_time": text})
    assert to_dict(message) == {"id": "01", "accept_time": text}


def test_an_empty_timestamp_is_none():
    assert read({"id": "01", "accept_time": ""}) == ConversationMessage("01")


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T12:30:15.1234567Z",
        "2026-03-01T12:30:15.123456000Z",
        "2026-03-01T14:30:15.999999999+02:00",
        "2016-12-31T23:59:60Z",
    ],
)
def test_what_a_datetime_cannot_hold_is_kept_in_extra(text):
    message = read({"accept_time": text})
    assert message.accept_time is not None
    assert message.extra == {"accept_time": text}


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T12:30:15Z",
        "2026-03-01t12:30:15z",
        "2026-03-01T12:30:15.000Z",
        "2026-03-01T12:30:15.5Z",
        "2026-03-01T12:30:15.318204Z",
        "2026-03-01T12:30:15+00:00",
        "2026-03-01T12:30:15.5-03:30",
        "2026-03-01T12:30:15.123456789Z",
        "2016-12-31T23:59:60Z",
        "20260301T123015Z",
    ],
)
def test_a_timestamp_is_written_as_the_text_that_came(text):
    message = read({"accept_time": text})
    for twin in (
        message,
        copy.copy(message),
        copy.deepcopy(message),
        pickle.loads(pickle.dumps(message)),
    ):
        assert to_dict(twin) == {"accept_time": text}


def test_the_text_of_a_timestamp_is_not_part_of_the_message():
    message = read({"accept_time": "2026-03-01T12:30:15.000Z"})
    made = ConversationMessage(accept_time=datetime.datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC))
    assert (message, hash(message), repr(message)) == (made, hash(made), repr(made))
    assert message.extra == {}


@pytest.mark.parametrize(
    ("offset", "written"),
    [
        (datetime.timedelta(0), "2026-03-01T12:30:15.500000Z"),
        (-datetime.timedelta(hours=3.5), "2026-03-01T12:30:15.500000-03:30"),
    ],
)
def test_a_message_that_was_not_read_has_its_time_in_rfc_3339(offset, written):
    moment = datetime.datetime(2026, 3, 1, 12, 30, 15, 500_000, tzinfo=datetime.timezone(offset))
    assert to_dict(ConversationMessage(accept_time=moment)) == {"accept_time": written}
    changed = attrs.evolve(read({"accept_time": "2026-03-01T12:30:15.000Z"}), accept_time=moment)
    assert to_dict(changed) == {"accept_time": written}


EXPECTED = {
    **dict.fromkeys(MESSAGE, "a string"),
    "accept_time": "an RFC 3339 timestamp",
    "channel_identity": "an object",
    "injected": "true or false",
}


@pytest.mark.parametrize("name", MESSAGE)
def test_a_value_of_the_wrong_type_is_named_by_its_place(name):
    for value in [0, 1.5, True, "canary", ["canary"], {"canary": "canary"}]:
        right = {
            "a string": str,
            "an RFC 3339 timestamp": str,
            "an object": dict,
            "true or false": bool,
        }
        if isinstance(value, right[EXPECTED[name]]):
            assert isinstance(read({name: value}), ConversationMessage)
        else:
            assert read({**MESSAGE, name: value}) == f"expected {EXPECTED[name]} @ $.{name}"


@pytest.mark.parametrize("name", IDENTITY_FIELDS)
def test_a_wrong_value_in_the_channel_identity_is_named_by_its_place(name):
    for value in [0, 1.5, True, ["canary"], {"canary": "canary"}]:
        assert (
            read({"channel_identity": {name: value}})
            == f"expected a string @ $.channel_identity.{name}"
        )


def test_every_wrong_value_is_named():
    wrong = read({"id": 1, "injected": "yes", "channel_identity": {"channel": 1}})
    assert set(wrong.split("; ")) == {
        "expected a string @ $.id",
        "expected true or false @ $.injected",
        "expected a string @ $.channel_identity.channel",
    }


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "canary", [], [{}], [MESSAGE]])
def test_what_is_no_object_is_no_message(value):
    assert read(value) == "expected an object @ $"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"<html>canary</html>",
        b'{"id": "canary"',
        b'{"id": "\xff"}',
        b"\x00",
        '{"id": "01"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"app_message":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"canary": ' + b"1" * 5000 + b"}",
    ],
)
def test_what_cannot_be_read_as_json_is_no_message(body):
    assert structure_message(body) == "not readable as JSON @ $"


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"id": "01"}',
        b'{"id": "02", "id": "01"}',
        b'{"id": 5, "id": "01"}',
    ],
)
def test_what_other_clients_read_is_read(body):
    assert structure_message(body) == ConversationMessage(id="01")


def test_numbers_that_json_does_not_have_are_kept_too():
    message = structure_message(b'{"id": "01", "low": -Infinity, "high": 1e999, "none": NaN}')
    assert message.extra["low"] == -message.extra["high"] == float("-inf")
    assert message.extra["none"] != message.extra["none"]


def test_a_deep_value_is_kept_copies_and_pickles():
    depth = 99
    message = structure_message(b'{"app_message": ' + b"[" * depth + b"]" * depth + b"}")
    value = message.extra["app_message"]
    for _ in range(depth - 1):
        (value,) = value
    assert value == []
    for twin in (copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
        assert twin.extra == message.extra


def test_a_value_too_deep_to_copy_is_not_readable():
    body = b'{"app_message": ' + b"[" * 100 + b"]" * 100 + b"}"
    assert structure_message(body) == "not readable as JSON @ $"


@given(JSON | MESSAGES | objects(list(MESSAGE), JSON))
@example({"channel_identity": []})
@example({"extra": {"extra": {"extra": 1}}})
def test_whatever_json_arrives_is_a_message_or_words_about_it(value):
    outcome = read(value)
    if isinstance(outcome, str):
        assert WRONG.fullmatch(outcome), outcome
    else:
        assert isinstance(outcome, ConversationMessage)


@given(st.binary())
def test_whatever_bytes_arrive_are_a_message_or_words_about_it(body):
    outcome = structure_message(body)
    assert isinstance(outcome, ConversationMessage) or re.search(r" @ \$", outcome)


@given(MESSAGES)
def test_nothing_that_the_server_says_of_a_message_is_lost(value):
    message = read(value)
    written = to_dict(message)
    assert read(written) == message
    assert json.loads(json.dumps(written)) == written
    expected = {
        name: field for name, field in value.items() if field is not None or name not in MESSAGE
    }
    if (stamp := expected.pop("accept_time", None)) is not None:
        assert datetime.datetime.fromisoformat(
            written.pop("accept_time")
        ) == datetime.datetime.fromisoformat(stamp)
    if "channel_identity" in expected:
        expected["channel_identity"] = {
            name: field
            for name, field in expected["channel_identity"].items()
            if field is not None or name not in IDENTITY_FIELDS
        }
    assert written == expected


@given(MESSAGES)
def test_a_message_that_was_read_hashes_copies_and_pickles(value):
    message = read(value)
    for twin in (
        copy.copy(message),
        copy.deepcopy(message),
        pickle.loads(pickle.dumps(message)),
        read(value),
    ):
        assert twin == message
        assert hash(twin) == hash(message)


# Pages


def page(value):
    return structure_page(json.dumps(value).encode())


def test_a_page_is_its_messages_and_the_token_of_the_next():
    found = page({"messages": [MESSAGE, {"id": "02"}], "next_page_token": "next", "total": 7})
    assert found == MessagePage((read(MESSAGE), read({"id": "02"})), "next")
    assert "next" not in repr(found)


@pytest.mark.parametrize(
    "value", [{}, {"messages": None, "next_page_token": None}, {"messages": []}]
)
def test_a_page_may_be_empty(value):
    assert page(value) == MessagePage((), None)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "expected an object @ $"),
        (None, "expected an object @ $"),
        ({"messages": {}}, "expected a list @ $.messages"),
        ({"messages": "canary"}, "expected a list @ $.messages"),
        ({"messages": [{"id": "01"}, None]}, "expected an object @ $.messages[1]"),
        (
            {"messages": [{"channel_identity": {"channel": 7}}]},
            "expected a string @ $.messages[0].channel_identity.channel",
        ),
        ({"next_page_token": 7}, "expected a string @ $.next_page_token"),
        (
            {"next_page_token": "x" * 4097},
            "expected at most 4,096 characters that encode to UTF-8 @ $.next_page_token",
        ),
        (
            {"next_page_token": "\ud800"},
            "expected at most 4,096 characters that encode to UTF-8 @ $.next_page_token",
        ),
    ],
)
def test_what_is_wrong_with_a_page_is_named_by_its_place(value, problem):
    assert page(value) == problem


def test_a_page_that_is_not_json_is_none():
    assert structure_page(b"<html>") == "not readable as JSON @ $"


# Errors

CLASSES = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitedError,
}


def test_the_class_of_an_error_is_decided_by_the_http_status():
    for http_status in range(400, 600):
        error = failed(http_status, {"error": {"code": 404, "status": "NOT_FOUND"}})
        wanted = CLASSES.get(http_status, ServerError if http_status >= 500 else ApiError)
        assert type(error) is wanted, http_status
        assert (error.http_status, error.code, error.status) == (http_status, 404, "NOT_FOUND")


DETAIL = {"type_url": "type.example/BadRequest", "value": "CgltZXNzYWdl"}

ENVELOPES = {
    "documented": (
        {"error": {"code": 3, "message": "no", "status": "INVALID_ARGUMENT", "details": [DETAIL]}},
        (3, "no", "INVALID_ARGUMENT", (ErrorDetail("type.example/BadRequest", "CgltZXNzYWdl"),)),
    ),
    "documented, with nulls": (
        {"error": {"code": None, "message": None, "status": None, "details": None}},
        (None, "", None, ()),
    ),
    "documented, with wrong types": (
        {"error": {"code": True, "message": ["no"], "status": {}, "details": "none"}},
        (None, "", None, ()),
    ),
    "documented, with numbers as text": (
        {"error": {"code": "16", "message": "no"}},
        (16, "no", None, ()),
    ),
    "documented, empty": ({"error": {}}, (None, "", None, ())),
    "flat, as the specification's examples": (
        {"code": 501, "message": "not yet", "status": "UNIMPLEMENTED", "details": []},
        (501, "not yet", "UNIMPLEMENTED", ()),
    ),
    "a problem document": (
        {
            "type": "https://example.com/quota",
            "title": "Quota",
            "status": 429,
            "detail": "used up",
            "trace": "t",
        },
        (429, "used up", None, ()),
    ),
    "a problem document with its title alone": ({"title": "Quota"}, (None, "Quota", None, ())),
    "a problem document with errors": (
        {"title": "Invalid", "errors": [{"pointer": "/metadata", "detail": "too long"}]},
        (
            None,
            "Invalid",
            None,
            (ErrorDetail(extra={"pointer": "/metadata", "detail": "too long"}),),
        ),
    ),
    "a text in error": ({"error": "token expired"}, (None, "token expired", None, ())),
    "OAuth's": (
        {"error": "invalid_request", "error_description": "the grant is missing"},
        (None, "the grant is missing", None, ()),
    ),
    "code and text": (
        {"code": "invalid_id", "text": "no such id"},
        (None, "no such id", "invalid_id", ()),
    ),
    "errorCode": ({"errorCode": 40401, "message": "no number"}, (40401, "no number", None, ())),
    "an error that is null": ({"error": None, "message": "no"}, (None, "no", None, ())),
    "an error that is a list": (
        {"error": [1], "message": "no"},
        (None, "no", None, (ErrorDetail(extra={"value": 1}),)),
    ),
    "a string": ("upstream gone", (None, "upstream gone", None, ())),
    "a list": (
        [DETAIL],
        (None, "", None, (ErrorDetail("type.example/BadRequest", "CgltZXNzYWdl"),)),
    ),
    "a number": (7, (None, "", None, ())),
    "null": (None, (None, "", None, ())),
    "true": (True, (None, "", None, ())),
    "an empty object": ({}, (None, "", None, ())),
    "the names that Python uses": (
        {"self": 1, "__class__": 2, "extra": 3, "": 4},
        (None, "", None, ()),
    ),
}


@pytest.mark.parametrize("name", ENVELOPES)
def test_what_can_be_read_of_an_error_is_read(name):
    value, expected = ENVELOPES[name]
    error = failed(403, value)
    assert type(error) is PermissionDeniedError
    assert (error.code, error.message, error.status, error.details) == expected
    assert error.body == json.dumps(value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><h1>502 Bad Gateway</h1></html>",
        b"upstream connect error",
        b'{"error": {"code": 5',
        b"\xff\xfe\xfd",
        b"[" * 100_000,
        b'{"error": {"code": ' + b"5" * 5000 + b"}}",
    ],
)
def test_a_body_that_is_not_json_is_kept_as_text(body):
    error = failed(502, body)
    assert type(error) is ServerError
    assert (error.code, error.message, error.status, error.details) == (None, "", None, ())
    assert error.body == body.decode("utf-8", "replace")[:2048]


def test_plain_data_is_not_the_models_own():
    message = read({"id": "01", "app_message": {"text": "kept"}})
    to_dict(message)["app_message"]["text"] = "changed"
    assert message.extra["app_message"] == {"text": "kept"}
    detail = ErrorDetail("t", extra={"field": ["kept"]})
    to_dict(detail)["field"].append("changed")
    assert detail.extra == {"field": ["kept"]}


def test_of_half_a_million_details_a_hundred_are_kept():
    body = {"error": {"code": 5, "details": list(range(500_000))}}
    assert [detail.extra["value"] for detail in failed(400, body).details] == list(range(100))


@pytest.mark.parametrize("depth", [400, 700, 900, 2000, 5000, 30_000])
def test_details_too_deep_to_look_through_leave_the_class_and_the_body(depth):
    """Which depth is too much, and for whom, differs between Python versions."""
    body = b'{"error": {"code": 5, "details": ' + b"[" * depth + b"]" * depth + b"}}"
    error = failed(404, body)
    assert type(error) is NotFoundError
    assert error.body == body.decode()[:2048]


@pytest.mark.parametrize("length", [2047, 2048, 2049, 1_000_000])
@pytest.mark.parametrize("character", ["x", "é", "\N{GRINNING FACE}"])
def test_the_first_two_kibi_characters_of_a_body_are_kept(character, length):
    assert failed(500, (character * length).encode()).body == character * min(length, 2048)


DETAILS = {
    "type_url": ({"type_url": "a", "value": "b"}, ErrorDetail("a", "b")),
    "@type": ({"@type": "a", "value": "b"}, ErrorDetail("a", "b", {"@type": "a"})),
    "type": ({"type": "a", "owner": "o"}, ErrorDetail("a", None, {"type": "a", "owner": "o"})),
    "two names for the type": (
        {"type_url": "a", "@type": "b"},
        ErrorDetail("a", None, {"@type": "b"}),
    ),
    "two names that say the same": (
        {"type_url": "a", "@type": "a"},
        ErrorDetail("a", None, {"type_url": "a", "@type": "a"}),
    ),
    "a field that says the same": (
        {"type_url": "a", "reason": "a"},
        ErrorDetail("a", None, {"reason": "a"}),
    ),
    "a type_url that is no text": (
        {"type_url": 1, "type": "a"},
        ErrorDetail("a", None, {"type_url": 1, "type": "a"}),
    ),
    "a value that is no text": ({"value": {"x": 1}}, ErrorDetail(extra={"value": {"x": 1}})),
    "nulls": (
        {"type_url": None, "value": None},
        ErrorDetail(extra={"type_url": None, "value": None}),
    ),
    "a field named extra": ({"extra": 1, "": 2}, ErrorDetail(extra={"extra": 1, "": 2})),
    "nothing": ({}, ErrorDetail()),
}


@pytest.mark.parametrize("name", DETAILS)
def test_a_detail_is_read_and_written_back_as_it_came(name):
    value, expected = DETAILS[name]
    error = failed(400, {"error": {"details": [value]}})
    assert error.details == (expected,)
    assert to_dict(error.details[0]) == value
    assert to_dict(error)["details"] == [value]


@pytest.mark.parametrize("value", ["text", 5, None, [1], True])
def test_a_detail_that_is_no_object_is_a_value(value):
    (detail,) = failed(400, {"details": [value]}).details
    assert to_dict(detail) == {"value": value}
    assert detail.value == (value if isinstance(value, str) else None)


@given(st.lists(objects(["type_url", "value", "@type", "type"], JSON), max_size=4))
def test_nothing_that_the_server_says_in_details_is_lost(details):
    error = failed(500, {"error": {"details": details}})
    assert to_dict(error)["details"] == details
    assert all(
        hash(detail) == hash(twin)
        for detail, twin in zip(error.details, copy.deepcopy(error.details), strict=True)
    )


@given(
    st.integers(400, 599),
    st.binary()
    | JSON
    | objects(["error", "code", "message", "status", "details", "detail", "errors", "title"], JSON),
)
def test_whatever_arrives_as_an_error_is_an_api_error_of_the_class_of_its_status(
    http_status, value
):
    error = failed(http_status, value)
    assert type(error) is CLASSES.get(http_status, ServerError if http_status >= 500 else ApiError)
    assert error.code is None or type(error.code) is int
    assert type(error.message) is str
    assert error.status is None or type(error.status) is str
    assert type(error.details) is tuple
    assert len(error.body) <= 2048
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.code, twin.details, twin.body, twin.http_status) == (
        error.code,
        error.details,
        error.body,
        http_status,
    )


# Credentials in what a server says


SECRET = "canary-secret"
scrub = Credentials("my-id", SECRET).scrub
IN_JSON = "".join(f"\\u{ord(sign):04X}" for sign in SECRET)


@pytest.mark.parametrize(
    "value",
    [
        {
            "error": {
                "message": f"key {SECRET}",
                "status": SECRET,
                "details": [{SECRET: [SECRET], "value": SECRET}],
            }
        },
        {"error": SECRET},
        {"error": {"reference": [SECRET]}, "traceId": SECRET, SECRET: 1},
        {"title": SECRET, "errors": [SECRET, {SECRET: {SECRET: SECRET}}]},
        SECRET,
        [SECRET],
        f"<html>{SECRET}</html>".encode(),
        SECRET.encode(),
        f'{{"error": "{IN_JSON}"}}'.encode(),
        f'{{"{IN_JSON}": {{"x": ["{IN_JSON}"]}}}}'.encode(),
        f'{{"error": "{SECRET}"'.encode(),
        f'{{"error": "{SECRET}", "error": "twice"}}'.encode(),
    ],
)
def test_a_credential_that_the_server_echoes_is_cut_out_everywhere(value):
    error = failed(401, value, scrub)
    shown = f"{error} {error!r} {error.args!r} {to_dict(error)} {error.body} {error.extra} {[d.extra for d in error.details]}"
    assert SECRET not in shown
    assert IN_JSON not in shown
    assert "[redacted]" in error.body


@pytest.mark.parametrize("name", ["error", "message", "error_description", "field_violations"])
def test_a_credential_that_is_a_known_name_hides_no_field(name):
    said = {
        "error": {"code": 3, "message": "no", "details": [{"field_violations": 1}]},
        "error_description": "d",
    }
    error = failed(400, said, Credentials("id", name).scrub)
    assert (error.code, error.message) == (3, "no")
    assert error.details == (ErrorDetail(extra={"field_violations": 1}),)
    assert error.extra == {"error_description": "d"}


@pytest.mark.parametrize("filler", ["x", "é", "\N{GRINNING FACE}"])
def test_a_credential_on_the_edge_of_what_is_kept_leaves_no_half(filler):
    for before in range(2038, 2050):
        error = failed(500, (filler * before + SECRET * 200).encode(), scrub)
        assert error.body == (filler * before + "[redacted]" * 200)[:2048]


def test_a_body_without_a_credential_is_kept_to_the_letter():
    body = b'{ "error" : "\\u0063", "error": "twice" }'
    assert failed(500, body, scrub).body == body.decode()


def test_a_body_with_a_credential_cut_out_can_still_be_read():
    body = f'{{"error": "Schlüssel {SECRET}"}}'.encode()
    assert failed(401, body, scrub).body == '{"error": "Schlüssel [redacted]"}'


@pytest.mark.parametrize("length", [18_000, 19_000, 40_000])
def test_no_half_of_a_credential_is_kept_where_the_search_of_a_long_body_ends(length):
    body = SECRET * (length // len(SECRET))
    assert "c" not in failed(500, body.encode(), scrub).body.replace("[redacted]", "").replace(
        "[redacte", ""
    )


# to_dict


def test_enum_members_are_written_as_plain_text():
    message = read(MESSAGE)
    written = to_dict(message)
    assert type(written["direction"]) is type(written["processing_mode"]) is str
    assert type(written["channel_identity"]["channel"]) is str
    assert (
        type(to_dict(MetadataUpdate("01", "x", MessagesSource.DISPATCH_SOURCE))["messages_source"])
        is str
    )


def test_an_update_is_written_with_its_fields():
    assert to_dict(MetadataUpdate("01", "")) == {"message_id": "01", "metadata": ""}
    assert to_dict(MetadataUpdate("01", "x", "DISPATCH_SOURCE")) == {
        "message_id": "01",
        "metadata": "x",
        "messages_source": "DISPATCH_SOURCE",
    }


def test_an_outcome_is_written_with_what_is_in_it():
    update = MetadataUpdate("01", "x")
    written_update = {"message_id": "01", "metadata": "x"}
    assert to_dict(Updated(update, message=read({"id": "01"}), attempts=1)) == {
        "ok": True,
        "update": written_update,
        "message": {"id": "01"},
        "attempts": 1,
    }
    assert to_dict(NotUpdated(update, error=TokenError("no token"))) == {
        "ok": False,
        "update": written_update,
        "error": {"status": "TokenError", "message": "no token"},
        "attempts": 0,
    }


def test_an_api_error_is_written_as_the_error_object_and_any_other_by_its_class():
    value = {
        "code": 5,
        "message": "no such message",
        "status": "NOT_FOUND",
        "details": [{"@type": "a"}],
    }
    assert to_dict(failed(404, {"error": value})) == value
    assert to_dict(failed(404, b"")) == {"code": None, "message": "", "status": None, "details": []}
    assert to_dict(CallTimeoutError("too late", 2, "no")) == {
        "status": "CallTimeoutError",
        "message": "too late",
    }


def test_an_identity_on_its_own_is_written_too():
    assert to_dict(ChannelIdentity("1", "FAX", extra={"x": None})) == {
        "identity": "1",
        "channel": "FAX",
        "x": None,
    }
