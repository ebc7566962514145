"""The journal: what its lines say, what follows from them, and what the file survives."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import stat
from typing import TYPE_CHECKING, Any

import attrs
import hypothesis
import pytest
from hypothesis import strategies as st

from sinch_conv_async._job import journal as _journal
from sinch_conv_async._job.journal import (
    Header,
    Journal,
    JournalError,
    JournalReason,
    decode,
    encode,
    look,
    may_be_cut_header,
    moment,
    read_header,
    write_header,
)
from sinch_conv_async._job.ledger import Entry, Ledger, Outcome
from sinch_conv_async._job.states import MAX_GAP, States

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER = Header(
    project_id="project",
    origin="https://us.conversation.api.sinch.com",
    input="ids.csv",
    fingerprint="sha256:0",
    layout={"format": "csv", "delimiter": ","},
)
UPDATED, FAILED, INVALID, SUPERSEDED, UNCHANGED = Outcome


def line(record: int, outcome: Outcome, message_id: str | None = None, **more: Any) -> Entry:
    return Entry(record=record, outcome=outcome, message_id=message_id, **more)


# Lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            line(7, UPDATED, "A", line=9, digest="0123456789abcdef", attempts=1),
            '{"record": 7, "outcome": "updated", "line": 9, "message_id": "A", "digest": "0123456789abcdef", "attempts": 1}',
        ),
        (
            line(
                8,
                FAILED,
                "B",
                attempts=2,
                error="NotFoundError",
                http_status=404,
                status="NOT_FOUND",
                request_id="r",
            ),
            '{"record": 8, "outcome": "failed", "message_id": "B", "attempts": 2, "error": "NotFoundError", '
            '"http_status": 404, "status": "NOT_FOUND", "request_id": "r"}',
        ),
        (
            line(9, INVALID, line=10, reason="not JSON"),
            '{"record": 9, "outcome": "invalid", "line": 10, "reason": "not JSON"}',
        ),
        (
            line(1, SUPERSEDED, "B", by=8),
            '{"record": 1, "outcome": "superseded", "message_id": "B", "by": 8}',
        ),
    ],
)
def test_a_line_is_one_json_object(value: Entry, text: str) -> None:
    assert encode(value) == text.encode() + b"\n"
    assert decode(text.encode()) == value


def test_a_field_that_a_later_version_adds_is_passed_over() -> None:
    assert decode(b'{"record": 1, "outcome": "updated", "at": "2026-11-22"}') == line(1, UPDATED)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0\0\0",
        b"[]",
        b"{}",
        b'{"record": 1}',
        b'{"record": 1, "outcome": "done"}',
        b'{"record": 1, "outcome": ["updated"]}',
        b'{"record": "1", "outcome": "updated"}',
        b'{"record": true, "outcome": "updated"}',
        b'{"record": 0, "outcome": "updated"}',
        b'{"record": 4294967296, "outcome": "updated"}',
        b'{"record": 1, "outcome": "updated", "message_id": 1}',
        b'{"record": 1, "outcome": "updated", "attempts": "1"}',
    ],
)
def test_what_is_no_line_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        decode(text)


@hypothesis.given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda x: json.dumps(x).encode()
    )
)
def test_whatever_a_line_holds_it_is_a_line_or_a_valueerror(text: bytes) -> None:
    for read in (decode, read_header):
        with contextlib.suppress(ValueError):
            read(text)


def test_the_header_is_the_first_line() -> None:
    text = write_header(HEADER)
    known = {name: value for name, value in attrs.asdict(HEADER).items() if value is not None}
    assert json.loads(text) == {"journal": "sinch-conv bulk", "version": 1, **known}
    assert text.endswith(b"}\n")
    assert read_header(text) == HEADER


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "its format has version 2, and this program writes version 1"),
        ({"project_id": None}, "its header lacks a field"),
        ({"fingerprint": 5}, "its header lacks a field"),
        ({"layout": "csv"}, "its header lacks a field"),
        ({"origin": None}, "its header lacks a field"),
        ({"size": "1000"}, "its header has a field of another type"),
    ],
)
def test_a_header_of_another_kind_is_refused(changes: dict[str, Any], reason: str) -> None:
    fields = {**json.loads(write_header(HEADER)), **changes}
    with pytest.raises(ValueError, match=reason):
        read_header(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"project_id": "other"}, "belongs to project project, this job to other"),
        (
            {"origin": "http://127.0.0.1:8080"},
            "a job that sent to https://us.conversation.api.sinch.com; this one sends to http://127.0.0.1:8080",
        ),
        (
            {"fingerprint": "sha256:1"},
            r"belongs to another input \(ids.csv\), or this one has changed since",
        ),
        ({"layout": {"format": "csv", "delimiter": ";"}}, "was begun with delimiter ',', not ';'$"),
        (
            {"layout": {"format": "csv", "delimiter": ",", "encoding": "cp1252"}},
            "was begun with encoding 'utf-8', not 'cp1252'$",
        ),
        (
            {"layout": {"format": "csv", "delimiter": ",", "change": "merge"}},
            "with change none, not 'merge'$",
        ),
    ],
)
def test_another_jobs_header_says_what_differs(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(JournalError, match=reason):
        attrs.evolve(HEADER, **changes).check(HEADER, tmp_path)


def test_a_header_says_what_changed_of_an_input(tmp_path: Path) -> None:
    night = attrs.evolve(HEADER, size=1000, modified=moment(0))
    next_night = attrs.evolve(night, fingerprint="sha256:1", size=2000, modified=moment(86_400))
    with pytest.raises(JournalError) as refused:
        next_night.check(night, tmp_path / "j")
    assert refused.value.reason is JournalReason.OTHER_INPUT
    assert str(refused.value) == (
        f"{tmp_path}/j belongs to another content of ids.csv: "
        "then 1,000 bytes, written 1970-01-01 00:00:00+00:00; "
        "now 2,000 bytes, written 1970-01-02 00:00:00+00:00"
    )
    with pytest.raises(
        JournalError,
        match=r"belongs to another input, ids.csv \(1,000 bytes, .*\); this job's is b",
    ):
        attrs.evolve(next_night, input="b").check(night, tmp_path / "j")


def test_an_input_may_be_renamed(tmp_path: Path) -> None:
    attrs.evolve(HEADER, input="moved.csv").check(HEADER, tmp_path)


def test_a_header_may_be_cut_anywhere() -> None:
    text = write_header(HEADER)
    assert all(may_be_cut_header(text[:length]) for length in range(len(text)))
    assert not may_be_cut_header(b"message_id,metadata")


# The file


def seen(path: Path, header: Header | None) -> States:
    """How the records stand by a journal that is only looked at."""
    states = States()
    look(path, header, states)
    return states


def opened(path: Path, header: Header = HEADER, **options: Any) -> tuple[Journal, States]:
    journal = Journal.open(path, **options)
    try:
        journal.load(header, States())
        return journal, journal.states
    except JournalError:
        journal.close()
        raise


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.mark.parametrize("fsync", [False, True])
def test_lines_are_there_as_soon_as_they_are_written(path: Path, *, fsync: bool) -> None:
    journal, states = opened(path, fsync=fsync)
    with journal:
        assert states.last == 0
        journal.append([line(1, FAILED, "A"), line(2, UPDATED, "B")])
        assert path.read_bytes() == write_header(HEADER) + encode(line(1, FAILED, "A")) + encode(
            line(2, UPDATED, "B")
        )
    journal.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_next_run_goes_on_at_the_end(path: Path) -> None:
    for record in (1, 2, 3):
        journal, states = opened(path)
        with journal:
            assert states.last == record - 1
            journal.append([line(record, UPDATED, "A")])
            assert journal.cut == 0
    assert seen(path, HEADER).counts[UPDATED] == 3


def test_a_torn_last_line_is_cut_off_wherever_it_tore(path: Path) -> None:
    whole = write_header(HEADER) + encode(line(1, UPDATED, "A"))
    torn = encode(line(2, UPDATED, "B"))
    for length in range(1, len(torn)):
        path.write_bytes(whole + torn[:length])
        assert seen(path, HEADER).last == 1
        journal, states = opened(path)
        with journal:
            assert (states.last, journal.cut) == (1, length)
            journal.append([line(2, UPDATED, "B")])
        assert path.read_bytes() == whole + torn


def test_a_torn_header_begins_anew(path: Path) -> None:
    text = write_header(HEADER)
    for length in range(len(text)):
        path.write_bytes(text[:length])
        journal, states = opened(path)
        journal.close()
        assert states.last == 0
        assert path.read_bytes() == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"message_id,metadata", "is not the journal of a bulk job"),
        (b"message_id,metadata\nA,one\n", "cannot be used: it is not the journal of a bulk job"),
        (b'{"message_id": "A", "metadata": "one"}\n', "cannot be used: it is not the journal"),
        (b'{"journal": "sinch-conv bulk", }\n', "cannot be used"),
        (write_header(HEADER) + b"\0" * 9 + b"\n", "line 2 of .* is no line of a journal"),
        (write_header(HEADER) + b"x" * 100_000, "line 2 of .* is longer than any of a journal"),
        (
            write_header(HEADER) + b"\0" * 100_000 + b"{",
            "line 2 of .* is longer than any of a journal",
        ),
        (b"\0" * 100_000, "is not the journal of a bulk job"),
        (write_header(HEADER)[:30] + b" " * 100_000, "is not the journal of a bulk job"),
        (write_header(attrs.evolve(HEADER, project_id="other")), "belongs to project other"),
        (
            write_header(attrs.evolve(HEADER, origin="http://[::1]")),
            r"a job that sent to http://\[::1\]",
        ),
        (
            write_header(HEADER) + encode(line(MAX_GAP + 1, UPDATED)),
            "line 2 of .* is no line of a journal: record 1,000,001 cannot follow record 0",
        ),
        (write_header(HEADER) + encode(line(2**32 - 1, UPDATED)), "cannot follow record 0"),
    ],
)
def test_what_is_not_this_jobs_journal_is_refused_and_left_as_it_was(
    path: Path, data: bytes, reason: str
) -> None:
    path.write_bytes(data)
    with pytest.raises(JournalError, match=reason):
        opened(path)
    with pytest.raises(JournalError, match=reason):
        seen(path, HEADER)
    assert path.read_bytes() == data


def test_a_journal_without_any_outcome_begins_anew_with_an_input_that_was_mended(
    path: Path,
) -> None:
    path.write_bytes(write_header(attrs.evolve(HEADER, fingerprint="sha256:before")))
    journal, states = opened(path)
    journal.close()
    assert (states.last, journal.cut) == (0, 0)
    assert path.read_bytes() == write_header(HEADER)
    path.write_bytes(
        write_header(attrs.evolve(HEADER, fingerprint="sha256:before")) + b'{"record": 1'
    )
    with pytest.raises(JournalError, match="belongs to another input"):
        opened(path)


def test_a_place_that_cannot_be_looked_at_is_said(path: Path) -> None:
    path.touch()
    with pytest.raises(JournalError, match="cannot be read: Not a directory"):
        seen(path / "deeper", HEADER)


def test_a_fifo_is_no_journal_to_look_at(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(JournalError, match="is not a plain file"):
        seen(path, HEADER)


@pytest.mark.parametrize("length", [1, 4096, 65_536, 200_000])
def test_nuls_that_a_power_loss_left_at_the_end_are_cut_off(path: Path, length: int) -> None:
    whole = write_header(HEADER) + encode(line(1, Outcome.UPDATED, "A"))
    path.write_bytes(whole + b"\0" * length)
    journal, states = opened(path)
    journal.close()
    assert (states.last, journal.cut) == (1, length)
    assert path.read_bytes() == whole


def test_a_look_needs_no_header_and_no_journal(path: Path) -> None:
    assert seen(path, None).last == 0
    path.write_bytes(write_header(HEADER) + encode(line(5, UPDATED, "A")))
    assert seen(path, None).last == 5


async def test_as_a_ledger_it_writes_what_an_update_supersedes_before_the_update(
    path: Path,
) -> None:
    journal, _ = opened(path)
    ledger: Ledger = journal
    with journal:
        for entry in (
            line(1, FAILED, "A"),
            line(2, FAILED, "A"),
            line(3, INVALID),
            line(4, UPDATED, "A"),
        ):
            await ledger.write(entry)
        assert [ledger.state(record) for record in range(6)] == [
            None, SUPERSEDED, SUPERSEDED, INVALID, UPDATED, None,
        ]  # fmt: skip
        assert ledger.last == 4
        assert ledger.counts == {UPDATED: 1, FAILED: 0, INVALID: 1, SUPERSEDED: 2, UNCHANGED: 0}
    assert [decode(text) for text in path.read_bytes().splitlines()[3:]] == [
        line(3, INVALID),
        line(1, SUPERSEDED, "A", by=4),
        line(2, SUPERSEDED, "A", by=4),
        line(4, UPDATED, "A"),
    ]
    assert seen(path, HEADER).counts == ledger.counts


def test_a_second_job_is_kept_out(path: Path) -> None:
    with (
        Journal.open(path),
        pytest.raises(JournalError, match="is in use: another job works with it"),
    ):
        Journal.open(path)
    Journal.open(path).close()


def test_a_look_may_be_taken_while_a_job_works(path: Path) -> None:
    journal, _ = opened(path)
    with journal:
        journal.append([line(1, UPDATED, "A")])
        assert seen(path, HEADER).last == 1


def test_a_place_that_cannot_hold_a_journal_is_refused(path: Path) -> None:
    with pytest.raises(JournalError, match="No such file or directory"):
        Journal.open(path / "deeper")
    with pytest.raises(JournalError, match="Is a directory"):
        Journal.open(path.parent)
    with pytest.raises(JournalError, match="is not a plain file"):
        seen(path.parent, None)
    os.mkfifo(path)
    with pytest.raises(JournalError, match="is not a plain file"):
        Journal.open(path)


def test_a_file_system_without_locks_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(_journal.fcntl, "flock", flock)
    with pytest.raises(JournalError, match="cannot be locked: No locks available"):
        Journal.open(path)


def test_a_system_without_locks_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_journal, "fcntl", None)
    with pytest.raises(JournalError, match="only POSIX systems"):
        Journal.open(path)


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files may not grow beyond this: the system writes what fits, and refuses the rest. (Python
    ignores the signal.)
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_noticed_and_leaves_whole_lines(path: Path) -> None:
    journal, _ = opened(path)
    with journal:
        journal.append([line(1, UPDATED, "A")])
        before = path.read_bytes()
        with (
            room_for(len(before) + 10),
            pytest.raises(JournalError, match="cannot be written: File too large"),
        ):
            journal.append([line(2, UPDATED, "B")])
        assert path.read_bytes() == before


def test_after_a_write_that_failed_nothing_is_written_any_more(path: Path) -> None:
    """With room again, a line would come to stand behind a hole, and the next run would refuse the
    journal.
    """
    journal, _ = opened(path)
    with journal:
        journal.append([line(1, UPDATED, "A")])
        before = path.read_bytes()
        with room_for(len(before) + 10), pytest.raises(JournalError):
            journal.append([line(2, UPDATED, "B")])
        with pytest.raises(JournalError, match="cannot be written: File too large"):
            journal.append([line(3, UPDATED, "C")])
    assert path.read_bytes() == before
    journal, states = opened(path)
    with journal:
        assert states.last == 1
        journal.append([line(2, UPDATED, "B")])
    assert seen(path, HEADER).counts[UPDATED] == 2


def test_a_journal_that_comes_back_is_not_written_to_again(path: Path) -> None:
    journal, _ = opened(path)
    with journal:
        aside = path.rename(path.with_name("aside"))
        with pytest.raises(JournalError, match="was removed"):
            journal.append([line(1, UPDATED, "A")])
        aside.rename(path)
        with pytest.raises(JournalError, match="was removed"):
            journal.append([line(2, UPDATED, "B")])
    assert seen(path, HEADER).last == 0


def failing(*arguments: Any) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_part_that_cannot_be_taken_back_is_cut_off_by_the_next_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = opened(path)
    with journal:
        journal.append([line(1, UPDATED, "A")])
        size = path.stat().st_size
        with monkeypatch.context() as patched, room_for(size + 10):
            patched.setattr(os, "ftruncate", failing)
            with pytest.raises(JournalError, match="cannot be written: File too large"):
                journal.append([line(2, UPDATED, "B")])
    assert path.stat().st_size == size + 10
    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", failing)
        with pytest.raises(JournalError, match="cannot be read: Input/output error"):
            opened(path)
    journal, states = opened(path)
    journal.close()
    assert (states.last, journal.cut, path.stat().st_size) == (1, 10, size)


def test_a_folder_that_cannot_be_brought_to_the_disk_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_disk = os.fsync

    def fsync(descriptor: int) -> None:
        failing() if stat.S_ISDIR(os.fstat(descriptor).st_mode) else to_disk(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        JournalError, match="its folder cannot be brought to the disk: Input/output error"
    ):
        opened(path, fsync=True)


def test_a_write_that_takes_only_a_part_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = opened(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    with journal:
        journal.append([line(1, UPDATED, "A"), line(2, UPDATED, "B")])
    assert seen(path, HEADER).counts[UPDATED] == 2


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (lambda path: path.unlink(), "was removed while the job was running"),
        (
            lambda path: (
                path.with_name("copy").write_bytes(path.read_bytes())
                and path.with_name("copy").replace(path)
            ),
            "was replaced by another file",
        ),
        (lambda path: path.write_bytes(b""), "was changed by somebody else"),
        (lambda path: path.open("ab").write(b"x"), "was changed by somebody else"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # the last two leave theirs to the collector
def test_what_happens_to_the_file_meanwhile_is_noticed(
    path: Path, happens: Any, reason: str
) -> None:
    journal, _ = opened(path)
    with journal:
        journal.append([line(1, UPDATED, "A")])
        happens(path)
        with pytest.raises(JournalError, match=reason):
            journal.append([line(2, UPDATED, "B")])
