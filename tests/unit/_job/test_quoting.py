"""Where a CSV record ends, told from its quotes alone, in pieces of any length."""

from __future__ import annotations

import csv

import hypothesis
import pytest
from hypothesis import strategies as st

from sinch_conv_async._job.quoting import Place, RecordEnd


def place_after(text: str, delimiter: str = ",") -> Place:
    return RecordEnd(delimiter).read(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", Place.FIELD_START),
        ("a", Place.PLAIN),
        ("a,", Place.FIELD_START),
        ("a,b\n", Place.END),
        ("\n", Place.END),
        ("a,b\r\n", Place.END),
        ("a,b\r", Place.AFTER_CR),
        ("a,\r\r\n", Place.END),
        ('a,"', Place.QUOTED),
        ('a,"b', Place.QUOTED),
        ('a,"b\n', Place.QUOTED),
        ('a,"b\nc"', Place.AFTER_QUOTE),
        ('a,"b""', Place.QUOTED),
        ('a,"b"",c\n', Place.QUOTED),
        ('a,"b"\n', Place.END),
        ('a,"b",', Place.FIELD_START),
        ('a,""\n', Place.END),
        ('a,"b"\r\n', Place.END),
        # A quote that does not begin a field is a letter.
        ('5" pipe\n', Place.END),
        (' "a"\n', Place.END),
        # The rules are broken.
        ('"a"b', Place.BROKEN),
        ('"a" ,b', Place.BROKEN),
        ('"a\\"b",', Place.BROKEN),
        # A carriage return that ends no line: the record ends with the line, unless there are
        # quotes.
        ("a\rb\n", Place.END),
        ("a\rb", Place.AFTER_LONE_CR),
        ('a\rb,"c', Place.BROKEN),
    ],
)
def test_a_record_is_followed(text: str, place: Place) -> None:
    assert place_after(text) is place


def test_another_delimiter_is_no_delimiter() -> None:
    assert place_after('"a";', ";") is Place.FIELD_START
    assert place_after('"a",', ";") is Place.BROKEN
    assert place_after('"a"|', "|") is Place.FIELD_START


LETTERS = st.text(st.sampled_from('ab",\r\n'), max_size=12)


@hypothesis.given(st.lists(LETTERS, max_size=6))
def test_the_pieces_do_not_matter(pieces: list[str]) -> None:
    whole, end = RecordEnd(","), RecordEnd(",")
    text = "".join(pieces).replace("\n", "") + "\n"
    whole.read(text)
    rest = text
    for piece in [*map(len, pieces), len(text)]:
        if end.place is not Place.END:
            end.read(rest[:piece])
            rest = rest[piece:]
    assert end.place is whole.place


@hypothesis.given(st.lists(LETTERS, min_size=1, max_size=4), LETTERS)
def test_what_csv_writes_ends_where_it_ends_for_csv(fields: list[str], more: str) -> None:
    class Written(list[str]):
        def write(self, text: str) -> None:
            self.append(text)

    written = Written()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerow(fields)
    text = "".join(written)
    end = RecordEnd(",")
    lines = text.splitlines(keepends=True) if "\r" not in text[:-2] else [text]
    for number, line in enumerate(lines, 1):
        assert (end.read(line) is Place.END) is (number == len(lines))
    end.begin()
    assert end.place is Place.FIELD_START


@pytest.mark.parametrize(
    ("line", "doubtful"),
    [
        ("a,b", False),
        ('a,"b"', False),
        ('a,5" pipe', False),
        ('a, "b"', False),
        ('a, "b', True),
        ('a,\t "b', True),
        (' "a,b', True),
        ('a, "b"" c', True),
    ],
)
def test_a_quote_behind_a_blank_that_is_not_closed_is_doubtful(line: str, doubtful: bool) -> None:
    assert RecordEnd(",").is_doubtful(line) is doubtful


def test_a_tab_that_is_the_delimiter_is_no_blank() -> None:
    assert not RecordEnd("\t").is_doubtful('a\t"b')
    assert RecordEnd("\t").is_doubtful('a\t "b')
