"""Finds the end of a CSV record by its quotes alone.

A quoted field may contain line ends, and its text may look like another record. So even if a record
cannot be read (bytes that are not text, a field that is too long), its end must be found. ``csv``
cannot do that: after an error it starts again in the middle of the field.

The grammar is RFC 4180, section 2, as Python's ``csv`` reads it in strict mode: a quote opens a
field only at its beginning, two quotes inside stand for one, and a delimiter or a line end follows
the closing quote. If the quotes break these rules, the end of the record is unknown.
"""

from __future__ import annotations

import re
from enum import Enum, auto

__all__ = ["Place", "RecordEnd"]


class Place(Enum):
    """The place in a record at which the text read so far ends."""

    FIELD_START = auto()
    PLAIN = auto()
    """In a field without quotes. A quote in it is an ordinary character."""
    QUOTED = auto()
    AFTER_QUOTE = auto()
    """After a quote that closes the field, unless another quote follows."""
    AFTER_CR = auto()
    """After a carriage return outside quotes, which only a line feed may follow."""
    AFTER_LONE_CR = auto()
    """After a carriage return that ends no line: the record is bad, and ends with the line."""
    END = auto()
    BROKEN = auto()
    """The quotes break the rules, so the end of the record is unknown."""


class RecordEnd:
    """Finds the end of one record after the other, in pieces of any length."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self._leaves_plain = re.compile(f"[{re.escape(delimiter)}\r\n]")
        blanks = "".join({" ", "\t"} - {delimiter})
        self._quote_after_blank = re.compile(f'(?:^|{re.escape(delimiter)})[{blanks}]+"')
        self.place = Place.FIELD_START

    def is_doubtful(self, line: str) -> bool:
        """Whether ``csv`` reads this line as a record, and other programs as the beginning of one.

        Many writers put a blank after the delimiter, and many readers skip it. For them, a quote
        after the blank opens a field; for ``csv`` it does not.
        """
        return (
            '"' in line
            and line.count('"') % 2 == 1
            and self._quote_after_blank.search(line) is not None
        )

    def begin(self) -> None:
        """A new record begins."""
        self.place = Place.FIELD_START

    def read(self, text: str) -> Place:
        """The place after this further text. No text may follow an END."""
        at, place = 0, self.place
        while at < len(text) and place not in (Place.END, Place.BROKEN):
            place, at = self._step(place, text, at)
        self.place = place
        return place

    def _step(self, place: Place, text: str, at: int) -> tuple[Place, int]:
        """One step: to the end of this place, and one character further."""
        if place is Place.QUOTED:
            found = text.find('"', at)
            return (place, len(text)) if found < 0 else (Place.AFTER_QUOTE, found + 1)
        if place is Place.PLAIN:
            match = self._leaves_plain.search(text, at)
            return (place, len(text)) if match is None else (self._left(match[0]), match.end())
        if place is Place.AFTER_LONE_CR:
            if '"' in text[at:]:
                return Place.BROKEN, at
            return (Place.END if text.endswith("\n") else place), len(text)
        letter = text[at]
        if place is Place.AFTER_CR:
            if letter in "\r\n":
                return self._left(letter), at + 1
            return Place.AFTER_LONE_CR, at
        if letter == '"':
            return Place.QUOTED, at + 1
        if letter == self._delimiter or letter in "\r\n":
            return self._left(letter), at + 1
        return (Place.PLAIN if place is Place.FIELD_START else Place.BROKEN), at + 1

    def _left(self, letter: str) -> Place:
        """The place after a field that this character ends."""
        if letter == self._delimiter:
            return Place.FIELD_START
        return Place.AFTER_CR if letter == "\r" else Place.END
