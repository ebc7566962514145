"""The input of a bulk job: which lines are records, which are not and why, and where they stood."""

from __future__ import annotations

import csv
import gzip
import io
import json
import socket
import sys
import tracemalloc
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import strategies as st

from sinch_conv_async import ConversationMessage, InvalidArgumentError, MetadataUpdate
from sinch_conv_async._job.input import (
    MAX_LINE,
    BadLine,
    InputError,
    InputReason,
    Layout,
    MergeRecord,
    Record,
    RecordReader,
    Source,
)
from sinch_conv_async._wire.operations import GetMessage, UpdateMetadata

if TYPE_CHECKING:
    from pathlib import Path

CSV = Layout("csv")
JSONL = Layout("jsonl")
HEADER = b"message_id,metadata,messages_source\n"


def read(data: bytes, layout: Layout = CSV) -> list[Record | BadLine]:
    return list(RecordReader(io.BytesIO(data), layout))


def told(data: bytes, layout: Layout = CSV) -> list[tuple[object, ...]]:
    """Number, line, and either the update or what is wrong."""
    return [
        (item.number, item.line, item.reason)
        if isinstance(item, BadLine)
        else (item.number, item.line, item.message_id, item.metadata, item.messages_source)
        for item in read(data, layout)
    ]


@pytest.mark.parametrize(
    ("layout", "data", "found"),
    [
        (
            CSV,
            HEADER + b"A,one,\nB,two,DISPATCH_SOURCE\n",
            [(1, 2, "A", "one", None), (2, 3, "B", "two", "DISPATCH_SOURCE")],
        ),
        # The last line may lack its end, lines may end as on Windows, and a spreadsheet begins with
        # its mark.
        (
            CSV,
            b"\xef\xbb\xbfmessage_id,metadata\r\nA,one\r\nB,two",
            [(1, 2, "A", "one", None), (2, 3, "B", "two", None)],
        ),
        # Columns stand in any order, and others may stand between them.
        (CSV, b"name, metadata ,message_id\nx,one,A\n", [(1, 2, "A", "one", None)]),
        # Empty metadata is metadata: it clears what was there.
        (CSV, b"message_id,metadata\nA,\n", [(1, 2, "A", "", None)]),
        # Blank lines are no records, and count as lines, also before the header.
        (
            CSV,
            b"\n\r\nmessage_id,metadata\n\nA,one\n\n\nB,two\n\n",
            [(1, 5, "A", "one", None), (2, 8, "B", "two", None)],
        ),
        # A quoted field may hold the delimiter, quotes and line ends: the record stands where it
        # begins.
        (
            CSV,
            b'message_id,metadata\nA,"{""a"": 1,\n\n""b"": 2}"\nB,two\n',
            [(1, 2, "A", '{"a": 1,\n\n"b": 2}', None), (2, 5, "B", "two", None)],
        ),
        (CSV, "message_id,metadata\nA,Straße 🚚\n".encode(), [(1, 2, "A", "Straße 🚚", None)]),
        (Layout("csv", ";"), b"message_id;metadata\nA;1,5\n", [(1, 2, "A", "1,5", None)]),
        (
            Layout("csv", "\t", "id", "note", "where"),
            b"id\tnote\twhere\nA\tn\t\n",
            [(1, 2, "A", "n", None)],
        ),
        (CSV, HEADER, []),
        (JSONL, b'{"message_id": "A", "metadata": "one"}\n', [(1, 1, "A", "one", None)]),
        (
            JSONL,
            b'\xef\xbb\xbf\n{"messages_source": null, "message_id": "A", "metadata": "one", "more": [1]}\r\n \n'
            b'{"message_id": "B", "metadata": "", "messages_source": "CONVERSATION_SOURCE"}',
            [(1, 2, "A", "one", None), (2, 4, "B", "", "CONVERSATION_SOURCE")],
        ),
        (
            JSONL,
            b'{"message_id": "A", "metadata": "one", "messages_source": ""}',
            [(1, 1, "A", "one", None)],
        ),
        (
            Layout("jsonl", message_id="id", metadata="note"),
            b'{"id": "A", "note": "n"}\n',
            [(1, 1, "A", "n", None)],
        ),
        (JSONL, b"", []),
        # Told from the first line that is not blank.
        (
            Layout(),
            b'\xef\xbb\xbf\n  {"message_id": "A", "metadata": "one"}\n',
            [(1, 2, "A", "one", None)],
        ),
        (Layout(), b"message_id,metadata\nA,one\n", [(1, 2, "A", "one", None)]),
    ],
)
def test_records_are_read(layout: Layout, data: bytes, found: list[tuple[object, ...]]) -> None:
    assert told(data, layout) == found


