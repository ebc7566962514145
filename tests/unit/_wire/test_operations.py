"""What each operation asks, and how its answer is read."""

from __future__ import annotations

import datetime
import json
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from yarl import URL

from sinch_conv_async import (
    Channel,
    ConversationMessage,
    Direction,
    InvalidArgumentError,
    MessagesSource,
    MessagesView,
    NotFoundError,
    ResponseFormatError,
    TransportError,
)
from sinch_conv_async._wire.failure import Failure
from sinch_conv_async._wire.operations import (
    GetMessage,
    ListMessages,
    UpdateMetadata,
)
from sinch_conv_async._wire.responses import Response
from sinch_conv_async.models import MessagePage

ORIGIN = "https://eu.conversation.api.sinch.com"
PATH = "/v1/projects/project-1/messages/"
PAGE_SIZE = "?page_size=100"
UTC = datetime.UTC
NOON = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def update(message_id="01", metadata="x", source=None):
    return UpdateMetadata.of(ORIGIN, PATH, message_id, metadata, source)


def get(message_id="01MESSAGE", source=None):
    return GetMessage.of(ORIGIN, PATH, message_id, source)


def listed(**filters):
    return ListMessages.of(ORIGIN, PATH, **filters)


def query(operation):
    return {
        name: values[0] for name, values in parse_qs(operation.request.url.raw_query_string).items()
    }


def read(operation, body, *, status=200, reused=False):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return operation.read(Response(status, CIMultiDict(), body), scrub=str, reused=reused)


# Updates and reads of one message


@pytest.mark.parametrize("of", [update, get])
@pytest.mark.parametrize("source", [*MessagesSource, "CONVERSATION_SOURCE", "dispatch_source"])
def test_a_messages_source_is_a_query_parameter(of, source):
    assert of(source=source).request.target.endswith(f"?messages_source={str(source).upper()}")


@pytest.mark.parametrize("of", [update, get])
def test_no_messages_source_is_no_query(of):
    assert of("01").request.target == f"{PATH}01"


@pytest.mark.parametrize("of", [update, get])
@pytest.mark.parametrize(
    "source",
    ["", "DISPATCH", "dispatch-source", "DISPATCH_SOURCE&a=b", b"DISPATCH_SOURCE", 0, True, [], {}],
)
def test_an_unknown_messages_source_is_refused(of, source):
    with pytest.raises(
        InvalidArgumentError,
        match=r"^messages_source must be one of CONVERSATION_SOURCE, DISPATCH_SOURCE$",
    ) as caught:
        of(source=source)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("of", [update, get])
@pytest.mark.parametrize("message_id", ["", "..", "a/b", "a?b", 7, None])
def test_an_id_that_could_reach_elsewhere_is_refused(of, message_id):
    with pytest.raises(InvalidArgumentError, match=r"^message_id must be"):
        of(message_id)


def test_a_read_has_no_body_and_is_safe_to_repeat():
    request = get("01MESSAGE").request
    assert (request.method, request.target, request.body) == ("GET", f"{PATH}01MESSAGE", None)
    assert (get().safe, listed().safe, update().safe) == (True, True, False)


def test_a_read_gives_the_message_that_was_asked_for_and_no_other():
    assert read(get(), {"id": "01message", "metadata": "x"}) == ConversationMessage(
        "01message", metadata="x"
    )
    assert type(read(get(), {"id": "02"}).error) is ResponseFormatError
    assert type(read(get(), {"id": "02"}, reused=True).error) is TransportError
    assert type(read(get(), {}, status=404).error) is NotFoundError


# The list


def test_the_list_is_asked_for_with_its_page_size_alone():
    request = listed().request
    assert (request.method, str(request.url)) == (
        "GET",
        f"{ORIGIN}/v1/projects/project-1/messages{PAGE_SIZE}",
    )
    assert request.body is None
    assert request.max_response == 16 * 1024 * 1024


