"""JSON text, with orjson where the ``[speedups]`` extra brought it.

Both libraries give the same outcome for every input. What orjson refuses (a lone surrogate, ``NaN``) is tried again with :mod:`json`,
whose word is final; what orjson would round (an integer beyond 64 bits) is not given to it. Neither is given what is nested so deeply that
whoever copies, pickles or prints the value would run out of stack.
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

# orjson reads an integer that needs more than 64 bits as a float. The smallest of them has 19 digits: looking for so many in a row,
# every digit made a "0" first, costs a fraction of what a regular expression does.
_DIGITS_TO_ZERO: Final = bytes(ord("0") if chr(byte) in "0123456789" else byte for byte in range(256))
_LONG_NUMBER: Final = b"0" * 19

MAX_DEPTH: Final = 100
"""Arrays and objects within each other. A message with all its contents has about ten."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# Each part takes all it can and gives nothing back, and a string that is never closed ends with the text: hostile text takes no longer.
_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_ALL_BUT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _too_deep(data: bytes) -> bool:
    """Looks at the brackets outside of strings."""
    depth = 0
    for bracket in _STRINGS.sub(b"", data).translate(None, _ALL_BUT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _loads_json(data: bytes) -> Any:
    """Raises ValueError for whatever is wrong with the text. It is UTF-8 (RFC 8259, section 8.1); :mod:`json` would guess at others."""
    # Brackets that are too few cannot be too deep: nearly always the end of it.
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _too_deep(data):
        raise ValueError("nested too deeply")
    # Not "utf-8-sig": that codec is written in Python, and costs a fifth of the reading.
    return json.loads(data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogatepass"))


def _loads_orjson(data: bytes) -> Any:
    assert orjson is not None  # else `loads` below is the other one
    if _LONG_NUMBER in data.translate(_DIGITS_TO_ZERO) or data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        return _loads_json(data)
    try:
        return orjson.loads(data)
    except ValueError:
        return _loads_json(data)


def _dump_text_json(text: str) -> bytes:
    return encode_basestring(text).encode()


loads: Callable[[bytes], Any] = _loads_json if orjson is None else _loads_orjson
"""The value of a JSON text, or ValueError."""

dump_text: Callable[[str], bytes] = _dump_text_json if orjson is None else orjson.dumps
"""The JSON text of one string that encodes to UTF-8."""
