"""JSON text, read and written by orjson if the ``[speedups]`` extra is there, else by :mod:`json`.

Both give the same result for every input:

- If orjson refuses a text (a lone surrogate, ``NaN``), :mod:`json` decides.
- What orjson would round (an integer beyond 64 bits) is given to :mod:`json` at once.
- Neither is given a text that is nested so deeply that copying, pickling or printing its value
  would exhaust the stack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, Final

__all__ = ["dump_text", "loads"]

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]  # the extra is not installed; mypy sees a module

# orjson reads an integer of more than 64 bits as a float. The smallest has 19 digits. Such a row of
# digits is found quickest by making every digit a "0" and looking for 19 of these; a regular
# expression takes several times as long.
_DIGITS_TO_ZERO: Final = bytes(
    ord("0") if chr(byte) in "0123456789" else byte for byte in range(256)
)
_LONG_NUMBER: Final = b"0" * 19

MAX_DEPTH: Final = 100
"""Arrays and objects within each other. A message with all its contents has about ten, a page of
messages two more."""

_DECODER: Final = json.JSONDecoder()
"""Reads a text that begins and ends with its value faster than ``json.loads`` does."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# Possessive quantifiers give nothing back, and a string that is never closed ends with the text:
# hostile text takes no longer.
_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_ALL_BUT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _too_deep(data: bytes) -> bool:
    """Whether the brackets outside of strings are nested too deeply."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False  # so few cannot be: nearly always the end of it
    depth = 0
    for bracket in _STRINGS.sub(b"", data).translate(None, _ALL_BUT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _loads_json(data: bytes) -> Any:
    if _too_deep(data):
        raise ValueError("nested too deeply")
    return _decoded(data)


def _decoded(data: bytes) -> Any:
    """Raises ValueError for whatever is wrong with the text.

    It is UTF-8 (RFC 8259, section 8.1). :mod:`json` alone would also guess at other encodings.
    """
    # Not "utf-8-sig": that codec is written in Python, and costs a fifth of the reading.
    text = data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogatepass")
    try:
        value, end = _DECODER.raw_decode(text)
    except ValueError:  # it may only begin with a space
        return json.loads(text)
    return value if end == len(text) else json.loads(text)


def _loads_orjson(data: bytes) -> Any:
    assert orjson is not None  # else `loads` below is the other one
    if _too_deep(data):
        raise ValueError("nested too deeply")
    if _LONG_NUMBER in data.translate(_DIGITS_TO_ZERO):
        return _decoded(data)
    try:
        return orjson.loads(data)
    except ValueError:
        return _decoded(data)


def _dump_text_json(text: str) -> bytes:
    return encode_basestring(text).encode()


loads: Callable[[bytes], Any] = _loads_json if orjson is None else _loads_orjson
"""The value of a JSON text, or ValueError."""

dump_text: Callable[[str], bytes] = _dump_text_json if orjson is None else orjson.dumps
"""The JSON text of one string that encodes to UTF-8."""