@pytest.mark.parametrize(
    ("layout", "line", "reason"),
    [
        (CSV, b"A", "1 field, where the header has 3"),
        (CSV, b"A,b,,d", "4 fields, where the header has 3"),
        (CSV, b"a/b,one,", "message_id must be 1 to 256"),
        (CSV, b",one,", "message_id must be 1 to 256"),
        (CSV, b"A," + b"m" * 1025 + b",", "metadata must be at most 1,024 characters, not 1,025"),
        (CSV, b"A,one,ELSEWHERE", "messages_source must be one of"),
        (CSV, b"A,\xff,", "not UTF-8"),
        (CSV, b"A," + b"m" * MAX_LINE + b",", "longer than 1,048,576 bytes"),
        (CSV, b"A," + b"m" * 3 * MAX_LINE + b",", "longer than 1,048,576 bytes"),
        (CSV, b"A," + b"m" * 200_000 + b",", "not CSV: field larger than field limit (131072)"),
        (JSONL, b"{", "not JSON"),
        (JSONL, b"[" * 100_000, "not JSON"),
        (JSONL, b"[1]", "not a JSON object with fields"),
        (JSONL, b"{}", "not a JSON object with fields"),
        (JSONL, b"[]", "not a JSON object with fields"),
        (JSONL, b'{"metadata": "m"}', "no 'message_id'"),
        (JSONL, b'{"message_id": "A"}', "no 'metadata'"),
        (JSONL, b'{"message_id": 1, "metadata": "m"}', "message_id must be a str, not int"),
        (JSONL, b'{"message_id": "A", "metadata": {"a": 1}}', "metadata must be a str, not dict"),
        (JSONL, b'{"message_id": "A", "metadata": "\\ud800"}', "metadata must encode to UTF-8"),
        (
            JSONL,
            b'{"message_id": "A", "metadata": "m", "messages_source": ["x"]}',
            "messages_source must be one of",
        ),
        (
            JSONL,
            b'{"message_id": "A", "metadata": "m", "messages_source": 0}',
            "messages_source must be one of",
        ),
        (JSONL, b'"\xff"', "not UTF-8"),
        (JSONL, b" " * (MAX_LINE + 1), "longer than 1,048,576 bytes"),
    ],
)
def test_a_bad_line_says_why_and_the_next_one_is_read(
    layout: Layout, line: bytes, reason: str
) -> None:
    good = b"B,two,\n" if layout is CSV else b'{"message_id": "B", "metadata": "two"}\n'
    head = HEADER if layout is CSV else b""
    bad, record = read(head + line + b"\n" + good, layout)
    assert isinstance(bad, BadLine)
    assert (bad.number, bad.line) == (1, 2 if head else 1)
    assert reason in bad.reason
    assert bad.raw == (b"" if "longer than" in reason else line + b"\n")
    assert isinstance(record, Record)
    assert (record.number, record.line, record.message_id, record.raw) == (
        2,
        bad.line + 1,
        "B",
        good,
    )


# Where a record of a CSV ends. A customer's text stands in it, and may look like a record of its
# own.

