"""The journal of a bulk job: what became of each record, one JSON object a line, so that a job that was killed can go on.

The format and what follows from its lines are pure functions and values; :class:`Journal` is the file. It knows
records by their numbers and nothing of what they say: no metadata is ever in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from array import array
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final, Self

import attrs

from .._wire import json as _json

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows has no such module
    fcntl = None  # type: ignore[assignment]  # mypy sees a module

__all__ = [
    "Header",
    "Journal",
    "JournalError",
    "Line",
    "Outcome",
    "States",
    "decode",
    "encode",
    "read_header",
    "write_header",
]

VERSION: Final = 1
"""Of the format. A journal of another version is refused, not guessed at."""

MAX_LINE: Final = 64 * 1024
"""Bytes of a line, many times what is ever written."""

MAX_RECORD: Final = 2**32 - 1

_BEGINNING: Final = b'{"journal": "sinch-conv bulk", '


class JournalError(Exception):
    """The journal cannot be used: it is another job's, in use, damaged, gone, or cannot be written."""


class Outcome(StrEnum):
    """What became of a record. All but ``failed`` are final: a failed record is tried again by the next run."""

    UPDATED = "updated"
    FAILED = "failed"
    INVALID = "invalid"
    SUPERSEDED = "superseded"


@attrs.frozen(kw_only=True)
class Header:
    """The first line. ``layout`` is how the input was read, ``input`` its name, which may change."""

    project_id: str
    input: str
    fingerprint: str
    layout: dict[str, str] = attrs.field(hash=False)

    def check(self, journal: Header, path: Path) -> None:
        """Raises JournalError where a journal with that header is not this job's."""
        if journal.project_id != self.project_id:
            raise JournalError(
                f"{path} belongs to project {journal.project_id}, this job to {self.project_id}; name another with --journal"
            )
        if journal.layout != self.layout:
            told = ", ".join(
                f"{name} {value!r}"
                for name, value in journal.layout.items()
                if self.layout.get(name) != value
            )
            raise JournalError(f"{path} was begun with {told}; give the same options, or another --journal")
        if journal.fingerprint != self.fingerprint:
            raise JournalError(
                f"{path} belongs to another input ({journal.input}), or this one has changed since; name another with --journal"
            )


@attrs.frozen(kw_only=True)
class Line:
    """What became of one record. ``line``: of the input. ``by``: the later record that superseded this one."""

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


_FIELDS: Final = tuple(field.name for field in attrs.fields(Line))
_WORDS: Final = {str(outcome): outcome for outcome in Outcome}
_KINDS: Final[dict[str, type]] = {
    **dict.fromkeys(("message_id", "digest", "error", "status", "request_id", "reason"), str),
    **dict.fromkeys(("line", "attempts", "http_status", "by"), int),
}


def encode(line: Line) -> bytes:
    """One line of the journal, with its end."""
    fields = {name: value for name in _FIELDS if (value := getattr(line, name)) is not None}
    return json.dumps(fields).encode() + b"\n"


def decode(text: bytes) -> Line:
    """The line that this is, or ValueError. Fields of a later minor version are passed over."""
    found = _json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004  # one error for whatever is wrong with a line
    record, outcome = found.pop("record", None), _WORDS.get(str(found.pop("outcome", None)))
    if type(record) is not int or not 1 <= record <= MAX_RECORD:
        raise ValueError("no record number")
    if outcome is None:
        raise ValueError("no outcome")
    for name, value in list(found.items()):
        kind = _KINDS.get(name)
        if kind is None:
            del found[name]
        elif type(value) is not kind:
            raise ValueError(f"{name} is not {kind.__name__}")
    return Line(record=record, outcome=outcome, **found)


def write_header(header: Header) -> bytes:
    """The journal's first line, with its end."""
    fields = json.dumps({"version": VERSION, **attrs.asdict(header)})
    return _BEGINNING + fields[1:].encode() + b"\n"


