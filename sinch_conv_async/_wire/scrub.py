r"""Cuts credentials out of a server's text, in all common encodings.

A server may repeat a credential unchanged, percent-encoded (``%2b``), as HTML writes it (``&#43;``,
``&#x2B;``, ``&plus;``), as JSON and programming languages write it (``\u002b``, ``\x2b``, ``\/``),
or in several of these at once. So the text is decoded before it is searched:

1. Search the text for the credential.
2. Decode the text once: each escape of a printable ASCII character becomes this character.
   Credentials have no other characters.
3. Repeat both steps until there is nothing left to decode.

A credential that holds escapes itself is also searched for in its decoded forms, because step 2
decodes it too. A credential that is found in a decoded text is cut out of the original text, at the
place that it was decoded from.

Only credentials of 8 characters or more are searched for. Cutting out a shorter one would make
texts unreadable, and a short secret is easily guessed anyway.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

__all__ = ["REDACTED", "forms", "scrub"]

REDACTED: Final = "[redacted]"

SHORTEST: Final = 8
"""Characters of the shortest credential that is searched for."""

MAX_LAYERS: Final = 8
"""Nested encodings that are decoded. The bound limits the passes over a hostile text."""

MAX_PRECISE: Final = 64 * 1024
"""Characters of a text out of which an encoded credential is cut. A longer text that holds one is
dropped as a whole, so that a hostile server cannot keep this process busy.
"""

_ESCAPE: Final = re.compile(
    r"%(?:[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})"
    r"|&(?:\#0*[0-9]{1,3};?|\#[xX]0*[0-9A-Fa-f]{1,2};?|[A-Za-z]{2,10};|(?i:amp|apos|gt|lt|quot))"
    r"|\\(?:u[0-9A-Fa-f]{4}|u\{0*[0-9A-Fa-f]{1,2}\}|U[0-9A-Fa-f]{8}|x[0-9A-Fa-f]{2}"
    r"|[0-7]{3}|[ -/:-@\[-`{-~])"
)
_BEGINS_ESCAPE: Final = re.compile(r"[%&\\]")


def forms(*credentials: str) -> tuple[str, ...]:
    """The texts to search for: each credential and its decoded forms, the longest first."""
    found: set[str] = set()
    for credential in credentials:
        # A form has a space as a plus sign.
        for spelling in {credential, credential.replace(" ", "+")}:
            found.update(_layers(spelling))
    return tuple(
        sorted(
            (form for form in found if len(form) >= SHORTEST), key=lambda form: (-len(form), form)
        )
    )


def scrub(text: str, searched: tuple[str, ...]) -> str:
    """The text without the credentials whose :func:`forms` are given."""
    if not _holds(text, searched):
        return text
    if len(text) > MAX_PRECISE:
        for form in searched:
            text = text.replace(form, REDACTED)
        return REDACTED if _holds(text, searched) else text
    places: list[tuple[int, int]] = []
    starts = list(range(len(text) + 1))
    decoded = text
    for _ in _layers(text):
        for form in searched:
            at = decoded.find(form)
            while at >= 0:
                places.append((starts[at], starts[at + len(form)]))
                at = decoded.find(form, at + 1)
        decoded, starts = _decoded_with_starts(decoded, starts)
    return _without(text, places)


def _holds(text: str, searched: tuple[str, ...]) -> bool:
    return any(form in layer for layer in _layers(text) for form in searched)


def _layers(text: str) -> Iterator[str]:
    """The text, then the text decoded once, twice, and so on."""
    yield text
    for _ in range(MAX_LAYERS):
        if _BEGINS_ESCAPE.search(text) is None:
            return
        decoded = _ESCAPE.sub(lambda match: _character(match[0]), text)
        if decoded == text:
            return
        text = decoded
        yield text


def _decoded_with_starts(text: str, starts: list[int]) -> tuple[str, list[int]]:
    """The text decoded once.

    ``starts[n]`` is where character n begins in the original; the last item is where the text ends.
    """
    parts: list[str] = []
    new: list[int] = []
    done = 0
    for match in _ESCAPE.finditer(text):
        begin = match.start()
        parts += (text[done:begin], character := _character(match[0]))
        new += starts[done:begin]
        new += [starts[begin]] if len(character) == 1 else starts[begin : match.end()]
        done = match.end()
    return "".join(parts) + text[done:], new + starts[done:]


@functools.lru_cache(maxsize=1024)  # a hostile text of a mebibyte holds half a million escapes
def _character(escape: str) -> str:
    """The printable ASCII character that an escape stands for; for any other, the escape itself."""
    if escape[0] == "\\" and len(escape) == 2:
        return escape[1]
    body = escape[1:].rstrip(";")
    if escape[0] == "&" and body[0] != "#":
        return _named_entities().get(body.lower(), escape)
    if body[0] == "#" and body[1] not in "xX":
        base = 10
    elif escape[0] == "\\" and body[0].isdigit():
        base = 8
    else:
        base = 16
    digits = body.strip("#uUxX{}").lstrip("0")  # int() refuses thousands of zeros
    code = int(digits or "0", base)
    return chr(code) if 0x20 <= code < 0x7F else escape


@functools.cache
def _named_entities() -> dict[str, str]:
    """HTML's names of printable ASCII characters, in small letters."""
    from html.entities import (
        html5,
    )  # imported here, because its two thousand names would slow down the import of the package

    return {
        name.rstrip(";").lower(): value
        for name, value in html5.items()
        if len(value) == 1 and value.isascii() and value.isprintable()
    }


def _without(text: str, places: list[tuple[int, int]]) -> str:
    """The text with one mark in the place of each of these parts.

    Parts that overlap get one mark.
    """
    merged: list[list[int]] = []
    for begin, end in sorted(places):
        if merged and begin < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    kept = [0, *(edge for part in merged for edge in part), len(text)]
    return REDACTED.join(text[begin:end] for begin, end in list(pairwise(kept))[::2])