VICTIM = b"VICTIM,overwritten,\n"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b'm1,"caf\xe9 order:\n' + VICTIM + b'thanks",\n', "not UTF-8"),
        (b'm1,"order:\n' + VICTIM + b'caf\xe9",\n', "not UTF-8"),
        (
            b'm1,"' + b"x" * 140_000 + b"\n" + VICTIM + b'thanks",\n',
            "field larger than field limit",
        ),
        (b'm1,"order:\n' + VICTIM + b"x" * 140_000 + b'",\n', "field larger than field limit"),
        (
            b'm1,"' + b"x" * (MAX_LINE + 9) + b"\n" + VICTIM + b'thanks",\n',
            "longer than 1,048,576 bytes",
        ),
        (b'm1,"order:\n' + VICTIM + b"x" * 3 * MAX_LINE + b'",\n', "longer than 1,048,576 bytes"),
        # Two doubled quotes that stand on both sides of the place where a long line is cut into
        # pieces.
        (
            b'm1,"' + b'""' * (MAX_LINE // 2 + 9) + b"\n" + VICTIM + b'thanks",\n',
            "longer than 1,048,576 bytes",
        ),
        (
            b'mm1,"' + b'""' * (MAX_LINE // 2 + 9) + b"\n" + VICTIM + b'thanks",\n',
            "longer than 1,048,576 bytes",
        ),
        (b'm1,"order:\n' + VICTIM * 100_000 + b'thanks",\n', "longer than 1,048,576 bytes"),
        (b'm1,"order:\n' + VICTIM + b'thanks"\n', "2 fields, where the header has 3"),
        (
            b'm1,"order:\n' + VICTIM * 60 + b'thanks",\n',
            "metadata must be at most 1,024 characters",
        ),
    ],
)
def test_a_record_that_cannot_be_read_is_one_bad_line_wherever_it_ends(
    record: bytes, reason: str
) -> None:
    bad, good = read(HEADER + record + b"B,two,\n")
    assert isinstance(bad, BadLine)
    assert (bad.number, bad.line) == (1, 2)
    assert reason in bad.reason
    assert bad.raw == (b"" if "longer than" in reason else record)
    assert isinstance(good, Record)
    assert (good.number, good.line, good.message_id) == (2, 2 + record.count(b"\n"), "B")


@pytest.mark.parametrize(
    "record",
    [
        b'm1,"order:\n' + VICTIM,
        b'm1,"caf\xe9 order:\n' + VICTIM,
        b'm1,"' + b"x" * 200_000 + b"\n" + VICTIM,
        b'm1,"' + b"x" * 2 * MAX_LINE + b"\n" + VICTIM,
        b'm1,"say "hi":\n' + VICTIM + b'thanks",\n',
        b'm1,"\\"x\n' + VICTIM + b'\\"",\n',
        b'm1,"order:\n' + VICTIM + b'that"s all",\n' + VICTIM,
        b'm1,x\r"order:\n' + VICTIM + b'thanks",\n',
        b'm1, "order:\n' + VICTIM + b'thanks",\n',
        b'"m1"x,"' + b"x" * 2 * MAX_LINE + b"\n" + VICTIM,
    ],
)
def test_nothing_is_read_after_a_record_whose_end_cannot_be_known(record: bytes) -> None:
    found: list[Record | BadLine] = []
    with pytest.raises(InputError, match=r"the input, line 3: .* where the record ends") as raised:
        found.extend(RecordReader(io.BytesIO(HEADER + b"A,one,\n" + record), CSV))
    assert raised.value.reason is InputReason.NO_END
    assert [item.number for item in found] == [1]