def read_header(text: bytes) -> Header:
    """The header that this line is, or ValueError."""
    if not text.startswith(_BEGINNING):
        raise ValueError("it is not the journal of a bulk job")
    fields = _json.loads(text)
    version = fields.pop("version", None)
    if version != VERSION:
        raise ValueError(f"its format has version {version!r}, and this program writes version {VERSION}")
    header = {name: fields.get(name) for name in ("project_id", "input", "fingerprint", "layout")}
    kinds = {"project_id": str, "input": str, "fingerprint": str, "layout": dict}
    if not all(isinstance(header[name], kind) for name, kind in kinds.items()):
        raise ValueError("its header lacks a field")
    return Header(**header)


def may_be_cut_header(text: bytes) -> bool:
    """Whether a file without a whole line is one whose header was being written, and no file of somebody else's."""
    return text.startswith(_BEGINNING) or _BEGINNING.startswith(text)


class _FailedIds:
    """The failed records of each message id, found by the id.

    A hash table in two arrays: 18 to 36 bytes a failed record, where a dict takes some 170. Ids are kept as 64 bits of hash. Of five million
    failed records and as many updated ones, two are mixed up once in a million jobs.
    """

    def __init__(self) -> None:
        self._hashes = array("Q", bytes(8 * 64))  # 0: free
        self._records = array("I", bytes(4 * 64))
        self._used = 0
        self._previous = array("I")  # by record: the failed record of the same id before it, 0 for none

    def add(self, message_id: str, record: int) -> None:
        """A record is added once, or its id's chain of records would bite its own tail."""
        if 3 * self._used >= 2 * len(self._hashes):
            self._grow()
        key, slot = self._find(message_id)
        if self._hashes[slot]:
            missing = record + 1 - len(self._previous)
            self._previous.frombytes(bytes(self._previous.itemsize * max(missing, 0)))
            self._previous[record] = self._records[slot]
        else:
            self._hashes[slot] = key
            self._used += 1
        self._records[slot] = record

    def of(self, message_id: str) -> Iterator[int]:
        """The failed records of this id, the latest first."""
        if not self._used:
            return
        record = self._records[self._find(message_id)[1]]
        while record:
            yield record
            record = self._previous[record] if record < len(self._previous) else 0

    def _find(self, message_id: str) -> tuple[int, int]:
        key = hash(message_id) & (2**64 - 1) or 1
        return key, self._slot(key)

    def _slot(self, key: int) -> int:
        hashes = self._hashes
        last = len(hashes) - 1
        slot = key & last
        while hashes[slot] not in (0, key):
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        old = zip(self._hashes, self._records, strict=True)
        size = 2 * len(self._hashes)
        self._hashes = array("Q", bytes(8 * size))
        self._records = array("I", bytes(4 * size))
        for key, record in old:
            if key:
                slot = self._slot(key)
                self._hashes[slot], self._records[slot] = key, record


_OUTCOMES: Final = (None, *Outcome)
_CODES: Final = {outcome: code for code, outcome in enumerate(_OUTCOMES)}
_HAS_FAILED: Final = 0x80
"""Beside the code of a record that has failed at some time, and is known by its id since."""


