"""The input of a bulk job: CSV or JSON Lines, gzipped or not, as numbered records and numbered bad lines.

Knows nothing of what becomes of a record. Holds one record at a time, however long the input.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import os
import stat
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, cast

import attrs

from .._wire import http as _wire
from .._wire import json as _json
from ..errors import InvalidArgumentError
from ..models import MetadataUpdate

__all__ = ["BadLine", "InputError", "Layout", "Record", "RecordReader", "Source"]

MAX_LINE: Final = 1024 * 1024
"""Bytes of a line. Metadata is at most 1,024 characters; the rest is room for columns that are not ours."""

_TOO_LONG: Final = f"longer than {MAX_LINE:,} bytes"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"  # a spreadsheet's way to say UTF-8
_NO_TEXT: Final = {
    b"\x1f\x8b": "it is gzipped; unpack it, or give it as a file whose name ends in .gz",
    b"PK\x03\x04": "it is a spreadsheet or another archive; save it as CSV",
    b"\xff\xfe": "it is UTF-16; save it as UTF-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8",
}
"""What a file begins with that many take for a CSV."""


class InputError(Exception):
    """The input cannot be read, or not be read on; the text says where and why, and quotes no metadata."""


@attrs.frozen(kw_only=True)
class Record(MetadataUpdate):
    """One update, with where it stood: ``number`` among the records, ``line`` of the file, and its bytes as they were."""

    number: int
    line: int
    raw: bytes = attrs.field(repr=False)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell this record from another one."""
        return _digest(
            self.message_id.encode(), self.metadata.encode(), (self.messages_source or "").encode()
        )


@attrs.frozen(kw_only=True)
class BadLine:
    """A record that is none, and why. ``raw`` is empty where the line was too long to be kept."""

    number: int
    line: int
    reason: str
    raw: bytes = attrs.field(repr=False)

    @property
    def digest(self) -> str:
        """As a record's."""
        return _digest(self.raw)


@attrs.frozen
class Layout:
    """How the records are written. ``format`` None: JSON Lines if the first line begins with a brace, else CSV."""

    format: Literal["csv", "jsonl"] | None = None
    delimiter: str = ","
    message_id: str = "message_id"
    metadata: str = "metadata"
    messages_source: str = "messages_source"


@attrs.frozen
class Source:
    """Where the records come from: a file that can be read as often as it takes, or a pipe that is read once."""

    path: Path | None  # None: standard input
    layout: Layout

    @property
    def name(self) -> str:
        return "-" if self.path is None else str(self.path)

    @property
    def is_pipe(self) -> bool:
        """Whether it can be read only once. A shell's ``<(command)`` is a file name and yet a pipe."""
        return self.path is None or not stat.S_ISREG(self.status().st_mode)

    def status(self) -> os.stat_result:
        """The file's state; what it differs in is how one knows that the file was changed."""
        assert self.path is not None  # standard input has none that would say anything
        try:
            return self.path.stat()
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None

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
        return cast("BinaryIO", gzip.open(self.path)) if self.path.suffix == ".gz" else self.path.open("rb")

    def _pipe(self) -> BinaryIO:
        if self.path is None and sys.stdin is None:
            raise InputError("standard input is closed")
        # Never closed, and so left to the process's end: a thread may be blocked in reading it, and closing would wait for that thread.
        descriptor = 0 if self.path is None else os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return open(descriptor, "rb", closefd=False)

    def fingerprint(self) -> str:
        """What tells this file from another, whatever its name: a digest of its bytes as they lie on the disk."""
        assert self.path is not None  # a pipe's fingerprint is its first record's digest
        try:
            with self.path.open("rb") as file:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None