def test_a_record_without_end_takes_no_memory() -> None:
    """Each line closes one quoted field and opens the next."""

    class Endless(io.RawIOBase):
        lines = 8_000

        def readline(self, size: int | None = -1) -> bytes:
            self.lines -= 1
            return b"x" * 1020 + b'","\n' if self.lines else b""

    stream = Endless()
    reader = RecordReader(io.BytesIO(HEADER), CSV)
    assert reader.header == HEADER
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="where the record ends"):
            list(RecordReader(_Chained(io.BytesIO(HEADER + b'A,"\n'), stream), CSV))
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_LINE
    finally:
        tracemalloc.stop()


def test_a_quote_in_a_field_without_quotes_is_a_letter() -> None:
    found = told(HEADER + b'A,5" pipe,\nB, "two" of them,\nC,x\ry,\nD,four,\n')
    assert [item[3] for item in (found[0], found[1], found[3])] == [
        '5" pipe',
        ' "two" of them',
        "four",
    ]
    assert "a line ends in CR alone" in str(found[2][2])


def test_after_a_json_line_that_is_too_long_the_next_ones_are_checked() -> None:
    good = b'{"message_id": "B", "metadata": "two"}\n'
    long = b'{"message_id": "' + b"\xff" * 2 * MAX_LINE + b'"}\n'
    assert told(long + b'"\xff"\n' + good, JSONL) == [
        (1, 1, "longer than 1,048,576 bytes"),
        (2, 2, "not UTF-8"),
        (3, 3, "B", "two", None),
    ]


class _Chained(io.RawIOBase):
    """One stream after the other."""

    def __init__(self, *streams: io.IOBase) -> None:
        self.streams = list(streams)

    def readline(self, size: int | None = -1) -> bytes:
        while self.streams:
            if line := self.streams[0].readline(size):
                return line
            del self.streams[0]
        return b""


FIELD = st.text(st.sampled_from('a",\r\n\né'), max_size=6)


@hypothesis.given(
    st.lists(st.lists(FIELD, min_size=3, max_size=3), min_size=1, max_size=5), st.data()
)
def test_a_record_that_is_written_by_csv_ends_where_csv_says(
    rows: list[list[str]], data: st.DataObject
) -> None:
    """Also where a byte of it is made unreadable: then it is one bad line, and the others are read
    as they were.
    """
    written = []
    for row in rows:
        out = io.StringIO()
        csv.writer(out, quoting=csv.QUOTE_ALL).writerow(row)
        written.append(out.getvalue().encode())
    spoilt = data.draw(st.integers(0, len(rows) - 1))
    written[spoilt] = written[spoilt].replace(b'"', b'"\xff', 1)
    found = read(HEADER + b"".join(written) + b"B,two,\n")
    assert [item.raw for item in found] == [*written, b"B,two,\n"]
    assert isinstance(found[spoilt], BadLine)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the input is empty: not even a header is there, such as message_id,metadata"),
        (b"\n\n", "the input is empty"),
        (
            b"note,metadata\nA,b\n",
            "the input, line 1: the header has no column 'message_id'$",
        ),
        (
            b"\nmessage_id,note\nA,b\n",
            "line 2: the header has no column 'metadata'$",
        ),
        (
            b"message_id,metadata,metadata\n",
            "line 1: the header has the column 'metadata' twice; rename one of them",
        ),
        (b'"message_id"x,metadata\n', "line 1: a quote in it is neither doubled nor at the end"),
        (
            b"message_id,metadata,\xff\n",
            "line 1: not UTF-8, and so no header; CSV or JSON Lines in UTF-8 is wanted",
        ),
        ("message_id,metadata\n".encode("utf-16-le"), "line 1: not text, and so no header"),
        (b"x" * (MAX_LINE + 1), "line 1: longer than 1,048,576 bytes, and so no header"),
        (
            "message_id,metadata\nA,b\n".encode("utf-16"),
            "the input is neither .*: it is UTF-16; save it as UTF-8",
        ),
        (
            gzip.compress(HEADER, mtime=0),
            "it is gzipped; unpack it, or give it as a file whose name ends in .gz",
        ),
        (b"PK\x03\x04\x14\0", "it is a spreadsheet or another archive; save it as CSV"),
    ],
)
def test_a_header_that_will_not_do_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read(data)


