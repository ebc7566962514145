"""The file of failed records, which is an input again, with the reason beside each record."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self

import attrs

from .._wire import json as _json
from .input import REASON_COLUMN, BadLine, Layout, Record, RecordReader
from .ledger import Outcome
from .states import States

__all__ = ["Form", "Spool", "part_of", "write_failures"]

_OWN_REASON: Final = re.compile(rf', "{REASON_COLUMN}": "(?:[^"\\]|\\.)*"}}\s*\Z')
"""How a reason ends a JSON object in a file of failures."""

_WRITTEN: Final = frozenset({Outcome.FAILED, Outcome.INVALID})


class Spool:
    """Failed records, kept on disk until the run ends, because a pipe cannot be read again.

    A full disk does not end the job: the OSError is raised when the spool is read.
    """

    def __init__(self, folder: Path) -> None:
        self._problem: OSError | None = None
        self._file: IO[bytes] = tempfile.TemporaryFile(  # noqa: SIM115  # closed by __exit__
            dir=folder, prefix=".sinch-conv-"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Closing would write the rest of the buffer, which is not needed any more.
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, item: Record | BadLine) -> None:
        """Keep the number and the bytes of a record."""
        if self._problem is not None:
            return
        try:
            self._file.write(json.dumps([item.number, item.raw.decode("latin-1")]).encode() + b"\n")
        except OSError as problem:
            self._problem = problem

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        if self._problem is not None:
            raise self._problem
        self._file.seek(0)
        for line in self._file:
            number, raw = json.loads(line)
            yield number, raw.encode("latin-1")


@attrs.frozen
class Form:
    """How the input's records are written, and so those of the file of failures."""

    format: Literal["csv", "jsonl"]
    header: bytes = b""
    columns: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str = "utf-8"

    @classmethod
    def of(cls, reader: RecordReader, layout: Layout) -> Self:
        """The form of what this reader reads."""
        return cls(reader.format, reader.header, reader.columns, layout.delimiter, layout.encoding)

    def first_line(self) -> bytes:
        """The header, with a column for the reason."""
        if self.format == "jsonl" or REASON_COLUMN in self.columns:
            return _whole(self.header)
        return self._appended(self.header, REASON_COLUMN)

    def with_reason(self, raw: bytes, reason: str) -> bytes:
        """The record with its reason. A record that is too broken for this stays unchanged."""
        if self.format == "jsonl":
            return self._in_object(raw, reason)
        if REASON_COLUMN in self.columns:
            return self._in_column(raw, reason)
        return self._appended(raw, reason)

    def _appended(self, raw: bytes, field: str) -> bytes:
        line = raw.rstrip(b"\r\n")
        end = raw[len(line) :] or b"\n"
        return line + self._encoded(self.delimiter + self._row([field])) + end

    def _in_column(self, raw: bytes, reason: str) -> bytes:
        """For an input that was a file of failures itself."""
        try:
            text = raw.decode(self.encoding)
            lines = io.StringIO(text, newline="\n")
            (row,) = csv.reader(lines, delimiter=self.delimiter, strict=True)
        except (ValueError, csv.Error):
            return _whole(raw)
        if len(row) != len(self.columns):
            return _whole(raw)
        row[self.columns.index(REASON_COLUMN)] = reason
        return self._encoded(self._row(row)) + b"\n"

    def _in_object(self, raw: bytes, reason: str) -> bytes:
        try:
            text = raw.decode(self.encoding)
            found = _json.loads(text.encode())
        except ValueError:
            return _whole(raw)
        if not isinstance(found, dict) or not found:
            return _whole(raw)
        # The object is not encoded again if that can be avoided, so that numbers stay unchanged.
        own = _OWN_REASON.search(text)
        if REASON_COLUMN in found and own is None:
            return (
                self._encoded(json.dumps({**found, REASON_COLUMN: reason}, ensure_ascii=False))
                + b"\n"
            )
        rest = text.rstrip().removesuffix("}") if own is None else text[: own.start()]
        return self._encoded(f'{rest}, "{REASON_COLUMN}": {json.dumps(reason)}}}\n')

    def _row(self, fields: list[str]) -> str:
        out = io.StringIO()
        # Python 3.11 quotes a field with a line break only if the break is part of this terminator.
        csv.writer(out, delimiter=self.delimiter, lineterminator="\r\n").writerow(fields)
        return out.getvalue().removesuffix("\r\n")

    def _encoded(self, text: str) -> bytes:
        return text.encode(self.encoding, "backslashreplace")


def write_failures(
    path: Path, form: Form, rows: Iterable[tuple[int, bytes]], states: States
) -> int:
    """Write the rows that failed and are not superseded; return their number. Raises OSError.

    The file replaces an older one only when it is complete; otherwise it is removed. It holds
    metadata, so only its owner may read it.
    """
    written = 0
    part = part_of(path)
    # Opened outside of `try`, because a file that cannot be opened must not be removed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600)
    os.fchmod(descriptor, 0o600)  # a killed run may have left the file
    try:
        with (
            open(descriptor, "wb") as plain,
            gzip.open(plain, "wb")
            if path.suffix == ".gz"
            else contextlib.nullcontext(plain) as file,
        ):
            file.write(form.first_line())
            for number, raw in rows:
                if raw and states[number] in _WRITTEN:
                    file.write(form.with_reason(raw, states.reason(number)))
                    written += 1
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return written


def part_of(path: Path) -> Path:
    """The path of the file until it is complete."""
    return path.with_name(path.name + ".part")


def _whole(raw: bytes) -> bytes:
    """The line with a line end, which the last line of a file may lack."""
    return raw if raw.endswith(b"\n") or not raw else raw + b"\n"
