"""The outcomes of records, and the protocol of a ledger, which stores them.

A ledger knows records by their numbers and ids. It never holds metadata. The journal (``journal``)
is the ledger of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Protocol

import attrs

__all__ = ["FINAL", "Entry", "Ledger", "LedgerError", "Numbered", "Outcome"]


class Outcome(StrEnum):
    """The outcome of a record.

    All but ``failed`` are final; the next run tries failed records again.
    """

    UPDATED = "updated"
    FAILED = "failed"
    INVALID = "invalid"
    SUPERSEDED = "superseded"
    """It failed, and a later record updated the message. Sending it would bring old
    metadata back.
    """
    UNCHANGED = "unchanged"
    """The message had this metadata already, so nothing was sent."""


FINAL: Final = frozenset(Outcome) - {Outcome.FAILED}


@attrs.frozen(kw_only=True)
class Entry:
    """The outcome of a record, with its details.

    ``line``: of the input. ``by``: the record that superseded it.
    """

    record: int
    outcome: Outcome
    line: int | None = None
    message_id: str | None = None
    digest: str | None = None
    attempts: int | None = None
    error: str | None = None
    http_status: int | None = None
    status: str | None = None
    request_id: str | None = None
    reason: str | None = None
    by: int | None = None


class LedgerError(Exception):
    """The ledger cannot be used, or does not belong to this input."""


class Numbered(Protocol):
    """The part of a record or bad line that a ledger needs."""

    @property
    def number(self) -> int: ...

    @property
    def digest(self) -> str: ...


class Ledger(Protocol):
    """Stores the outcome of each record, over all runs of a job.

    A run asks for the state of each record before it sends the record, and writes an entry for each
    outcome. The entry is stored before :meth:`write` returns, or before the next run can ask for
    it. ``write`` may be called by one task at a time only.
    """

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """How many records have each outcome, counting each record's last one."""
        ...

    @property
    def last(self) -> int:
        """The highest number of a record that has an outcome; 0 if none has."""
        ...

    def state(self, record: int) -> Outcome | None:
        """The last outcome of this record; None if it has none."""
        ...

    def agrees(self, item: Numbered) -> bool:
        """Whether this record is the one that was written under its number, if that is known."""
        ...

    async def write(self, entry: Entry) -> None:
        """Store the entry, and the entries that it supersedes. Raises LedgerError if it cannot."""
        ...