@pytest.mark.parametrize(
    ("header", "layout", "column", "columns", "delimiter", "split"),
    [
        (b"note,metadata", Layout(), "message_id", "'note', 'metadata'", None, ""),
        (b"id,note", Layout(), "metadata", "'id', 'note'", None, ""),
        (b"message_id;metadata", Layout(), "message_id", "a column that is not shown", ";", ""),
        (
            b"MSG_ID;NOTE;META DATA",
            Layout(),
            "message_id",
            "a column that is not shown",
            ";",
            "'MSG_ID', 'NOTE', 'META DATA'",
        ),
        (b"MSG_ID;NOTE,a", Layout(), "message_id", "a column that is not shown, 'a'", None, ""),
        (b"id\tmetadata", Layout(), "message_id", "a column that is not shown", "\t", ""),
        (b"id|x", Layout(constant="1"), "message_id", "a column that is not shown", "|", ""),
        (b"01A;secret;{1}", Layout(), "message_id", "a column that is not shown", None, ""),
        # Data is no header, and is not shown.
        (
            b'01ABC,"{""secret"": 1}"',
            Layout(),
            "message_id",
            "a column that is not shown, a column that is not shown",
            None,
            "",
        ),
        (b"a" + b",b" * 20, Layout(), "message_id", "'a'" + ", 'b'" * 11 + " and 9 more", None, ""),
    ],
)
def test_a_header_without_the_wanted_columns_says_what_there_is(
    header: bytes, layout: Layout, column: str, columns: str, delimiter: str | None, split: str
) -> None:
    with pytest.raises(InputError) as raised:
        read(header + b"\nA,b\n", layout)
    error = raised.value
    assert error.reason is InputReason.NO_COLUMN
    assert (error.column, error.columns, error.delimiter) == (column, columns, delimiter)
    assert error.split == split


def test_a_json_array_is_not_taken_for_a_csv() -> None:
    data = b'[\n{"message_id": "A", "metadata": "m"}\n]\n'
    with pytest.raises(InputError, match="it is a JSON array; write one object a line"):
        read(data, Layout())
    with pytest.raises(InputError, match="no column 'message_id'"):
        read(data, CSV)


def test_a_record_is_an_update_and_hides_what_it_says() -> None:
    (record,) = read(b"message_id,metadata\nA,secret\n")
    assert isinstance(record, MetadataUpdate)
    assert "secret" not in repr(record)


def test_a_digest_tells_records_apart() -> None:
    rows = [b"A,bc,", b"Ab,c,", b"A,bc,DISPATCH_SOURCE", b"A,b/c/,", b"a/b,one,"]
    digests = [item.digest for item in read(HEADER + b"\n".join([*rows, rows[0]]))]
    assert len(set(digests)) == len(rows)
    assert digests[0] == digests[-1]
    assert all(len(digest) == 16 for digest in digests)


def test_a_digest_is_that_of_what_is_said_and_not_of_how_it_is_written() -> None:
    (quoted,) = read(b'message_id,metadata\n"A","one"\n')
    (plain,) = read(b'{"metadata": "one", "message_id": "A"}', JSONL)
    assert quoted.digest == plain.digest


@pytest.mark.parametrize("data", [b"message_id,metadata\nA,one\n", b"message_id,metadata\nB\n"])
def test_a_readers_fingerprint_is_its_first_records(data: bytes) -> None:
    first = RecordReader(io.BytesIO(data), Layout()).fingerprint
    assert first == RecordReader(io.BytesIO(data + b"C,three\n"), Layout()).fingerprint
    assert first != RecordReader(io.BytesIO(b"message_id,metadata\nD,four\n"), Layout()).fingerprint


