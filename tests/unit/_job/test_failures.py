"""The file of failures: what is written, with which reason, and what is left of one that is not
whole.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import resource
import stat
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async._job.failures import Form, Spool, write_failures
from sinch_conv_async._job.input import BadLine, Layout, Record, RecordReader
from sinch_conv_async._job.ledger import Entry, Outcome
from sinch_conv_async._job.states import States

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORM = Form("csv", b"message_id,metadata\n", ("message_id", "metadata"))


def bad(number: int, raw: bytes) -> BadLine:
    return BadLine(number=number, line=number, reason="", raw=raw)


def with_reasons(data: bytes, layout: Layout, reason: str) -> bytes:
    """The failures of an input in which everything failed for this reason."""
    reader = RecordReader(io.BytesIO(data), layout)
    form = Form.of(reader, layout)
    return b"".join([form.first_line(), *(form.with_reason(item.raw, reason) for item in reader)])


@pytest.mark.parametrize(
    ("layout", "data", "written"),
    [
        (
            Layout(),
            b"message_id,metadata\nA,one\n",
            b'message_id,metadata,_reason\nA,one,"404, no"\n',
        ),
        (
            Layout(),
            b"message_id,metadata\r\nA,one",
            b'message_id,metadata,_reason\r\nA,one,"404, no"\n',
        ),
        (
            Layout(delimiter=";"),
            b'message_id;metadata\nA;"two\nlines"\nB\n',
            b'message_id;metadata;_reason\nA;"two\nlines";404, no\nB;404, no\n',
        ),
        # An input that was a file of failures itself: the reason is replaced.
        (
            Layout(),
            b'_reason,message_id,metadata\n"old, one",A,"o""ne"\nB\n\xff,C,three\n',
            b'_reason,message_id,metadata\n"404, no",A,"o""ne"\nB\n\xff,C,three\n',
        ),
        (
            Layout(encoding="cp1252"),
            b"message_id,metadata\nA,caf\xe9\n",
            b'message_id,metadata,_reason\nA,caf\xe9,"404, no"\n',
        ),
        (
            Layout(),
            b'{"message_id": "A", "metadata": "one", "n": 1.10}\r\nnonsense\n[]',
            b'{"message_id": "A", "metadata": "one", "n": 1.10, "_reason": "404, no"}\nnonsense\n[]\n',
        ),
        (
            Layout(),
            b'{"_reason": "old", "message_id": "A", "metadata": "\xc3\xa9"}\n',
            b'{"_reason": "404, no", "message_id": "A", "metadata": "\xc3\xa9"}\n',
        ),
    ],
)
def test_the_reason_stands_beside_the_record(layout: Layout, data: bytes, written: bytes) -> None:
    assert with_reasons(data, layout, "404, no") == written
    quoted = with_reasons(written, layout, 'a "quoted" \\ reason')
    assert with_reasons(quoted, layout, "404, no") == written


def test_a_file_of_failures_is_an_input_with_the_same_records() -> None:
    data = b'message_id,metadata\nA,"o""n\ne"\nB,\nC\n'
    before = list(RecordReader(io.BytesIO(data), Layout()))
    after = list(RecordReader(io.BytesIO(with_reasons(data, Layout(), 'a "reason", so')), Layout()))
    assert [item.digest for item in before if isinstance(item, Record)] == [
        item.digest for item in after if isinstance(item, Record)
    ]
    assert [type(item) for item in before] == [type(item) for item in after]


def test_a_reason_in_another_encoding_is_escaped() -> None:
    written = with_reasons(b"message_id,metadata\nA,caf\xe9\n", Layout(encoding="latin-1"), "a → b")
    assert written == b"message_id,metadata,_reason\nA,caf\xe9,a \\u2192 b\n"


@pytest.mark.parametrize("layout", [Layout("csv"), Layout("jsonl")])
def test_failures_come_with_what_the_states_know(layout: Layout, tmp_path: Path) -> None:
    states = States(reasons=True)
    for number, (outcome, fields) in enumerate(
        [
            (Outcome.FAILED, {"error": "NotFoundError", "http_status": 404, "status": "NOT_FOUND"}),
            (Outcome.UPDATED, {}),
            (Outcome.FAILED, {"error": "TransportError", "reason": "the connection was closed"}),
            (Outcome.INVALID, {"reason": "not JSON"}),
        ],
        1,
    ):
        states.apply(Entry(record=number, outcome=outcome, message_id="A", **fields))
    rows = [b"A,1\n", b"A,2\n", b"A,3\n", b"A,4\n"]
    if layout.format == "jsonl":
        rows = [b'{"a": %d}\n' % number for number in range(4)]
    form = Form(
        layout.format or "csv", FORM.header if layout.format == "csv" else b"", FORM.columns
    )
    assert write_failures(tmp_path / "f", form, enumerate(rows, 1), states) == 2
    lines = (tmp_path / "f").read_text().splitlines()
    if layout.format == "jsonl":
        found = [json.loads(line)["_reason"] for line in lines]
    else:
        found = [row["_reason"] for row in csv.DictReader(lines)]
    # The first was superseded by the second.
    assert found == ["TransportError: the connection was closed", "not JSON"]


def test_a_spool_without_room_says_so_when_it_is_read(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with Spool(tmp_path) as spool:
            for number in (1, 2, 3):
                spool.add(bad(number, b"x" * 100_000))
            with pytest.raises(OSError, match="File too large"):
                list(spool)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["failed.csv", "failed.csv.gz"])
def test_failures_that_are_not_whole_leave_the_older_ones_and_nothing_else(
    name: str, tmp_path: Path
) -> None:
    def interrupted() -> Iterator[tuple[int, bytes]]:
        yield 1, b"A,m\n"
        raise KeyboardInterrupt

    path = tmp_path / name
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        write_failures(path, FORM, interrupted(), States())
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize("name", ["failed.csv", "failed.csv.gz"])
def test_failures_hold_metadata_and_are_their_owners_alone(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    left = tmp_path / f"{name}.part"  # by a run that was killed
    left.touch(0o644)
    write_failures(path, FORM, [], States())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_bytes()
    assert (
        gzip.decompress(written) if name.endswith(".gz") else written
    ) == b"message_id,metadata,_reason\n"


def test_failures_are_not_written_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "failed.csv.part").symlink_to("theirs")
    with pytest.raises(OSError, match="symbolic links"):
        write_failures(tmp_path / "failed.csv", FORM, [], States())
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_spool_gives_back_the_bytes_it_was_given(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.add(bad(3, b"A,\xff\n"))
        spool.add(bad(9, b""))
        assert list(spool) == [(3, b"A,\xff\n"), (9, b"")]
    assert list(tmp_path.iterdir()) == []
