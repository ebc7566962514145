"""A merge patch changes what it names and nothing else, or is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinch_conv_async import ConversationMessage, InvalidArgumentError, merge_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=3)


def merge(metadata, changes):
    return merge_json(ConversationMessage(metadata=metadata), changes)


# RFC 7396, appendix A: the rows whose two sides are objects.
PATCHES = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("before", "changes", "after"), PATCHES)
def test_it_merges_as_rfc_7396_says(before, changes, after):
    given = copy.deepcopy(changes)
    text = merge(json.dumps(before), changes)
    assert json.loads(text) == after
    assert changes == given


@pytest.mark.parametrize("metadata", [None, "", "{}", " { } "])
def test_no_metadata_is_an_empty_object(metadata):
    assert merge(metadata, {"tag": "x"}) == '{"tag":"x"}'
    assert merge(metadata, {}) == "{}"


def test_the_result_is_compact_and_keeps_its_order():
    assert merge('{"b": 1, "a": [1, 2], "c": {"x": "é"}}', {"d": 4, "a": [3]}) == (
        '{"b":1,"a":[3],"c":{"x":"é"},"d":4}'
    )


def test_any_mapping_may_hold_the_changes():
    class Changes(Mapping):
        def __getitem__(self, name):
            return {"tag": "x"}[name]

        def __iter__(self):
            return iter(["tag"])

        def __len__(self):
            return 1

    assert merge(None, Changes()) == '{"tag":"x"}'
    assert merge('{"a":{"b":1}}', {"a": Changes()}) == '{"a":{"b":1,"tag":"x"}}'


@pytest.mark.parametrize(
    "metadata",
    ["canary", "[]", '"text"', "7", "null", "true", "{", '{"a": NaN}', '{"a": 1e999}', "\ud800"],
)
def test_metadata_that_is_no_json_object_is_refused(metadata):
    with pytest.raises(
        InvalidArgumentError, match=r"^the message's metadata must be a JSON object"
    ) as caught:
        merge(metadata, {"tag": "x"})
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


LOOP = {}
LOOP["again"] = LOOP


@pytest.mark.parametrize(
    "changes",
    [
        {1: 2},
        {"a": {None: 1}},
        {"a": object()},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": b"x"},
        {"a": {1}},
        LOOP,
    ],
)
def test_changes_that_json_cannot_hold_are_refused(changes):
    with pytest.raises(
        InvalidArgumentError, match=r"^changes must be an object that JSON can hold$"
    ) as caught:
        merge("{}", changes)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("changes", [None, "tag", [("tag", "x")], 7])
def test_changes_that_are_no_mapping_are_refused(changes):
    with pytest.raises(InvalidArgumentError, match=r"^changes must be a mapping, not "):
        merge("{}", changes)


@pytest.mark.parametrize("message", [None, "{}", {"metadata": "{}"}])
def test_what_is_no_message_is_refused(message):
    with pytest.raises(InvalidArgumentError, match=r"^message must be a ConversationMessage, not "):
        merge_json(message, {})


def test_a_result_of_1024_characters_is_the_longest():
    fits = "é" * (1024 - len('{"a":""}'))
    assert len(merge(None, {"a": fits})) == 1024
    with pytest.raises(
        InvalidArgumentError,
        match=r"^the merged metadata must be at most 1,024 characters, not 1,025$",
    ):
        merge(None, {"a": fits + "é"})


def test_longer_metadata_may_be_made_short_enough():
    assert merge(json.dumps({"a": "x" * 2000, "b": 1}), {"a": None}) == '{"b":1}'


def test_a_lone_surrogate_stays_an_escape():
    assert merge(r'{"a": "\ud800"}', {"b": "é"}) == r'{"a":"\ud800","b":"\u00e9"}'


def expected(target, change):
    """RFC 7396, section 2, as its pseudocode has it."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for name in change:
        if change[name] is None:
            result.pop(name, None)
        else:
            result[name] = expected(result.get(name), change[name])
    return result


@given(OBJECTS, OBJECTS)
def test_whatever_is_merged_is_what_the_rfc_says_or_refused(before, changes):
    try:
        text = merge(json.dumps(before), changes)
    except InvalidArgumentError as error:
        assert "1,024" in str(error)
    else:
        assert json.loads(text) == expected(before, changes)
        assert merge(text, changes) == text