def test_an_input_without_records_has_a_fingerprint_too() -> None:
    assert (
        RecordReader(io.BytesIO(b"message_id,metadata\n"), Layout()).fingerprint == "first-record:"
    )


def test_what_a_job_changes_of_a_listed_message_does_not_make_it_another_input() -> None:
    """The list of messages that is piped in anew after a crash has the metadata that the job has
    set.
    """
    layout = Layout(merge=True, constant='{"tag": "x"}')
    before, after = (
        RecordReader(io.BytesIO(b'{"id": "A", "metadata": "%s"}\n' % metadata), layout)
        for metadata in (b"{}", b'{\\"tag\\":\\"x\\"}')
    )
    assert before.fingerprint == after.fingerprint
    assert [item.digest for item in before] == [item.digest for item in after]


# A merge


def merged(line: bytes, layout: Layout, metadata: str | None) -> object:
    """What becomes of a message's metadata by the one record of this input."""
    (record,) = read(line, layout)
    assert isinstance(record, MergeRecord)
    return record.changed(ConversationMessage(id="A", metadata=metadata))


@pytest.mark.parametrize(
    ("metadata", "result"),
    [
        (None, '{"tag":"x"}'),
        ("", '{"tag":"x"}'),
        ('{"a": 1}', '{"a":1,"tag":"x"}'),
        ('{"tag": 1}', '{"tag":"x"}'),
        ('{"tag": "x", "a": [1, true]}', None),
        ('{ "tag":"x" }', None),
    ],
)
def test_a_change_is_merged_unless_it_changes_nothing(
    metadata: str | None, result: str | None
) -> None:
    change = b'{"message_id": "A", "metadata": "{\\"tag\\": \\"x\\", \\"gone\\": null}"}'
    assert merged(change, Layout("jsonl", merge=True), metadata) == result
    plain = b'{"message_id": "A", "metadata": {"tag": "x"}}'
    assert merged(plain, Layout("jsonl", merge=True), metadata) == result
    assert merged(b"id\nA\n", Layout(merge=True, constant='{"tag": "x"}'), metadata) == result


@pytest.mark.parametrize("metadata", ["no JSON", "[1]", '{"a": NaN}', '{"a": "%s"}' % ("x" * 1010)])
def test_a_change_that_cannot_be_merged_says_so(metadata: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"metadata must be "):
        merged(b"id\nA\n", Layout(merge=True, constant='{"tag": "x"}'), metadata)


@pytest.mark.parametrize("metadata", ["[1]", "1", '"{}"', "text", ""])
def test_only_an_object_can_be_merged(metadata: str) -> None:
    line = json.dumps({"message_id": "A", "metadata": metadata}).encode()
    (bad,) = read(line, Layout(merge=True))
    assert isinstance(bad, BadLine)
    assert bad.reason == "metadata must be a JSON object to be merged"


@pytest.mark.parametrize("beginning", [b"\x1f\x8b\x08", b"PK\x03\x04", b"\xff\xfe{", b"\xfe\xff"])
@pytest.mark.parametrize("layout", [CSV, JSONL, Layout()])
def test_what_is_no_text_is_refused_whatever_it_is_said_to_be(
    beginning: bytes, layout: Layout
) -> None:
    with pytest.raises(InputError, match="neither CSV nor JSON Lines: it is"):
        read(beginning, layout)


def test_lines_that_end_in_cr_alone_are_told_in_a_users_words() -> None:
    with pytest.raises(InputError, match="a line ends in CR alone"):
        read(b"message_id,metadata\rA,one\r", CSV)


@hypothesis.given(st.binary(max_size=200), st.sampled_from([CSV, JSONL]))
def test_whatever_comes_is_records_and_bad_lines(data: bytes, layout: Layout) -> None:
    # What begins like a file that is no text would be refused as a whole.
    data = HEADER + data if layout is CSV else b"{}\n" + data
    found: list[Record | BadLine] = []
    try:
        found.extend(RecordReader(io.BytesIO(data), layout))
    except InputError as error:
        assert error.reason is InputReason.NO_END
        assert b'"' in data
    for number, item in enumerate(found, 1):
        assert item.number == number
        assert item.raw in data