def test_every_filter_is_a_query_parameter():
    india = datetime.timezone(datetime.timedelta(hours=5.5))
    operation = listed(
        conversation_id="01CONVERSATION",
        contact_id="01CONTACT",
        app_id="01APP",
        channel_identity="+46 70&x=y#é/",
        channel="whatsapp",
        direction=Direction.TO_APP,
        start_time=datetime.datetime(2026, 3, 1, 17, 30, 0, 250_000, tzinfo=india),
        end_time=datetime.datetime(2026, 3, 2, tzinfo=UTC),
        only_recipient_originated=True,
        view=MessagesView.WITHOUT_METADATA,
        messages_source="DISPATCH_SOURCE",
        page_size=1000,
    )
    assert query(operation) == {
        "conversation_id": "01CONVERSATION",
        "contact_id": "01CONTACT",
        "app_id": "01APP",
        "channel_identity": "+46 70&x=y#é/",
        "channel": "WHATSAPP",
        "direction": "TO_APP",
        "start_time": "2026-03-01T12:00:00.250000Z",
        "end_time": "2026-03-02T00:00:00Z",
        "only_recipient_originated": "true",
        "view": "WITHOUT_METADATA",
        "messages_source": "DISPATCH_SOURCE",
        "page_size": "1000",
    }


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_is_written_as_json_writes_it(value):
    assert (
        query(listed(only_recipient_originated=value))["only_recipient_originated"]
        == str(value).lower()
    )


def test_every_channel_is_a_filter():
    for channel in [*Channel, *(channel.value.lower() for channel in Channel)]:
        assert query(listed(channel=channel))["channel"] == str(channel).upper()


REFUSED = {
    "conversation_id": ["", 7, "x" * 1025, "\ud800"],
    "contact_id": ["", b"x"],
    "app_id": ["", object()],
    "channel_identity": ["", 46701234567],
    "channel": ["", "PIGEON", 7],
    "direction": ["", "UP", True],
    "view": ["", "ALL"],
    "messages_source": ["", "BOTH"],
    "start_time": [
        "2026-03-01T12:00:00Z",
        datetime.datetime(2026, 3, 1),
        datetime.date(2026, 3, 1),
        1772366400,
    ],  # naive on purpose
    "end_time": [
        datetime.datetime(2026, 3, 1),
        datetime.datetime.max.replace(tzinfo=datetime.timezone(-datetime.timedelta(hours=1))),
    ],  # naive on purpose
    "only_recipient_originated": [1, "true", 0],
    "page_size": [0, -1, 1001, 10.0, True, "10", None],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_a_filter_that_cannot_be_right_is_refused_by_its_name(name, value):
    with pytest.raises(InvalidArgumentError, match=rf"^{name} must (be|encode) ") as caught:
        listed(**{name: value})
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("later", [NOON, NOON + datetime.timedelta(microseconds=1)])
def test_a_period_has_its_beginning_before_its_end(later):
    with pytest.raises(InvalidArgumentError, match=r"^start_time must be before end_time$"):
        listed(start_time=later, end_time=NOON)
    assert (
        len(query(listed(start_time=NOON, end_time=NOON + datetime.timedelta(microseconds=1)))) == 3
    )


@pytest.mark.parametrize("token", ["next", "a&b=c#d/e?é%20 +", "&page_token=x", "x" * 4096])
def test_the_next_page_has_the_same_filters_and_the_token(token):
    first = listed(channel_identity="&page_token=1", direction="TO_APP")
    second = first.next("before").next(token)
    assert query(second) == {**query(first), "page_token": token}
    assert second.request.max_response == first.request.max_response


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_whatever_a_filter_says_it_reaches_no_other_path_and_no_other_parameter(identity, token):
    try:
        operation = listed(channel_identity=identity).next(token)
    except (InvalidArgumentError, UnicodeEncodeError):
        return  # a lone surrogate; one in a token has been refused where the page was read
    url = URL(ORIGIN + operation.request.target, encoded=True)
    assert url.raw_path == "/v1/projects/project-1/messages"
    assert operation.request.target.isascii()
    assert operation.request.target.isprintable()
    assert query(operation) == {
        "page_size": "100",
        "channel_identity": identity,
        "page_token": token,
    }


def test_a_page_is_read():
    page = read(listed(), {"messages": [{"id": "01"}, {"id": "02"}], "next_page_token": "next"})
    assert page == MessagePage((ConversationMessage("01"), ConversationMessage("02")), "next")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"[]", "the 200 answer is not a page of messages: expected an object @ $"),
        (
            b'{"messages": [{"id": 1}]}',
            "the 200 answer is not a page of messages: expected a string @ $.messages[0].id",
        ),
    ],
)
def test_a_page_that_is_none_says_where_it_is_wrong(body, problem):
    failure = read(listed(), body)
    assert isinstance(failure, Failure)
    assert type(failure.error) is ResponseFormatError
    assert str(failure.error) == problem
    assert not failure.retryable


def test_an_error_of_the_list_is_the_error():
    assert type(read(listed(), {"error": {"code": 5}}, status=404).error) is NotFoundError