class _Lines:
    """The lines of a stream, with the number of the last one, the bytes taken since the last record, and what was wrong with them."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._again = b""
        self.number = 0
        self.first = 1
        """The line at which the record under way begins."""
        self.taken: list[bytes] = []
        self.problem: str | None = None

    def __iter__(self) -> Iterator[str]:
        while (line := self.next()) is not None:
            yield line

    def next(self) -> str | None:
        """The next line as text, None at the end. What cannot be had as text is an empty line and a problem."""
        line, self._again = self._again or self._read(), b""
        if not line:
            return None
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if len(line) > MAX_LINE:
            self.problem = _TOO_LONG
            return "\n"
        self.taken.append(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.problem = "not UTF-8"
            return "\n"

    def place(self, number: int) -> str:
        """Where this line is, as an error says it."""
        return f"{self._name}, line {number}"

    def begin(self) -> int:
        """Forgets what belongs to the last record, and returns the number of the line that comes next."""
        self.taken.clear()
        self.problem = None
        self.first = self.number + 1
        return self.first

    def peek(self) -> bytes:
        """The first line that is not blank, which is still to come; empty where there is none."""
        while line := self._read():
            if len(line) > MAX_LINE or line.removeprefix(_BYTE_ORDER_MARK).strip():
                self._again = line
                break
            self.number += 1
        return line.removeprefix(_BYTE_ORDER_MARK)

    def _read(self) -> bytes:
        try:
            line = self._stream.readline(MAX_LINE + 1)
            if len(line) > MAX_LINE:
                end = line
                while end and not end.endswith(b"\n"):
                    end = self._stream.readline(MAX_LINE)
        except (OSError, EOFError, zlib.error) as error:
            # A gzip file that is cut short or is none raises one of these three.
            how = "unpacked, as its name asks for" if isinstance(self._stream, gzip.GzipFile) else "read"
            raise InputError(f"{self.place(self.number + 1)}: cannot be {how}: {error}") from None
        return line


class RecordReader:
    """The records of a stream in their order, the bad ones among them. Blank lines are no records.

    Known at once: ``format``, ``header`` (the bytes of a CSV's first line), and ``fingerprint``, which is all that there is of an input that can
    be read only once: a digest of its beginning. Raises InputError for a header that will not do. ``name`` is the input's, for errors.
    """

    def __init__(self, stream: BinaryIO, layout: Layout, *, name: str = "the input") -> None:
        self._lines = _Lines(stream, name)
        self._layout = layout
        self._name = name
        first = self._lines.peek()
        for beginning, reason in _NO_TEXT.items():
            if first.startswith(beginning):
                raise InputError(f"{name} is neither CSV nor JSON Lines: {reason}")
        self.format = layout.format or ("jsonl" if first.lstrip().startswith(b"{") else "csv")
        self.header = b""
        if self.format == "csv":
            self._rows = csv.reader(self._lines, delimiter=layout.delimiter, strict=True)
            self._columns = self._read_header(first)
            first = self._lines.peek()
        self.fingerprint = f"first-line:{_digest(self.header, first)}"

    def __iter__(self) -> Iterator[Record | BadLine]:
        read = self._row if self.format == "csv" else self._object
        lines, number = self._lines, 1
        while True:
            line = lines.begin()
            fields = read()
            if fields is None:
                return
            if lines.problem is not None:
                fields = lines.problem
            elif not fields:
                continue
            raw = b"" if lines.problem == _TOO_LONG else b"".join(lines.taken)
            found = fields if isinstance(fields, str) else self._checked(fields, number, line, raw)
            if isinstance(found, str):
                yield BadLine(number=number, line=line, reason=found, raw=raw)
            else:
                yield found
            number += 1

    def _read_header(self, first: bytes) -> list[str]:
        layout, lines = self._layout, self._lines
        if layout.format is None and first.lstrip().startswith(b"["):
            raise InputError(
                f"{self._name} is neither CSV nor JSON Lines: it is a JSON array; write one object a line"
            )
        try:
            columns = [column.strip() for column in next(self._rows, [])]
        except csv.Error as error:
            raise InputError(
                f"{lines.place(lines.number)}: the header is not CSV: {_problem(error)}"
            ) from None
        if lines.problem is None and b"\0" in first:
            lines.problem = "not text"
        if lines.problem is not None:
            raise InputError(
                f"{lines.place(lines.number)}: {lines.problem}, and so no header; CSV or JSON Lines in UTF-8 is wanted"
            )
        self.header = b"".join(lines.taken)
        if not columns:
            raise InputError(
                f"{self._name} is empty: not even a header is there, such as {layout.message_id}{layout.delimiter}{layout.metadata}"
            )
        for name, option in ((layout.message_id, "--id-column"), (layout.metadata, "--metadata-column")):
            if name not in columns:
                raise InputError(
                    f"{lines.place(lines.number)}: the header has no column {name!r}; {option} names another one, "
                    f"and --delimiter what stands between the columns, if not {layout.delimiter!r}"
                )
        for name in (layout.message_id, layout.metadata, layout.messages_source):
            if columns.count(name) > 1:
                raise InputError(
                    f"{lines.place(lines.number)}: the header has the column {name!r} twice; rename one of them"
                )
        return columns

    def _row(self) -> dict[str, Any] | str | None:
        """The next row of a CSV by column; what is wrong with it; empty where it is blank; None at the end."""
        try:
            row = next(self._rows, None)
        except csv.Error as error:
            first, last = self._lines.first, self._lines.number
            if first == last:
                return f"not CSV: {_problem(error)}"
            return f"not CSV: {error}; perhaps a quote that is never closed: it takes lines {first:,} to {last:,} for one"
        if not row:
            return None if row is None else {}
        if len(row) != len(self._columns):
            fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
            return f"{fields}, where the header has {len(self._columns)}"
        return dict(zip(self._columns, row, strict=True))

    def _object(self) -> dict[str, Any] | str | None:
        """The same for JSON Lines."""
        text = self._lines.next()
        if text is None or not text.strip():
            return None if text is None else {}
        try:
            found = _json.loads(text.encode())
        except ValueError:
            return "not JSON"
        return found if isinstance(found, dict) and found else "not a JSON object with fields"

    def _checked(self, fields: dict[str, Any], number: int, line: int, raw: bytes) -> Record | str:
        layout = self._layout
        for name in (layout.message_id, layout.metadata):
            if name not in fields:
                return f"no {name!r}"
        message_id, metadata = fields[layout.message_id], fields[layout.metadata]
        messages_source = fields.get(layout.messages_source)
        if messages_source == "":
            messages_source = None
        try:
            _wire.message_request("", "", message_id, metadata, messages_source)
        except InvalidArgumentError as refused:
            return str(refused)
        return Record(message_id, metadata, messages_source, number=number, line=line, raw=raw)


def _problem(error: csv.Error) -> str:
    """What csv says, but for the one thing that it says to programmers."""
    if "new-line character" in str(error):
        return "a line ends in CR alone, as on old Macs; save it with LF, or with CR and LF"
    return str(error)


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()
