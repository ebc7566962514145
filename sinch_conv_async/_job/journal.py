"""The journal of a bulk job: the outcome of each record, one JSON object a line.

A killed job goes on from its journal. The format is a set of pure functions. :class:`Journal` is
the file, and a :class:`~.ledger.Ledger`. It never contains metadata.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final, Self

import attrs

from .._wire import json as _json
from .ledger import Entry, LedgerError, Numbered, Outcome
from .states import States

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows has no such module
    fcntl = None  # type: ignore[assignment]  # mypy sees a module

__all__ = [
    "Header",
    "Journal",
    "JournalError",
    "JournalReason",
    "decode",
    "encode",
    "look",
    "read_header",
    "write_header",
]

VERSION: Final = 1
"""Of the format. A journal of another version is refused."""

MAX_LINE: Final = 64 * 1024
"""The most bytes of a line, many times more than a line has."""

MAX_RECORD: Final = 2**32 - 1

_BEGINNING: Final = b'{"journal": "sinch-conv bulk", '


class JournalReason(StrEnum):
    """The kind of a :class:`JournalError`."""

    OTHER_TARGET = "other target"
    """It belongs to a job that sends to another project or another origin."""
    OTHER_OPTIONS = "other options"
    OTHER_INPUT = "other input"
    NOT_A_JOURNAL = "not a journal"
    DAMAGED = "damaged"
    PLACE = "place"
    """No journal can be written there."""
    IN_USE = "in use"
    LOST = "lost"
    """It was removed, replaced or changed, or cannot be written, while the job was running."""


class JournalError(LedgerError):
    """The journal cannot be used, for this reason."""

    def __init__(self, text: str, reason: JournalReason) -> None:
        super().__init__(text)
        self.reason = reason


@attrs.frozen(kw_only=True)
class Header:
    """The first line, which names the job of the journal.

    ``origin``: where the updates are sent; empty if a dry run does not know it. ``layout``: how
    the input is read. ``input``, ``size`` and ``modified`` (ISO 8601) describe the input for
    people; its name may change.
    """

    project_id: str
    origin: str
    input: str
    fingerprint: str
    layout: dict[str, str] = attrs.field(hash=False)
    size: int | None = None
    modified: str | None = None

    def check(self, journal: Header, path: Path) -> None:
        """Raise JournalError if a journal with that header belongs to another job."""
        if journal.project_id != self.project_id:
            raise JournalError(
                f"{path} belongs to project {journal.project_id}, this job to {self.project_id}",
                JournalReason.OTHER_TARGET,
            )
        if self.origin and journal.origin != self.origin:
            raise JournalError(
                f"{path} belongs to a job that sent to {journal.origin}; "
                f"this one sends to {self.origin}",
                JournalReason.OTHER_TARGET,
            )
        if journal.layout != self.layout:
            names = sorted(journal.layout.keys() | self.layout.keys())
            told = ", ".join(
                f"{name} {_option(journal.layout, name)}, not {_option(self.layout, name)}"
                for name in names
                if journal.layout.get(name) != self.layout.get(name)
            )
            raise JournalError(f"{path} was begun with {told}", JournalReason.OTHER_OPTIONS)
        if journal.fingerprint != self.fingerprint:
            raise JournalError(f"{path} {_other_input(journal, self)}", JournalReason.OTHER_INPUT)

    def fits(self, journal: Header) -> bool:
        """Whether a journal with that header belongs to this job."""
        return (
            journal.project_id == self.project_id
            and journal.origin == (self.origin or journal.origin)
            and journal.layout == self.layout
            and journal.fingerprint == self.fingerprint
        )


def _option(layout: Mapping[str, str], name: str) -> str:
    """An option as an error shows it. The layout leaves out the usual encoding."""
    value = layout.get(name, "utf-8" if name == "encoding" else None)
    return "none" if value is None else repr(value)


def _other_input(journal: Header, job: Header) -> str:
    """The changes of the input that the headers show."""
    if journal.size is None or job.size is None:
        return f"belongs to another input ({journal.input}), or this one has changed since"
    then = f"{journal.size:,} bytes, written {journal.modified}"
    now = f"{job.size:,} bytes, written {job.modified}"
    if journal.input == job.input:
        return f"belongs to another content of {job.input}: then {then}; now {now}"
    return f"belongs to another input, {journal.input} ({then}); this job's is {job.input} ({now})"


def moment(seconds: float) -> str:
    """A time of the file system in the form of a header, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(" ", "seconds")


