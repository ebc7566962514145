"""The input of a bulk job: CSV or JSON Lines, gzipped or not, as numbered records and bad lines.

A record is checked once, when the :class:`Record` is made, and may then be sent. This module does
not know what happens to a record. It holds one record at a time, and at most 1 MiB of it.

A record that cannot be read is one bad line, however many lines it has: ``quoting`` finds its end.
If the end is unknown, reading ends with an error, because the following lines may be the text of a
field.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import re
import stat
import sys
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Self, cast

import attrs

from .._wire import json as _json
from .._wire.arguments import checked_id, checked_metadata
from .._wire.merge import merge_json
from .._wire.operations import CheckedUpdate, checked_source
from ..errors import InvalidArgumentError
from ..models import ConversationMessage, MetadataUpdate
from .quoting import Place, RecordEnd

__all__ = [
    "REASON_COLUMN",
    "BadLine",
    "InputError",
    "InputReason",
    "Layout",
    "MergeRecord",
    "Record",
    "RecordReader",
    "Source",
    "digest_of",
]

MAX_LINE: Final = 1024 * 1024
"""Bytes of a record. Metadata has at most 1,024 characters; the rest is room for other columns."""

REASON_COLUMN: Final = "_reason"
"""Column or key of a file of failures: why the record failed. It is not a part of the update."""

_TOO_LONG: Final = f"longer than {MAX_LINE:,} bytes"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"  # spreadsheets begin UTF-8 files with it
_NO_TEXT: Final = {
    b"\x1f\x8b": "it is gzipped; unpack it, or give it as a file whose name ends in .gz",
    b"PK\x03\x04": "it is a spreadsheet or another archive; save it as CSV",
    b"\xff\xfe": "it is UTF-16; save it as UTF-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8",
}
"""Beginnings of files that are often mistaken for CSV."""

_DELIMITERS: Final = ";\t|,"
"""Delimiters that are tried if the header lacks the wanted columns."""

_COLUMNS_SHOWN: Final = 12
_LOOKS_LIKE_A_NAME: Final = re.compile(r"[^\W\d][\w .-]{0,39}")
"""Column names that an error may show. A first line without column names is data, and data is not
shown.
"""


class InputReason(StrEnum):
    """The kind of an :class:`InputError`."""

    UNREADABLE = "unreadable"
    NO_HEADER = "no header"
    NO_COLUMN = "no column"
    NO_END = "no end"
    BAD_LINE = "bad line"
    CHANGED = "changed"
    ENDED_EARLY = "ended early"


class InputError(Exception):
    """The input cannot be read, or not any further.

    The text says where and why, and quotes no metadata. ``column`` names the column that is missing
    (``message_id`` or ``metadata``), ``columns`` those that are there, and ``delimiter`` one that
    would give the header its columns; ``split`` names these if the missing one is not among them.
    ``count``: how many bad lines there are. ``undecodable``: whether one is in another encoding.
    """

    def __init__(
        self,
        text: str,
        reason: InputReason = InputReason.UNREADABLE,
        *,
        column: Literal["message_id", "metadata"] | None = None,
        columns: str = "",
        delimiter: str | None = None,
        split: str = "",
        count: int = 1,
        undecodable: bool = False,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.column = column
        self.columns = columns
        self.delimiter = delimiter
        self.split = split
        self.count = count
        self.undecodable = undecodable


@attrs.frozen(kw_only=True)
class Record(CheckedUpdate, MetadataUpdate):
    """One update, its ``number`` among the records, its ``line`` of the file, and its bytes.

    Raises InvalidArgumentError if it cannot be sent. The job sends it without another check.
    """

    number: int
    line: int
    raw: bytes = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        checked_id("message_id", self.message_id)
        self.check_metadata()
        if self.messages_source is not None:
            object.__setattr__(self, "messages_source", checked_source(self.messages_source))

    def check_metadata(self) -> None:
        checked_metadata(self.metadata)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell this record from another one."""
        return digest_of(
            self.message_id.encode(),
            (self.metadata or "").encode(),
            (self.messages_source or "").encode(),
        )


