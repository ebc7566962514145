"""Reads a whole input beforehand: counts its records, and finds what the user should know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from .input import BadLine, Source
from .states import IdMap

__all__ = ["Survey", "survey"]

MOST_BAD_LINES_SHOWN: Final = 10


@attrs.frozen
class Survey:
    """The result. ``emptied`` and ``repeated`` are counted only with ``ids``.

    ``beginning``: the fingerprint of a pipe. ``emptied``: records with empty metadata, which clear
    the message's metadata. ``repeated``: records whose message id an earlier record has.
    ``undecodable``: bad lines that are not in the input's encoding.
    """

    records: int
    invalid: int
    layout: dict[str, str]
    beginning: str
    emptied: int = 0
    repeated: int = 0
    undecodable: int = 0


def survey(source: Source, say: Callable[[str], None], *, ids: bool = False) -> Survey:
    """Read the whole input and report the first bad lines.

    Raises InputError. ``ids``: check each message id too, which takes up to 36 bytes of memory a
    record.
    """
    records = invalid = emptied = repeated = undecodable = 0
    seen = IdMap()
    with source.open() as reader:
        for item in reader:
            records += 1
            if isinstance(item, BadLine):
                invalid += 1
                undecodable += item.undecodable
                if invalid <= MOST_BAD_LINES_SHOWN:
                    say(f"line {item.line}: {item.reason}")
            elif ids:
                emptied += not item.metadata
                repeated += seen[item.message_id] > 0
                seen[item.message_id] = 1
    if invalid > MOST_BAD_LINES_SHOWN:
        say(f"and {invalid - MOST_BAD_LINES_SHOWN:,} more bad lines")
    layout, fingerprint = reader.layout, reader.fingerprint
    return Survey(records, invalid, layout, fingerprint, emptied, repeated, undecodable)