class States:
    """How each record stands after the lines so far, the last line of a record counting: one byte a record.

    A failed record whose id a later record has updated is superseded: sent now, it would bring old metadata back. With
    ``digests`` (four bytes a record more) it also knows which record it was, for an input that has no fingerprint of its own.
    """

    def __init__(self, *, digests: bool = False) -> None:
        self._states = bytearray()
        self._digests = array("I") if digests else None
        self._failed = _FailedIds()
        self.counts: dict[Outcome, int] = dict.fromkeys(Outcome, 0)

    def __getitem__(self, record: int) -> Outcome | None:
        return _OUTCOMES[self._states[record] & ~_HAS_FAILED] if record < len(self._states) else None

    @property
    def last(self) -> int:
        """The highest record number that a line has named."""
        return max(len(self._states) - 1, 0)

    @property
    def keeps_digests(self) -> bool:
        """Whether :meth:`agrees` can tell."""
        return self._digests is not None

    def agrees(self, record: int, digest: str) -> bool:
        """Whether this is the record that the lines were about, as far as anything is known of it."""
        if self._digests is None or record >= len(self._digests) or not self._digests[record]:
            return True
        return self._digests[record] == _short(digest)

    def superseded(self, record: int, message_id: str) -> list[Line]:
        """What is to be written before the line that says that this record was updated."""
        return [
            Line(record=earlier, outcome=Outcome.SUPERSEDED, message_id=message_id, by=record)
            for earlier in self._failed.of(message_id)
            if earlier < record and self[earlier] is Outcome.FAILED
        ]

    def apply(self, line: Line) -> None:
        """Takes one line into account."""
        before = self[line.record]
        if before is Outcome.SUPERSEDED:
            return  # final; an older version of a line can only come from a journal that was put together by hand
        self._set(line.record, line.outcome)
        if self._digests is not None and line.digest is not None:
            missing = line.record + 1 - len(self._digests)
            self._digests.frombytes(bytes(self._digests.itemsize * max(missing, 0)))
            self._digests[line.record] = _short(line.digest)
        if line.message_id is None:
            return
        if line.outcome is Outcome.FAILED:
            if not self._states[line.record] & _HAS_FAILED:
                self._states[line.record] |= _HAS_FAILED
                self._failed.add(line.message_id, line.record)
        elif line.outcome is Outcome.UPDATED:
            for earlier in self.superseded(line.record, line.message_id):
                self._set(earlier.record, Outcome.SUPERSEDED)

    def _set(self, record: int, outcome: Outcome) -> None:
        missing = record + 1 - len(self._states)
        if missing > 0:
            self._states.extend(bytes(missing))
        before = self[record]
        if before is not None:
            self.counts[before] -= 1
        self.counts[outcome] += 1
        self._states[record] = self._states[record] & _HAS_FAILED | _CODES[outcome]


def _short(digest: str) -> int:
    """Thirty-two bits of a digest, never 0."""
    try:
        return int(digest[:8], 16) or 1
    except ValueError:
        return 1