@attrs.frozen(kw_only=True)
class MergeRecord(Record):
    """A change that is to be merged into the message's metadata.

    Before the merge, ``metadata`` is the change.
    """

    change: str = attrs.field(repr=False)

    def check_metadata(self) -> None:
        """The change may be longer than metadata. ``merge_json`` checks the result."""

    @property
    def digest(self) -> str:
        """The digest of the change, which the merge does not alter."""
        return digest_of(
            self.message_id.encode(), self.change.encode(), (self.messages_source or "").encode()
        )

    def changed(self, message: ConversationMessage) -> str | None:
        """The metadata after the merge; None if the change changes nothing.

        Raises InvalidArgumentError if the metadata is not a JSON object, or would be too long.
        """
        merged = merge_json(message, _json.loads(self.change.encode()))
        return None if merged == merge_json(message, {}) else merged


@attrs.frozen(kw_only=True)
class BadLine:
    """A record that cannot be sent, and why. ``raw`` is empty if it was too long to be kept.

    ``undecodable``: it is not in the input's encoding.
    """

    number: int
    line: int
    reason: str
    raw: bytes = attrs.field(repr=False)
    undecodable: bool = False

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell this bad line from another one."""
        return digest_of(self.raw)


@attrs.frozen
class Layout:
    """How the records are written, and the values that all of them share.

    ``format`` None: JSON Lines if the first line begins with a brace, else CSV. ``message_id``
    None: the column ``message_id``, or ``id`` if there is no such column. ``constant``: the
    metadata of every record, which then needs no metadata column. ``source``: the messages source
    of records that name none. ``merge``: the metadata is a JSON object that is merged into the
    message's metadata.
    """

    format: Literal["csv", "jsonl"] | None = None
    delimiter: str = ","
    message_id: str | None = None
    metadata: str = "metadata"
    messages_source: str = "messages_source"
    encoding: str = "utf-8"
    source: str | None = None
    constant: str | None = attrs.field(default=None, repr=False)
    merge: bool = False

    def as_read(self, form: Literal["csv", "jsonl"], message_id: str) -> dict[str, str]:
        """The layout as the journal's header has it.

        It is equal for two runs that read the same records.
        """
        found: dict[str, str] = {"format": form}
        if form == "csv":
            found["delimiter"] = self.delimiter
        found |= {
            "message_id": message_id,
            "metadata": self.metadata,
            "messages_source": self.messages_source,
        }
        if self.encoding != "utf-8":
            found["encoding"] = self.encoding
        if self.source is not None:
            found["source of all"] = self.source
        if self.constant is not None:
            found["metadata of all"] = digest_of(self.constant.encode())
        if self.merge:
            found["change"] = "merge"
        return found


@attrs.frozen
class Source:
    """Where the records come from: a file that can be read again, or a pipe that is read once."""

    path: Path | None  # None: standard input
    layout: Layout

    @property
    def name(self) -> str:
        return "-" if self.path is None else str(self.path)

    @property
    def is_pipe(self) -> bool:
        """Whether it can be read only once. A shell's ``<(command)`` names a pipe, too."""
        return self.path is None or not stat.S_ISREG(self.status().st_mode)

    def status(self) -> os.stat_result:
        """The file's state. Raises InputError."""
        assert self.path is not None  # the state of standard input says nothing
        try:
            return self.path.stat()
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None

    def check_unchanged(self, before: os.stat_result) -> None:
        """Raise InputError if the file has changed.

        Journal numbers fit only one input; a changed file would update the wrong records.
        """
        now = self.status()
        if (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) != (
            before.st_dev,
            before.st_ino,
            before.st_size,
            before.st_mtime_ns,
        ):
            raise InputError(
                f"{self.name} was changed while the job was running; "
                "its journal goes on only with the file as it was",
                InputReason.CHANGED,
            )

    @contextlib.contextmanager
    def open(self) -> Generator[RecordReader]:
        """A reader at the first record. Raises InputError."""
        try:
            pipe = self.is_pipe
            stream = self._pipe() if pipe else self._stream()
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror}") from None
        name = "standard input" if self.path is None else self.name
        if pipe:
            yield RecordReader(stream, self.layout, name=name)
            return
        with stream:
            yield RecordReader(stream, self.layout, name=name)

    def _stream(self) -> BinaryIO:
        assert self.path is not None  # a pipe is opened by its number
        if self.path.suffix == ".gz":
            return cast("BinaryIO", gzip.open(self.path))
        return self.path.open("rb")

    def _pipe(self) -> BinaryIO:
        if self.path is None and sys.stdin is None:
            raise InputError("standard input is closed")
        # Never closed, because a thread may be blocked in reading it, and closing would wait for
        # that thread.
        descriptor = 0 if self.path is None else os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return open(descriptor, "rb", closefd=False)

    def fingerprint(self) -> str:
        """A digest of the file's bytes, which identifies the file under any name."""
        assert self.path is not None  # a pipe's fingerprint is that of its beginning
        try:
            with self.path.open("rb") as file:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None


