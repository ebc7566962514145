"""The state of each record after the entries so far, in memory: little more than a byte a record.

The last entry of a record counts. A failed record whose message a later record has updated is
superseded, because sending it now would bring old metadata back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

from .ledger import Entry, Numbered, Outcome

__all__ = ["IdMap", "States"]

MAX_GAP: Final = 1_000_000
"""Records without an entry before one that has an entry. A run leaves as many such gaps as it has
updates under way, at most 10,000. A larger gap was written by hand and would only take memory.
"""

_OUTCOMES: Final = (None, *Outcome)
_CODES: Final = {outcome: code for code, outcome in enumerate(_OUTCOMES)}
_WAITS: Final = 0x80
"""A flag in the code of a record: it is among the failed records of its id."""


class IdMap:
    """Whole numbers by message id. Ids have no case.

    A hash table of 12 bytes a slot, where a dict takes some 170 bytes an id. It keeps 64 bits of an
    id's hash. With ten million ids, two ids are mixed up in one of 400,000 jobs. 0 means no number.
    """

    def __init__(self) -> None:
        self._hashes = array("Q", bytes(8 * 64))  # 0: free
        self._numbers = array("I", bytes(4 * 64))
        self._used = 0

    def __getitem__(self, message_id: str) -> int:
        return self._numbers[self._slot(_hash(message_id))]

    def __setitem__(self, message_id: str, number: int) -> None:
        if 3 * self._used >= 2 * len(self._hashes):
            self._grow()
        key = _hash(message_id)
        slot = self._slot(key)
        if not self._hashes[slot]:
            self._hashes[slot] = key
            self._used += 1
        self._numbers[slot] = number

    def _slot(self, key: int) -> int:
        hashes = self._hashes
        last = len(hashes) - 1
        slot = key & last
        while hashes[slot] not in (0, key):
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        old = zip(self._hashes, self._numbers, strict=True)
        size = 2 * len(self._hashes)
        self._hashes = array("Q", bytes(8 * size))
        self._numbers = array("I", bytes(4 * size))
        for key, number in old:
            if key:
                slot = self._slot(key)
                self._hashes[slot], self._numbers[slot] = key, number


def _hash(message_id: str) -> int:
    return hash(message_id.lower()) & (2**64 - 1) or 1


class _FailedRecords:
    """The failed records of each message id, in rising order: four bytes a record beside the map.

    The records of one id form a ring: each points to the next higher one, and the last to the
    first. The map has the last one, so adding a record at the end and removing the first needs no
    walk.
    """

    def __init__(self) -> None:
        self._last = IdMap()
        self._next = array("I")

    def add(self, message_id: str, record: int) -> None:
        """Add a record that is not in the ring."""
        _fill(self._next, record)
        last = self._last[message_id]
        if not last:
            self._next[record] = record
            self._last[message_id] = record
            return
        before = last
        if record < last:
            # Only a journal that was edited by hand has another order.
            while record > self._next[before]:
                before = self._next[before]
        else:
            self._last[message_id] = record
        self._next[before], self._next[record] = record, self._next[before]

    def before(self, message_id: str, record: int) -> Iterator[int]:
        """The records of this id below this one, in rising order."""
        last = self._last[message_id]
        if not last:
            return
        found = self._next[last]
        while found < record:
            yield found
            if found == last:
                return
            found = self._next[found]

    def take_before(self, message_id: str, record: int) -> Iterator[int]:
        """The same, and remove each of them."""
        for found in self.before(message_id, record):
            last = self._last[message_id]
            if found == last:
                self._last[message_id] = 0
            else:
                self._next[last] = self._next[found]
            yield found


class _Reasons:
    """Why each record failed: two bytes a record, and each text once."""

    def __init__(self) -> None:
        self._numbers = array("H")
        self._texts = [""]
        self._number_of = {"": 0}

    def __setitem__(self, record: int, text: str) -> None:
        number = self._number_of.get(text)
        if number is None and len(self._texts) < 2**16:
            number = self._number_of[text] = len(self._texts)
            self._texts.append(text)
        _fill(self._numbers, record)
        self._numbers[record] = number or 0

    def __getitem__(self, record: int) -> str:
        return self._texts[self._numbers[record]] if record < len(self._numbers) else ""


class States:
    """The states of the records.

    With ``digests`` (four more bytes a record) also the identity of each record, and with
    ``reasons`` (two bytes) why each failed. ``supersedes`` False: an update supersedes no earlier
    record of its message, because it does not replace the whole metadata. ``max_gap``: records
    without an entry before one that has an entry; ``None``: any number.
    """

    def __init__(
        self,
        *,
        digests: bool = False,
        reasons: bool = False,
        supersedes: bool = True,
        max_gap: int | None = MAX_GAP,
    ) -> None:
        self._max_gap = max_gap
        self._states = bytearray()
        self._digests = array("I") if digests else None
        self._reasons = _Reasons() if reasons else None
        self._supersedes = supersedes
        self._failed = _FailedRecords()
        self.counts: dict[Outcome, int] = dict.fromkeys(Outcome, 0)

    def __getitem__(self, record: int) -> Outcome | None:
        return _OUTCOMES[self._states[record] & ~_WAITS] if record < len(self._states) else None

    @property
    def last(self) -> int:
        """The highest record number that an entry has named."""
        return max(len(self._states) - 1, 0)

    def agrees(self, item: Numbered) -> bool:
        """Whether the entries were about this record, if that is known."""
        if self._digests is None or item.number >= len(self._digests):
            return True
        known = self._digests[item.number]
        return not known or known == _short(item.digest)

    def reason(self, record: int) -> str:
        """Why this record failed or is invalid; empty if unknown."""
        return "" if self._reasons is None else self._reasons[record]

    def superseded(self, record: int, message_id: str) -> list[Entry]:
        """The entries that must be written before the entry of this updated record."""
        return [
            Entry(record=earlier, outcome=Outcome.SUPERSEDED, message_id=message_id, by=record)
            for earlier in self._failed.before(message_id, record)
            if self[earlier] is Outcome.FAILED
        ]

    def apply(self, entry: Entry) -> None:
        """Apply an entry. Raises ValueError for an impossible number."""
        if self._max_gap is not None and entry.record > self.last + self._max_gap:
            raise ValueError(f"record {entry.record:,} cannot follow record {self.last:,}")
        if self[entry.record] is Outcome.SUPERSEDED:
            return  # final; only a journal that was edited by hand has such an entry
        self._set(entry.record, entry.outcome)
        if self._digests is not None and entry.digest is not None:
            _fill(self._digests, entry.record)
            self._digests[entry.record] = _short(entry.digest)
        if self._reasons is not None and entry.outcome in (Outcome.FAILED, Outcome.INVALID):
            self._reasons[entry.record] = _reason(entry)
        if entry.message_id is not None and self._supersedes:
            self._apply_to_id(entry.message_id, entry)

    def _apply_to_id(self, message_id: str, entry: Entry) -> None:
        """Record a failed record by its id, or supersede the failed records before an update."""
        if entry.outcome is Outcome.FAILED:
            if not self._states[entry.record] & _WAITS:
                self._states[entry.record] |= _WAITS
                self._failed.add(message_id, entry.record)
        elif entry.outcome is Outcome.UPDATED:
            for earlier in self._failed.take_before(message_id, entry.record):
                self._states[earlier] &= ~_WAITS
                if self[earlier] is Outcome.FAILED:
                    self._set(earlier, Outcome.SUPERSEDED)

    def _set(self, record: int, outcome: Outcome) -> None:
        missing = record + 1 - len(self._states)
        if missing > 0:
            self._states.extend(bytes(missing))
        before = self[record]
        if before is not None:
            self.counts[before] -= 1
        self.counts[outcome] += 1
        self._states[record] = self._states[record] & _WAITS | _CODES[outcome]


def _reason(entry: Entry) -> str:
    """Such as ``404 NotFoundError NOT_FOUND``, ``TransportError: it timed out``, ``not JSON``."""
    status = None if entry.http_status is None else str(entry.http_status)
    words = " ".join(word for word in (status, entry.error, entry.status) if word is not None)
    return ": ".join(part for part in (words, entry.reason) if part)


def _fill(numbers: array[int], record: int) -> None:
    """Make room for this record's number."""
    missing = record + 1 - len(numbers)
    if missing > 0:
        numbers.frombytes(bytes(numbers.itemsize * missing))


def _short(digest: str) -> int:
    """Thirty-two bits of a digest, never 0."""
    try:
        return int(digest[:8], 16) or 1
    except ValueError:
        return 1