class Journal:
    """The file: locked for one job, appended to line by line, each line written before anybody hears of it."""

    def __init__(self, path: Path, descriptor: int, *, fsync: bool) -> None:
        self._path = path
        self._descriptor = descriptor
        self._fsync = fsync
        self._size = 0
        self._refusal: str | None = None  # why nothing is written any more
        self.cut = 0
        """Bytes of a torn last line that were cut off."""

    @classmethod
    def open(cls, path: Path, *, fsync: bool = False) -> Self:
        """The journal at this path, made if it is not there, and locked. Raises JournalError."""
        if fcntl is None:
            raise JournalError("a journal is locked in a way that only POSIX systems have")
        try:
            # O_APPEND: whatever was taken back, the next byte comes to stand at the end.
            descriptor = os.open(
                path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600
            )
        except OSError as error:
            raise JournalError(
                f"{path}: no journal can be written there: {error.strerror}; name another place with --journal"
            ) from None
        journal = cls(path, descriptor, fsync=fsync)
        try:
            _check_plain(path, os.fstat(descriptor))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise JournalError(f"{path} cannot be locked: {error.strerror}") from None
                raise JournalError(f"{path} is in use: another job works with it at this moment") from None
        except JournalError:
            journal.close()
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def length(self) -> int:
        """Bytes of the file as it is now."""
        return os.fstat(self._descriptor).st_size

    def load(self, header: Header, *, digests: bool = False) -> States:
        """How the records stand by this journal, which begins here where there was none. Raises JournalError.

        One without any outcome yet may be of an input that was mended meanwhile: it begins anew.

        A last line without its end was being written when the job was killed: it is cut off.
        """
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                states, whole, size = _load(file, header, self._path, digests=digests)
            self._size = whole
            if size > whole:
                self.cut = size - whole if whole else 0  # of a header that is written anew nothing is lost
                os.ftruncate(self._descriptor, whole)
        except OSError as error:
            raise JournalError(f"{self._path} cannot be read: {error.strerror}") from None
        if not whole:
            self._write(write_header(header))
            if self._fsync:
                self._sync_folder()
        return states

    def write(self, lines: Iterable[Line]) -> None:
        """Appends these lines, all or none. Raises JournalError, then and from then on: no outcome may be told that is not in it.

        Where the disk does not even let a part be taken back, that part is the last thing in the file, and the next run cuts a torn line off.
        """
        self._write(b"".join(map(encode, lines)))

    def _write(self, data: bytes) -> None:
        if self._refusal is None:
            try:
                self._check_place()
                self._append(data)
            except JournalError as error:
                self._refusal = str(error)
            else:
                self._size += len(data)
                return
        raise JournalError(self._refusal)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
            if self._fsync:
                os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise JournalError(f"{self._path} cannot be written: {error.strerror}") from None

    def _check_place(self) -> None:
        """Whether what we write to is still what the next run will read."""
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path)
        except OSError:
            raise JournalError(f"{self._path} was removed while the job was running") from None
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise JournalError(f"{self._path} was replaced by another file while the job was running")
        if there.st_size != self._size:
            raise JournalError(f"{self._path} was changed by somebody else while the job was running")

    def _sync_folder(self) -> None:
        """A new file survives a power loss only once its folder has been written too (fsync(2))."""
        try:
            folder = os.open(self._path.absolute().parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise JournalError(
                f"{self._path}: its folder cannot be brought to the disk, as --fsync asks: {error.strerror}"
            ) from None


def look(path: Path, header: Header | None, *, digests: bool = False) -> States:
    """How the records stand by the journal at this path, without locking or changing it; none where it is not there."""
    try:
        _check_plain(path, path.stat())
        with path.open("rb") as file:
            return _load(file, header, path, digests=digests)[0]
    except FileNotFoundError:
        return States()
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}; name another with --journal") from None


def _check_plain(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise JournalError(f"{path} is not a plain file; name another place with --journal")


def _is_blank(text: bytes, file: BinaryIO) -> bool:
    """Whether this and all that follows are NULs: what some file systems leave of a write after a power loss."""
    while text and not text.strip(b"\0"):
        text = file.read(MAX_LINE)
    return not text


def _load(file: BinaryIO, header: Header | None, path: Path, *, digests: bool) -> tuple[States, int, int]:
    """The states, the bytes of whole lines, and the bytes that are there."""
    states = States(digests=digests)
    whole = number = 0
    found: Header | None = None
    while text := file.readline(MAX_LINE):
        number += 1
        if found is not None and header is not None and number == 2:
            header.check(found, path)
        if not text.endswith(b"\n"):
            size = os.fstat(file.fileno()).st_size
            if number == 1 and not may_be_cut_header(text):
                raise JournalError(f"{path} is not the journal of a bulk job; name another with --journal")
            if len(text) == MAX_LINE and not _is_blank(text, file):
                raise JournalError(
                    f"line {number} of {path} is longer than any of a journal; with another --journal the job begins anew"
                )
            return states, whole, size
        if number == 1:
            try:
                found = read_header(text)
            except ValueError as error:
                raise JournalError(f"{path} cannot be used: {error}; name another with --journal") from None
        else:
            try:
                states.apply(decode(text))
            except ValueError as error:
                raise JournalError(
                    f"line {number} of {path} is no line of a journal: {error}; with another --journal the job begins anew"
                ) from None
        whole += len(text)
    if found is not None and header is not None and number == 1 and found != header:
        header.check(attrs.evolve(found, fingerprint=header.fingerprint), path)
        return states, 0, whole
    return states, whole, whole
