"""With orjson and without it, the same bytes have the same outcome."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sinch_conv_async._wire import json as _json

pytest.importorskip("orjson", reason="what is compared here is orjson with its stand-in")


def without_orjson():
    """The module as it is where the extra is not installed."""
    hidden, sys.modules["orjson"] = sys.modules.get("orjson"), None
    try:
        spec = importlib.util.spec_from_file_location("_json_without_orjson", _json.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.modules["orjson"] = hidden
    return module


PLAIN = without_orjson()

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)

VALUES = {
    "an empty object": (b"{}", {}),
    "white space around it": (b" \r\n\t[ 1 , 2 ] \n", [1, 2]),
    "a bare string": (b'"text"', "text"),
    "the last of two equal names": (b'{"id": 1, "x": 2, "id": 3}', {"id": 3, "x": 2}),
    "odd names": (
        b'{"": 1, "extra": 2, "self": 3, "__init__": 4}',
        {"": 1, "extra": 2, "self": 3, "__init__": 4},
    ),
    "an escaped astral character": (b'"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
    "a lone surrogate": (b'"\\ud800"', "\ud800"),
    "a lone surrogate in bytes": (b'"\xed\xa0\x80"', "\ud800"),
    "a byte order mark": (b'\xef\xbb\xbf{"id": 1}', {"id": 1}),
    "the largest signed 64 bits": (b"9223372036854775807", 2**63 - 1),
    "the largest unsigned 64 bits": (b"18446744073709551615", 2**64 - 1),
    "one more than 64 bits": (b"18446744073709551616", 2**64),
    "one less than 64 bits": (b"[-9223372036854775809]", [-(2**63) - 1]),
    "a hundred digits": (b'{"count": ' + b"9" * 100 + b"}", {"count": 10**100 - 1}),
    "four thousand digits": (b"1" * 4000, int("1" * 4000)),
    "a long number in a string": (b'"46700000000000000000"', "46700000000000000000"),
    "minus zero": (b"[-0, -0.0]", [0, -0.0]),
    "many decimals": (b"0.1000000000000000055511151231257827021181583404541015625", 0.1),
    "a number too small": (b"1e-400", 0.0),
    "a number too large": (b"1e400", float("inf")),
    "infinity": (b"[Infinity, -Infinity]", [float("inf"), float("-inf")]),
    "a hundred levels": (b'[{"a":' * 50 + b"1" + b"}]" * 50, None),
    "a hundred levels with a list beside": (b"[[]," + b"[" * 99 + b"]" * 100, None),
    "two hundred lists beside each other": (b"[" + b"[],[[]]," * 100 + b"[]]", None),
    "brackets in a string": (b'["' + b"[{" * 200 + b'"]', ["[{" * 200]),
    "brackets and quotes in a string": (b'["' + b'\\\\\\"[{' * 200 + b'"]', ['\\"[{' * 200]),
}
REFUSED = {
    "nothing": b"",
    "white space": b" \n",
    "a page": b"<html><body>502 Bad Gateway</body></html>",
    "half an object": b'{"id": "01',
    "two values": b"{} {}",
    "a comma too many": b"[1,]",
    "single quotes": b"{'id': 1}",
    "a NUL": b"\x00",
    "NULs": b"\x00\x00\x00\x00",
    "a raw control character": b'"a\nb"',
    "bytes that are not UTF-8": b'{"id": "\xff\xfe"}',
    "half a character": b'"\xf0\x9f\x98"',
    "UTF-16": '{"id": "å"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"id": "å"}'.encode("utf-16-le"),
    "UTF-32": '{"id": "å"}'.encode("utf-32"),
    "UTF-16 that looks deep to one and flat to another": (
        '["' + "\u2200" * 200 + '"' + "[" * 500
    ).encode("utf-16"),
    "a hundred and one levels": b"[" * 101 + b"]" * 101,
    "too many levels after brackets in a string": b'["'
    + b"]" * 200
    + b'", '
    + b"[" * 100
    + b"]" * 101,
    "a hundred and one levels after lists beside": b"[" + b"[]," * 200 + b"[" * 100 + b"]" * 101,
    "a hundred thousand levels": b"[" * 100_000 + b"]" * 100_000,
    "a hundred thousand objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "five thousand digits": b"1" * 5000,
    "a number that starts with 0": b"0123456789012345678901",
}


def outcome(loads, data):
    """What comes of the bytes, told apart by type, sign and NaN; anything but a value or a
    ValueError fails the test.
    """
    try:
        return repr(loads(data))
    except ValueError as error:
        return type(error), str(error)


@pytest.fixture(params=[_json, PLAIN], ids=["orjson", "json"])
def module(request):
    return request.param


def test_the_two_modules_are_the_two_that_are_meant():
    assert _json.orjson is not None
    assert PLAIN.orjson is None
    assert PLAIN.loads is not _json.loads
    assert PLAIN.dump_text is not _json.dump_text


@pytest.mark.parametrize("name", VALUES)
def test_what_is_json_is_read(module, name):
    data, expected = VALUES[name]
    value = module.loads(data)
    if expected is not None:
        assert repr(value) == repr(expected)


def test_nan_is_read(module):
    assert repr(module.loads(b"[NaN]")) == "[nan]"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_json_or_too_much_is_a_value_error(module, name):
    with pytest.raises(ValueError) as caught:
        module.loads(REFUSED[name])
    assert not isinstance(caught.value.__context__, RecursionError)


@given(JSON)
def test_whatever_is_written_is_read_alike(value):
    data = json.dumps(value).encode()
    assert outcome(_json.loads, data) == outcome(PLAIN.loads, data) == repr(json.loads(data))


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b'\\"' * 500_000,
        b'"' + b'\\"' * 500_000 + b"\\",
        b'"' * 1_000_001,
        b'"' + b"\\" * 1_000_001,
        b'"' + b"x" * 1_000_000,
    ],
    ids=["escaped quotes", "and a backslash", "quotes", "backslashes", "letters"],
)
def test_strings_without_end_are_refused_in_one_pass(module, text):
    """In two passes for each quote, a mebibyte would take longer than the whole run may."""
    with pytest.raises(ValueError):
        module.loads(b"[" * 101 + text)


@given(JSON, st.integers(90, 110))
def test_what_is_nested_more_than_a_hundred_deep_is_refused_whatever_its_strings_hold(
    value, levels
):
    def depth(value):
        inner = (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list)
            else None
        )
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    data = b"[" * levels + json.dumps(value, ensure_ascii=True).encode() + b"]" * levels
    for module in (_json, PLAIN):
        read = not isinstance(outcome(module.loads, data), tuple)
        assert read is (levels + depth(value) <= 100)


@given(st.binary())
@example(b'"\xed\xb0\x80"')
@example(b"\xef\xbb\xbf")
def test_whatever_bytes_arrive_have_the_same_outcome(data):
    assert outcome(_json.loads, data) == outcome(PLAIN.loads, data)


@given(st.text('0123456789.eE+-[]{}",: \\unaNIfity', max_size=60))
@example("-" + "9" * 18)
@example("9" * 19)
@example("9" * 19 + "e5")
@example("[1.7976931348623159e308]")
def test_whatever_looks_like_json_has_the_same_outcome(text):
    data = text.encode()
    assert outcome(_json.loads, data) == outcome(PLAIN.loads, data)


@given(
    st.integers().map(lambda number: number * 7919**9)
    | st.floats(allow_nan=False, allow_infinity=False)
)
def test_numbers_of_any_size_are_read_alike_and_exactly(number):
    data = json.dumps({"n": number}).encode()
    assert repr(_json.loads(data)) == repr(PLAIN.loads(data)) == repr({"n": number})


def test_a_text_is_written_in_the_same_bytes_by_both():
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    written = _json.dump_text(every)
    assert written == PLAIN.dump_text(every)
    assert json.loads(written) == every