_FIELDS: Final = tuple(field.name for field in attrs.fields(Entry))
_WORDS: Final = {str(outcome): outcome for outcome in Outcome}
_KINDS: Final[dict[str, type]] = {
    **dict.fromkeys(("message_id", "digest", "error", "status", "request_id", "reason"), str),
    **dict.fromkeys(("line", "attempts", "http_status", "by"), int),
}


def encode(entry: Entry) -> bytes:
    """One line of the journal, with its end."""
    fields = {name: value for name in _FIELDS if (value := getattr(entry, name)) is not None}
    return json.dumps(fields).encode() + b"\n"


def decode(text: bytes) -> Entry:
    """The entry of a line, or ValueError. Fields of a later minor version are ignored."""
    found = _json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004  # one error for all faults
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
    return Entry(record=record, outcome=outcome, **found)


def write_header(header: Header) -> bytes:
    """The journal's first line, with its end."""
    fields = {name: value for name, value in attrs.asdict(header).items() if value is not None}
    return _BEGINNING + json.dumps({"version": VERSION, **fields})[1:].encode() + b"\n"


def read_header(text: bytes) -> Header:
    """The header that this line is, or ValueError."""
    if not text.startswith(_BEGINNING):
        raise ValueError("it is not the journal of a bulk job")
    fields = _json.loads(text)
    version = fields.get("version")
    if version != VERSION:
        raise ValueError(
            f"its format has version {version!r}, and this program writes version {VERSION}"
        )
    required = {"project_id": str, "origin": str, "input": str, "fingerprint": str, "layout": dict}
    optional = {"size": int, "modified": str}
    if not all(type(fields.get(name)) is kind for name, kind in required.items()):
        raise ValueError("its header lacks a field")
    if not all(type(fields.get(name)) in (kind, type(None)) for name, kind in optional.items()):
        raise ValueError("its header has a field of another type")
    return Header(**{name: fields.get(name) for name in (*required, *optional)})


def may_be_cut_header(text: bytes) -> bool:
    """Whether a file without a whole line may be a journal whose header was being written."""
    return text.startswith(_BEGINNING) or _BEGINNING.startswith(text)


