"""Models are values: they compare, hash, copy and pickle, and their reprs keep contents to
themselves.
"""

from __future__ import annotations

import copy
import datetime
import pickle

import attrs
import pytest

from sinch_conv_async import (
    Channel,
    ChannelIdentity,
    ConversationMessage,
    Direction,
    ErrorDetail,
    MessagesSource,
    MetadataUpdate,
    NotFoundError,
    NotUpdated,
    ProcessingMode,
    Unchanged,
    Updated,
    UpdateOutcome,
)

IDENTITY = ChannelIdentity("4670123456", Channel.SMS, "01APP", extra={"country": ["SE"]})
MESSAGE = ConversationMessage(
    id="01MESSAGE",
    accept_time=datetime.datetime(2026, 3, 1, 12, 30, tzinfo=datetime.UTC),
    channel_identity=IDENTITY,
    contact_id="01CONTACT",
    conversation_id="01CONVERSATION",
    direction=Direction.TO_CONTACT,
    metadata="private",
    injected=False,
    sender_id="4670000000",
    processing_mode=ProcessingMode.CONVERSATION,
    extra={"app_message": {"text_message": {"text": "private"}}},
)
UPDATE = MetadataUpdate("01MESSAGE", "private", MessagesSource.DISPATCH_SOURCE)
MODELS = [
    IDENTITY,
    MESSAGE,
    ErrorDetail("type.example/Thing", "value", {"field_violations": [{"field": "metadata"}]}),
    UPDATE,
    Updated(UPDATE, MESSAGE, attempts=2),
    Unchanged(UPDATE, MESSAGE, attempts=1),
    ChannelIdentity(),
    ConversationMessage(),
    ErrorDetail(),
]
NAMES = {
    ConversationMessage: (
        "id accept_time channel_identity contact_id conversation_id direction metadata injected sender_id "
        "processing_mode extra"
    ),
    ChannelIdentity: "identity channel app_id extra",
    ErrorDetail: "type_url value extra",
    MetadataUpdate: "message_id metadata messages_source",
    Updated: "update message error attempts",
    NotUpdated: "update message error attempts",
    Unchanged: "update message error attempts",
}


@pytest.mark.parametrize("model", NAMES)
def test_a_model_has_the_fields_of_the_specification(model):
    assert [field.name for field in attrs.fields(model)] == NAMES[model].split()


@pytest.mark.parametrize("model", [ConversationMessage, ChannelIdentity, ErrorDetail])
def test_every_field_of_an_answer_may_be_missing(model):
    empty = attrs.asdict(model())
    assert empty.pop("extra") == {}
    assert set(empty.values()) == {None}


@pytest.mark.parametrize("model", MODELS, ids=type)
@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy]
    + [
        lambda model, protocol=protocol: pickle.loads(pickle.dumps(model, protocol))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    ],
)
def test_a_copy_is_equal_in_every_field_and_has_the_same_hash(model, again):
    twin = again(model)
    assert type(twin) is type(model)
    assert twin == model
    assert hash(twin) == hash(model)
    for field in attrs.fields(type(model)):
        assert getattr(twin, field.name) == getattr(model, field.name)


@pytest.mark.parametrize("model", MODELS, ids=type)
def test_a_model_is_frozen(model):
    for field in attrs.fields(type(model)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(model, field.name, None)


@pytest.mark.parametrize("model", [MODELS[0], MODELS[1], MODELS[2]], ids=type)
def test_extra_counts_for_equality_but_not_for_the_hash(model):
    other = attrs.evolve(model, extra={})
    assert other != model
    assert hash(other) == hash(model)


def test_two_models_do_not_share_an_extra():
    assert ConversationMessage().extra is not ConversationMessage().extra


@pytest.mark.parametrize(
    "model",
    [MESSAGE, UPDATE, Updated(UPDATE, MESSAGE), NotUpdated(UPDATE, error=NotFoundError())],
    ids=type,
)
def test_a_repr_shows_no_metadata_and_no_contents(model):
    assert "01MESSAGE" in repr(model)
    assert "private" not in repr(model)


def test_an_outcome_is_ok_when_the_metadata_is_as_it_should_be():
    assert Updated(UPDATE, MESSAGE, attempts=1).ok
    assert Unchanged(UPDATE, MESSAGE, attempts=1).ok
    assert not NotUpdated(UPDATE, error=NotFoundError("no such message"), attempts=1).ok


def test_a_failed_outcome_names_its_error():
    with pytest.raises(TypeError, match="error"):
        NotUpdated(UPDATE)


@pytest.mark.parametrize(
    "outcome",
    [
        Updated(UPDATE, MESSAGE),
        Unchanged(UPDATE, MESSAGE),
        NotUpdated(UPDATE, error=NotFoundError()),
    ],
    ids=type,
)
def test_every_outcome_is_one_of_the_union(outcome):
    assert isinstance(outcome, UpdateOutcome)
    assert not isinstance(UPDATE, UpdateOutcome)