class _Lines:
    """The lines of a stream, in pieces of at most MAX_LINE + 1 bytes."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._peeked = b""
        self._at_start = True
        self.number = 0
        self.in_line = False
        """Whether the line goes on after the last piece."""

    def next(self) -> bytes:
        """The next piece; empty at the end of the stream."""
        piece, self._peeked = self._peeked or self._read(), b""
        goes_on, self.in_line = self.in_line, len(piece) > MAX_LINE and not piece.endswith(b"\n")
        if piece and not goes_on:
            self.number += 1
        if self._at_start:
            self._at_start = False
            return piece.removeprefix(_BYTE_ORDER_MARK)
        return piece

    def peek(self) -> bytes:
        """The next line that is not blank, without reading on; empty if there is none."""
        while line := self._read():
            if line.removeprefix(_BYTE_ORDER_MARK).strip() or len(line) > MAX_LINE:
                self._peeked = line
                break
            self.number += 1
            self._at_start = False
        return line.removeprefix(_BYTE_ORDER_MARK)

    def place(self, number: int) -> str:
        """The place of this line in the words of an error."""
        return f"{self._name}, line {number}"

    def _read(self) -> bytes:
        try:
            return self._stream.readline(MAX_LINE + 1)
        except (OSError, EOFError, zlib.error) as error:
            # A gzip file that is cut short, or that is not gzip, raises these three.
            packed = isinstance(self._stream, gzip.GzipFile)
            how = "unpacked, as its name asks for" if packed else "read"
            place = self.place(self.number + (not self.in_line))
            raise InputError(f"{place}: cannot be {how}: {error}") from None


@attrs.define
class _Taken:
    """The part of the record that has been read. A record that is too long is not kept."""

    line: int
    size: int = 0
    problem: str | None = None
    _first: bytes = b""
    _all: bytearray | None = None  # once there is a second piece

    def take(self, piece: bytes) -> None:
        """Keep the piece, unless the record has become too long."""
        self.size += len(piece)
        if self.size > MAX_LINE:
            self.problem = _TOO_LONG
            self._first, self._all = b"", None
        elif self._all is not None:
            self._all += piece
        elif self._first:
            self._all = bytearray(self._first) + piece
        else:
            self._first = piece

    @property
    def raw(self) -> bytes:
        return self._first if self._all is None else bytes(self._all)


@attrs.frozen
class _Fields:
    """The fields of a record before they are checked."""

    message_id: Any
    metadata: Any
    messages_source: Any


class _Fed(deque[str]):
    """The lines of one record for ``csv``.

    The iterator ends after each record, and goes on with the next one.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if not self:
            raise StopIteration
        return self.popleft()