class Journal:
    """The file, which one job locks and appends to line by line.

    Each line is in the file before its outcome is shown. After :meth:`load` it is a
    :class:`~.ledger.Ledger`.
    """

    def __init__(self, path: Path, descriptor: int, *, fsync: bool) -> None:
        self._path = path
        self._descriptor = descriptor
        self._fsync = fsync
        self._size = 0
        self._refusal: JournalError | None = None  # why writing has ended
        self.states = States()
        """The states of the records, once the journal is loaded."""
        self.cut = 0
        """Bytes of an incomplete last line that were cut off."""

    @classmethod
    def open(cls, path: Path, *, fsync: bool = False) -> Self:
        """The journal at this path, created if it is missing, and locked. Raises JournalError."""
        if fcntl is None:
            raise JournalError(
                "a journal is locked in a way that only POSIX systems have", JournalReason.PLACE
            )
        try:
            # O_APPEND: the next byte is written at the end, even if the file was truncated before.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise JournalError(
                f"{path}: no journal can be written there: {error.strerror}", JournalReason.PLACE
            ) from None
        journal = cls(path, descriptor, fsync=fsync)
        try:
            _check_plain(path, os.fstat(descriptor))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise JournalError(
                        f"{path} cannot be locked: {error.strerror}", JournalReason.PLACE
                    ) from None
                raise JournalError(
                    f"{path} is in use: another job works with it at this moment",
                    JournalReason.IN_USE,
                ) from None
        except JournalError:
            journal.close()
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def length(self) -> int:
        """The present size of the file in bytes."""
        return os.fstat(self._descriptor).st_size

    def load(self, header: Header, states: States) -> None:
        """Set the states of the records by this journal. Raises JournalError.

        If a journal has no outcome yet, its input may have been corrected since, so the journal
        begins again. If the job was killed while it wrote the last line, that incomplete line is
        cut off.
        """
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                whole, size = _load(file, header, self._path, states.apply)
            self._size = whole
            if size > whole:
                self.cut = size - whole if whole else 0  # the header is written again
                os.ftruncate(self._descriptor, whole)
        except OSError as error:
            raise JournalError(
                f"{self._path} cannot be read: {error.strerror}", JournalReason.PLACE
            ) from None
        if not whole:
            self._write(write_header(header))
            if self._fsync:
                self._sync_folder()
        self.states = states

    # A ledger

    @property
    def counts(self) -> Mapping[Outcome, int]:
        return self.states.counts

    @property
    def last(self) -> int:
        return self.states.last

    def state(self, record: int) -> Outcome | None:
        return self.states[record]

    def agrees(self, item: Numbered) -> bool:
        return self.states.agrees(item)

    async def write(self, entry: Entry) -> None:
        """Append the entry and the entries that it supersedes, all or none; update the states."""
        entries = [entry]
        if entry.outcome is Outcome.UPDATED and entry.message_id is not None:
            entries = [*self.states.superseded(entry.record, entry.message_id), entry]
        self.append(entries)
        for each in entries:
            self.states.apply(each)

    def append(self, entries: Iterable[Entry]) -> None:
        """Append these lines, all or none. Raises JournalError, also at every later call.

        If a partly written line cannot be removed either, it is the end of the file, and the next
        run cuts it off.
        """
        self._write(b"".join(map(encode, entries)))

    def _write(self, data: bytes) -> None:
        if self._refusal is None:
            try:
                self._check_path()
                self._append(data)
            except JournalError as error:
                self._refusal = error
            else:
                self._size += len(data)
                return
        raise JournalError(str(self._refusal), self._refusal.reason)

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
            raise JournalError(
                f"{self._path} cannot be written: {error.strerror}", JournalReason.LOST
            ) from None

    def _check_path(self) -> None:
        """Whether the path still leads to the file that is written."""
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path)
        except OSError:
            raise self._lost("removed") from None
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise self._lost("replaced by another file")
        if there.st_size != self._size:
            raise self._lost("changed by somebody else")

    def _lost(self, how: str) -> JournalError:
        return JournalError(f"{self._path} was {how} while the job was running", JournalReason.LOST)

    def _sync_folder(self) -> None:
        """A new file survives a power loss only after its folder was written too (fsync(2))."""
        try:
            folder = os.open(self._path.absolute().parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise JournalError(
                f"{self._path}: its folder cannot be brought to the disk: {error.strerror}",
                JournalReason.PLACE,
            ) from None


def look(path: Path, header: Header | None, states: States) -> bool:
    """Apply the journal at this path to the states, without changing it.

    False if it is missing. ``header`` None: the journal of any job. Raises JournalError.
    """
    try:
        _check_plain(path, path.stat())
        with path.open("rb") as file:
            _load(file, header, path, states.apply)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise JournalError(
            f"{path} cannot be read: {error.strerror}", JournalReason.PLACE
        ) from None
    return True


def _check_plain(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise JournalError(f"{path} is not a plain file", JournalReason.PLACE)


def _is_blank(text: bytes, file: BinaryIO) -> bool:
    """Whether the rest is only NULs, which some file systems leave after a power loss."""
    while text and not text.strip(b"\0"):
        text = file.read(MAX_LINE)
    return not text


def _load(
    file: BinaryIO, header: Header | None, path: Path, apply: Callable[[Entry], None]
) -> tuple[int, int]:
    """Apply each entry. Returns the bytes of complete lines, and the bytes of the file."""
    text = file.readline(MAX_LINE)
    if not text.endswith(b"\n"):
        if not may_be_cut_header(text) or len(text) == MAX_LINE:
            raise JournalError(
                f"{path} is not the journal of a bulk job", JournalReason.NOT_A_JOURNAL
            )
        return 0, os.fstat(file.fileno()).st_size
    try:
        found = read_header(text)
    except ValueError as error:
        raise JournalError(f"{path} cannot be used: {error}", JournalReason.NOT_A_JOURNAL) from None
    whole = len(text)
    text = file.readline(MAX_LINE)
    if header is not None and not header.fits(found):
        # There is no outcome yet, so the input may have been corrected since.
        header.check(found if text else attrs.evolve(found, fingerprint=header.fingerprint), path)
        return 0, whole
    number = 2
    while text.endswith(b"\n"):
        try:
            apply(decode(text))
        except ValueError as error:
            raise JournalError(
                f"line {number} of {path} is no line of a journal: {error}", JournalReason.DAMAGED
            ) from None
        whole += len(text)
        number += 1
        text = file.readline(MAX_LINE)
    if len(text) == MAX_LINE and not _is_blank(text, file):
        raise JournalError(
            f"line {number} of {path} is longer than any of a journal", JournalReason.DAMAGED
        )
    return whole, os.fstat(file.fileno()).st_size if text else whole