# A source


def test_a_gzipped_file_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv.gz"
    path.write_bytes(gzip.compress(HEADER + b"A,one,\n"))
    with Source(path, Layout()).open() as reader:
        assert [item.number for item in reader] == [1]


def test_a_gzipped_file_that_is_cut_short_says_where(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv.gz"
    whole = gzip.compress(HEADER + b"".join(b"A,%d,\n" % (number**5) for number in range(100_000)))
    path.write_bytes(whole[: len(whole) // 2])
    source = Source(path, Layout())
    with (
        source.open() as reader,
        pytest.raises(InputError, match=r"gz, line \d+: cannot be unpacked, as"),
    ):
        list(reader)


def test_a_file_that_is_no_gzip_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv.gz"
    path.write_bytes(HEADER)
    with pytest.raises(
        InputError, match="gz, line 1: cannot be unpacked, as its name asks for: Not a gzip"
    ):
        read_source(path)


def test_a_disk_that_gives_no_answer_is_told_with_the_line() -> None:
    class Broken(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(
        InputError, match=r"the input, line 1: cannot be read: .*Input/output error"
    ):
        RecordReader(Broken(), Layout())


def read_source(path: Path | None) -> list[Record | BadLine]:
    with Source(path, Layout()).open() as reader:
        return list(reader)


def test_an_error_names_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ids.csv"
    path.write_bytes(b"id\n")
    with pytest.raises(InputError, match=rf"^{path}, line 1: the header has no column"):
        read_source(path)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match=r"^standard input is closed$"):
        read_source(None)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = Source(tmp_path / "none.csv", Layout())
    for what in (source.status, source.fingerprint):
        with pytest.raises(InputError, match=r"none\.csv: No such file or directory"):
            what()
    with pytest.raises(InputError, match=r"none\.csv: No such file or directory"), source.open():
        pass


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        with (
            pytest.raises(InputError, match="No such device or address"),
            Source(path, Layout()).open(),
        ):
            pass


def test_a_files_fingerprint_is_its_contents(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for path, data in ((one, b"x"), (same, b"x"), (other, b"y")):
        path.write_bytes(data)
    assert (
        Source(one, CSV).fingerprint()
        == Source(same, CSV).fingerprint()
        != Source(other, CSV).fingerprint()
    )


def test_standard_input_is_a_pipe_and_a_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv"
    path.touch()
    assert Source(None, CSV).is_pipe
    assert Source(None, CSV).name == "-"
    assert not Source(path, CSV).is_pipe


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (("../other", "x"), "message_id must be"),
        (("01", "x" * 1025), "metadata must be at most 1,024 characters"),
        (("01", None), "metadata must be a str"),
        (("01", "x", "ELSEWHERE"), "messages_source must be one of"),
    ],
)
def test_a_record_is_checked_when_it_is_made(values: tuple[str, str], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        Record(*values, number=1, line=2, raw=b"")


@pytest.mark.parametrize("source", [None, "dispatch_source"])
def test_a_record_makes_the_requests_of_its_values(source: str | None) -> None:
    origin, path = "https://eu.conversation.api.sinch.com", "/v1/projects/p/messages/"
    record = Record("01", "näive", source, number=1, line=2, raw=b"")
    made = (
        (record.update(origin, path), UpdateMetadata.of(origin, path, "01", "näive", source)),
        (record.read(origin, path), GetMessage.of(origin, path, "01", source)),
    )
    for operation, same in made:
        assert operation.request.url == same.request.url
        assert operation.request.body == same.request.body
        assert operation.request.method == same.request.method
        assert operation.request.message_id == same.request.message_id