class RecordReader:
    """The records and bad lines of a stream, in their order. Blank lines are skipped.

    Known at once: ``format``, ``header`` (the bytes of a CSV's first line), ``columns``,
    ``layout``, and ``fingerprint``, the digest of the first record, by which a pipe is recognized.
    Raises InputError if the header lacks a column, or if reading cannot go on. ``name`` is the
    input's.
    """

    def __init__(self, stream: BinaryIO, layout: Layout, *, name: str = "the input") -> None:
        self._lines = _Lines(stream, name)
        self._layout = layout
        self._name = name
        self._pieces = codecs.getincrementaldecoder(layout.encoding)("surrogateescape")
        self._undecodable = f"not {layout.encoding.upper()}"
        self._in_pieces = False  # whether the last piece was a part of a line that is too long
        self.header = b""
        self.columns: tuple[str, ...] = ()
        first = self._lines.peek()
        for beginning, reason in _NO_TEXT.items():
            if first.startswith(beginning):
                raise InputError(f"{name} is neither CSV nor JSON Lines: {reason}")
        self.format: Literal["csv", "jsonl"] = layout.format or (
            "jsonl" if first.lstrip().startswith(b"{") else "csv"
        )
        self._fed = _Fed()
        self._rows = csv.reader(self._fed, delimiter=layout.delimiter, strict=True)
        self._end = RecordEnd(layout.delimiter)
        if self.format == "csv":
            self._read_header(first)
        self.layout = layout.as_read(self.format, self._id_name(self.columns))
        self._items = self._read()
        self._first = next(self._items, None)
        self.fingerprint = f"first-record:{'' if self._first is None else self._first.digest}"

    def __iter__(self) -> Iterator[Record | BadLine]:
        if self._first is not None:
            yield self._first
            yield from self._items

    def _read(self) -> Iterator[Record | BadLine]:
        read = self._row if self.format == "csv" else self._object
        number = 1
        while True:
            taken = _Taken(self._lines.number + 1)
            fields = read(taken)
            if fields is None:
                return
            if taken.problem is not None:
                fields = taken.problem
            if fields == "":
                continue
            found = fields if isinstance(fields, str) else self._checked(fields, number, taken)
            if isinstance(found, str):
                undecodable = found == self._undecodable
                last = self._lines.number
                if last > taken.line and not found.startswith("not CSV"):
                    found = f"{found} (lines {taken.line:,} to {last:,})"
                yield BadLine(
                    number=number,
                    line=taken.line,
                    reason=found,
                    raw=taken.raw,
                    undecodable=undecodable,
                )
            else:
                yield found
            number += 1

    # CSV

    def _read_header(self, first: bytes) -> None:
        layout, taken = self._layout, _Taken(self._lines.number + 1)
        if layout.format is None and first.lstrip().startswith(b"["):
            raise InputError(
                f"{self._name} is neither CSV nor JSON Lines: it is a JSON array; "
                "write one object a line"
            )
        row = self._next_row(taken)
        place = self._lines.place(self._lines.number)
        if taken.problem is None and b"\0" in first:
            taken.problem = "not text"
        if taken.problem is not None:
            raise InputError(
                f"{place}: {taken.problem}, and so no header; CSV or JSON Lines in UTF-8 is wanted",
                InputReason.NO_HEADER,
            )
        if isinstance(row, str):
            raise InputError(f"{place}: the header is {row}", InputReason.NO_HEADER)
        if row is None:
            example = f"{self._id_name(())}{layout.delimiter}{layout.metadata}"
            raise InputError(
                f"{self._name} is empty: not even a header is there, such as {example}",
                InputReason.NO_HEADER,
            )
        self.header = taken.raw
        self.columns = tuple(column.strip() for column in row)
        self._find_columns(first, place)

    def _find_columns(self, first: bytes, place: str) -> None:
        layout, columns = self._layout, self.columns
        id_name = self._id_name(columns)
        wanted: list[tuple[Literal["message_id", "metadata"], str]] = [("message_id", id_name)]
        if layout.constant is None:
            wanted.append(("metadata", layout.metadata))
        for column, name in wanted:
            if name not in columns:
                delimiter, split = self._better_delimiter(first)
                raise InputError(
                    f"{place}: the header has no column {name!r}",
                    InputReason.NO_COLUMN,
                    column=column,
                    columns=_shown(columns),
                    delimiter=delimiter,
                    split=split,
                )
        for name in (id_name, layout.metadata, layout.messages_source):
            if columns.count(name) > 1:
                raise InputError(
                    f"{place}: the header has the column {name!r} twice; rename one of them",
                    InputReason.NO_HEADER,
                )
        self._id_at = columns.index(id_name)
        self._metadata_at = columns.index(layout.metadata) if layout.constant is None else None
        has_source = layout.messages_source in columns
        self._source_at = columns.index(layout.messages_source) if has_source else None

    def _better_delimiter(self, header: bytes) -> tuple[str | None, str]:
        """A delimiter with which the header has the wanted columns.

        Or else one that parts a single column into names, and these names.
        """
        layout = self._layout
        likely: tuple[str | None, str] = None, ""
        text = header.decode(layout.encoding, "replace")
        for delimiter in _DELIMITERS:
            columns = [
                column.strip() for column in next(csv.reader([text], delimiter=delimiter), [])
            ]
            if self._id_name(columns) in columns and (
                layout.constant is not None or layout.metadata in columns
            ):
                return delimiter, ""
            if len(self.columns) == 1 < len(columns) and all(
                _LOOKS_LIKE_A_NAME.fullmatch(column) for column in columns
            ):
                likely = delimiter, _shown(tuple(columns))
        return likely

    def _id_name(self, columns: tuple[str, ...] | list[str] | dict[str, Any]) -> str:
        """The column or key of the message id: as given, else ``message_id``, else ``id``."""
        if self._layout.message_id is not None:
            return self._layout.message_id
        return "id" if "id" in columns and "message_id" not in columns else "message_id"

    def _row(self, taken: _Taken) -> _Fields | str | None:
        """The next record, or what is wrong with it.

        Empty text for a blank line; None at the end.
        """
        row = self._next_row(taken)
        if row is None or isinstance(row, str):
            return row
        if not row:
            return ""
        if len(row) != len(self.columns):
            fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
            return f"{fields}, where the header has {len(self.columns)}"
        return _Fields(
            row[self._id_at],
            self._layout.constant if self._metadata_at is None else row[self._metadata_at],
            None if self._source_at is None else row[self._source_at],
        )

    def _next_row(self, taken: _Taken) -> list[str] | str | None:
        """The fields of the next record, or what is wrong with it; None at the end.

        Nearly every record is one line that ``csv`` accepts. For other records, their end is
        searched first.
        """
        piece = self._lines.next()
        if not piece:
            return None
        taken.take(piece)
        text = self._text(piece, taken)
        if not self._lines.in_line:
            self._fed.append(text)
            try:
                row = next(self._rows)
            except csv.Error:
                self._fed.clear()
            else:
                if self._end.is_doubtful(text):
                    raise self._no_end(taken, "a quote stands behind a blank and is not closed")
                return row
        self._go_to_its_end(text, taken)
        if taken.problem is not None:
            return taken.problem
        self._fed.extend(io.StringIO(taken.raw.decode(self._layout.encoding), newline="\n"))
        try:
            row = next(self._rows)
        except csv.Error as error:
            self._fed.clear()
            lines = self._lines.number - taken.line
            span = f" (lines {taken.line:,} to {self._lines.number:,})" if lines else ""
            return f"not CSV: {_problem(error)}{span}"
        assert not self._fed  # csv and this class agree on the end of a record
        return row

    def _go_to_its_end(self, text: str, taken: _Taken) -> None:
        """Read the record that begins with this text. Raises InputError if its end is unknown."""
        self._end.begin()
        while (place := self._end.read(text)) is not Place.END:
            if place is Place.BROKEN:
                raise self._no_end(
                    taken, "a quote in it is neither doubled nor at the end of its field"
                )
            piece = self._lines.next()
            if not piece:
                if place is Place.QUOTED:
                    raise self._no_end(taken, "a quote in it is never closed")
                break
            taken.take(piece)
            text = self._text(piece, taken)

    def _no_end(self, taken: _Taken, why: str) -> InputError:
        return InputError(
            f"{self._lines.place(taken.line)}: {why}, so it is unknown where the record ends; "
            "nothing after it can be sent",
            InputReason.NO_END,
        )

    # JSON Lines

    def _object(self, taken: _Taken) -> _Fields | str | None:
        """The next record of JSON Lines, in the form of :meth:`_row`."""
        piece = self._lines.next()
        if not piece:
            return None
        taken.take(piece)
        text = self._text(piece, taken)
        while self._lines.in_line:
            piece = self._lines.next()
            taken.take(piece)
            self._text(piece, taken)
        if taken.problem is not None:
            return taken.problem
        if not text.strip():
            return ""
        try:
            found = _json.loads(text.encode())
        except ValueError:
            return "not JSON"
        if not isinstance(found, dict) or not found:
            return "not a JSON object with fields"
        layout, id_name = self._layout, self._id_name(found)
        for name in (id_name, layout.metadata):
            if name not in found and (name == id_name or layout.constant is None):
                return f"no {name!r}"
        return _Fields(
            found[id_name],
            found[layout.metadata] if layout.constant is None else layout.constant,
            found.get(layout.messages_source),
        )

    # Both

    def _text(self, piece: bytes, taken: _Taken) -> str:
        """The piece as text.

        Bytes that are not text become lone surrogates, so that quotes stay quotes.
        """
        if self._lines.in_line or self._in_pieces:
            self._in_pieces = self._lines.in_line
            return self._pieces.decode(piece, not self._lines.in_line)
        try:
            return piece.decode(self._layout.encoding)
        except UnicodeDecodeError:
            taken.problem = taken.problem or self._undecodable
            return piece.decode(self._layout.encoding, "surrogateescape")

    def _checked(self, fields: _Fields, number: int, taken: _Taken) -> Record | str:
        layout, metadata = self._layout, fields.metadata
        source = fields.messages_source
        if source is None or source == "":
            source = layout.source
        if layout.merge and layout.constant is None:
            change = _change(metadata)
            if change is None:
                return f"{layout.metadata} must be a JSON object to be merged"
            metadata = change
        place: dict[str, Any] = {"number": number, "line": taken.line, "raw": taken.raw}
        try:
            if layout.merge:
                return MergeRecord(fields.message_id, metadata, source, change=metadata, **place)
            return Record(fields.message_id, metadata, source, **place)
        except InvalidArgumentError as refused:
            return str(refused)


def _change(found: object) -> str | None:
    """The JSON text of an object that is to be merged; None if it is not an object."""
    if isinstance(found, str):
        try:
            return found if isinstance(_json.loads(found.encode()), dict) else None
        except ValueError:  # UnicodeEncodeError too
            return None
    return json.dumps(found) if isinstance(found, dict) else None


def _shown(columns: tuple[str, ...]) -> str:
    """Column names for an error. If the first line is data and not a header, it is not quoted."""
    names = [
        repr(name) if _LOOKS_LIKE_A_NAME.fullmatch(name) else "a column that is not shown"
        for name in columns[:_COLUMNS_SHOWN]
    ]
    more = len(columns) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def _problem(error: csv.Error) -> str:
    """The error of csv in words for users."""
    if "new-line character" in str(error):
        return "a line ends in CR alone, as on old Macs; save it with LF, or with CR and LF"
    return str(error)


def digest_of(*parts: bytes) -> str:
    """Sixteen hexadecimal digits that stand for these parts in this order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()
