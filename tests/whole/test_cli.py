"""The command line, run as a person or a scheduler runs it: against a sandbox in
another process.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from sinch_conv_async import MessagesSource, Region, __main__, cli
from sinch_conv_async._job import local as _local
from sinch_conv_async.cli import bulk as _bulk
from sinch_conv_async.sandbox import Sandbox
from tests.commands import (
    COMMAND,
    SECRET_METADATA,
    Ended,
    Running,
    csv,
    environment_of,
    sinch_conv,
    unmeasured,
)

if TYPE_CHECKING:
    pass

ID = "01FC66621XXXXX119Z8PMV1QPA"


Here = Callable[..., Ended]


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    """The command in this process, for what ends before anything is sent: a process of its own
    takes half a second to start.
    """
    monkeypatch.chdir(tmp_path)
    for name in (
        "PROJECT_ID",
        "KEY_ID",
        "KEY_SECRET",
        "CONVERSATION_REGION",
        "CONVERSATION_ORIGIN",
        "AUTH_ORIGIN",
    ):
        monkeypatch.delenv(f"SINCH_{name}", raising=False)

    def run(*arguments: str | Path, **env: str) -> Ended:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


def journal_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


# update


async def test_update_prints_the_message_as_json(sandbox: Sandbox, tmp_path: Path) -> None:
    ended = await sinch_conv(
        "update",
        ID,
        "new",
        "--messages-source",
        "DISPATCH_SOURCE",
        folder=tmp_path,
        sandbox=sandbox,
    )
    assert (ended.code, ended.err) == (0, "")
    assert (ended.json["id"], ended.json["metadata"]) == (ID, "new")
    assert sandbox.requests[0].messages_source == "DISPATCH_SOURCE"


async def test_update_of_what_is_not_there_says_so(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        ended = await sinch_conv("update", ID, "new", folder=tmp_path, sandbox=sandbox)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("Error: NotFoundError: 404 NOT_FOUND")


async def test_update_refuses_an_id_that_is_none(sandbox: Sandbox, tmp_path: Path) -> None:
    ended = await sinch_conv("update", "../x", "new", folder=tmp_path, sandbox=sandbox)
    assert (ended.code, ended.out) == (2, "")
    assert "message_id must be" in ended.err
    assert not sandbox.requests


async def test_update_with_a_wrong_key_ends_with_3(sandbox: Sandbox, tmp_path: Path) -> None:
    ended = await sinch_conv(
        "update", ID, "new", folder=tmp_path, sandbox=sandbox, env={"SINCH_KEY_SECRET": "wrong"}
    )
    assert ended.code == 3
    assert ended.err.startswith("Error: TokenError: ")
    assert ended.err.count("\n") == 1  # once, and not by way of the log too
    sandbox.refuse_tokens()
    ended = await sinch_conv("update", ID, "new", folder=tmp_path, sandbox=sandbox)
    assert ended.code == 3
    assert "AuthenticationError" in ended.err


async def test_update_is_interrupted_with_130(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.hold()
    async with Running(["update", ID, "new"], environment_of(sandbox), tmp_path) as command:
        await sandbox.wait_for_requests(1)
        command.send(signal.SIGINT)
        ended = await command.ends()
    assert (ended.code, ended.out, ended.err.strip()) == (130, "", "Interrupted.")


async def test_options_say_where_to_and_as_whom(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_project("other", key_id="other-key", key_secret="other-secret")
    options = [
        "--conversation-origin",
        sandbox.origin,
        "--auth-origin",
        sandbox.origin,
        "--project-id",
        "other",
    ]
    keys = {"SINCH_KEY_ID": "other-key", "SINCH_KEY_SECRET": "other-secret"}
    ended = await sinch_conv(
        "update",
        ID,
        "new",
        *options,
        "--auth",
        "basic",
        "--region",
        "us",
        "--timeout",
        "30",
        folder=tmp_path,
        env=keys,
    )
    assert ended.code == 0, ended.err
    assert sandbox.requests[0].project_id == "other"
    assert not sandbox.token_requests


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--conversation-origin", "http://example.com"], "it must be https"),
        (["--auth-origin", "nonsense"], "it must be an origin"),
        (["--region", "mars"], "'mars' is not one of"),
        (["--timeout", "0"], "0.0 is not in the range"),
        (["--key-secret", "s3cret"], "No such option"),
    ],
)
def test_a_bad_option_is_a_usage_error(arguments: list[str], words: str, here: Here) -> None:
    ended = here("update", ID, "new", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err


def test_columns_of_one_name_are_a_usage_error(tmp_path: Path, here: Here) -> None:
    ended = here("bulk", csv(tmp_path), "--metadata-column", "message_id")
    assert ended.code == 2
    assert "must name different columns" in ended.err


def test_missing_credentials_are_named(here: Here) -> None:
    ended = here("update", ID, "new")
    assert ended.code == 3
    assert (
        "SINCH_PROJECT_ID, SINCH_KEY_ID, SINCH_KEY_SECRET, SINCH_CONVERSATION_REGION" in ended.err
    )


# Files that may be open


@pytest.mark.parametrize(
    ("limits", "wanted", "raised", "warning"),
    [
        ((1024, 4096), 288, None, ""),
        ((256, 4096), 288, (288, 4096), ""),
        ((256, resource.RLIM_INFINITY), 288, (288, resource.RLIM_INFINITY), ""),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 288, None, ""),
        (
            (100, 200),
            288,
            (200, 200),
            "may open 200 files only, and needs 288; --concurrency 168 would",
        ),
        ((16, 16), 288, None, "--concurrency 1 would"),
    ],
)
def test_a_job_lets_itself_open_as_many_files_as_it_may_have_connections(
    limits: tuple[int, int],
    wanted: int,
    raised: tuple[int, int] | None,
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, values: set_to.append(values))
    _bulk._allow_files(wanted)
    assert set_to == ([] if raised is None else [raised])
    said = capsys.readouterr().err
    assert warning in said
    assert bool(said) == bool(warning)


def test_a_system_without_such_limits_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_bulk, "resource", None)
    _bulk._allow_files(10**9)
    assert capsys.readouterr().err == ""


@pytest.mark.needs_program("prlimit")
async def test_a_job_with_fewer_files_than_connections_loses_nothing(tmp_path: Path) -> None:
    async with Sandbox(auto_create=True, latency=0.1) as sandbox:
        few = ("prlimit", "--nofile=64:64", *COMMAND)
        async with Running(
            ("bulk", csv(tmp_path, 400)), environment_of(sandbox), tmp_path, few
        ) as command:
            ended = await command.ends()
    assert "may open 64 files only" in ended.err
    assert ended.code == 0
    assert ended.out.startswith("updated                  400  of 400")


# Credentials from a file


async def test_credentials_come_from_a_file(sandbox: Sandbox, tmp_path: Path) -> None:
    options = sandbox.client_options()
    path = tmp_path / "credentials"
    path.write_text(
        f"# ours\n\nexport SINCH_PROJECT_ID={options['project_id']}\nSINCH_KEY_ID = '{options['key_id']}'\n"
        f'SINCH_KEY_SECRET="{options["key_secret"]}"\nOTHER=x\nSINCH_CONVERSATION_REGION=\n'
        f"SINCH_CONVERSATION_ORIGIN={sandbox.origin}\nSINCH_AUTH_ORIGIN={sandbox.origin}\n"
    )
    path.chmod(0o600)
    wrong = {"SINCH_KEY_SECRET": "wrong"}  # what the file says wins
    ended = await sinch_conv("update", ID, "new", "--credentials", path, folder=tmp_path, env=wrong)
    assert (ended.code, ended.err) == (0, "")
    path.chmod(0o644)
    ended = await sinch_conv("update", ID, "new", "--credentials", path, folder=tmp_path)
    assert ended.code == 0
    assert ended.err.startswith("Warning: others can read")
    assert options["key_secret"] not in ended.err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "No such file"),
        (b"directory", "Is a directory"),
        (b"\xff", "not UTF-8"),
        (b"SINCH_KEY_ID=x\nsecret-on-a-line-of-its-own\n", "line 2: not NAME=value"),
        (
            b"SINCH_KEY_ID=x\nSINCH_KEY_SECERT=y\n",
            "not set in the environment: SINCH_PROJECT_ID, SINCH_KEY_SECRET, SINCH_CONVERSATION_REGION (credentials were read from",
        ),
    ],
)
def test_a_bad_file_of_credentials_ends_with_3_and_is_not_quoted(
    data: bytes | None, words: str, tmp_path: Path, here: Here
) -> None:
    path = tmp_path / "credentials"
    if data == b"directory":
        path.mkdir()
    elif data is not None:
        path.write_bytes(data)
        path.chmod(0o600)
    ended = here("bulk", csv(tmp_path), "--credentials", path)
    assert ended.code == 3
    assert words in ended.err
    assert "secret-on" not in ended.err


def test_a_file_of_credentials_that_others_can_read_is_told_once(
    tmp_path: Path, here: Here
) -> None:
    path = tmp_path / "credentials"
    path.write_text(
        "SINCH_PROJECT_ID=p\nSINCH_KEY_ID=k\nSINCH_KEY_SECRET=s\nSINCH_CONVERSATION_REGION=us\n"
    )
    path.chmod(0o644)
    (tmp_path / "ids.csv").write_text("message_id,metadata\n")
    ended = here("bulk", "ids.csv", "--credentials", path)
    assert ended.code == 0
    assert ended.err.count("others can read") == 1


# bulk


async def test_bulk_updates_all_and_says_so(sandbox: Sandbox, tmp_path: Path) -> None:
    ended = await sinch_conv("bulk", csv(tmp_path), folder=tmp_path, sandbox=sandbox)
    assert (ended.code, ended.err) == (0, "")
    first, second, *_, last = ended.out.splitlines()
    assert first.split() == ["updated", "20", "of", "20"]
    assert second.split() == ["failed", "0"]
    assert last.split() == ["journal", str(tmp_path / "ids.csv.journal.jsonl")]
    assert {name: message.metadata for name, message in sandbox.messages.items()} == {
        f"ID{row}": f"{SECRET_METADATA}-{row}" for row in range(1, 21)
    }
    lines = journal_of(tmp_path / "ids.csv.journal.jsonl")
    assert sorted(line["record"] for line in lines) == list(range(1, 21))
    assert {
        (line["line"] - line["record"], line["outcome"], line["attempts"]) for line in lines
    } == {(1, "updated", 1)}


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("ids.tsv", b"message_id\tmetadata\nA\tm\n", []),
        ("ids.csv.gz", gzip.compress(b"message_id,metadata\nA,m\n", mtime=0), []),
        ("ids.jsonl", b'{"message_id": "A", "metadata": "m"}\n', []),
        ("ids.ndjson.gz", gzip.compress(b'{"message_id": "A", "metadata": "m"}\n', mtime=0), []),
        ("ids", b'{"message_id": "A", "metadata": "m"}\n', []),
        (
            "ids.txt",
            b"id|note\nA|m\n",
            ["--delimiter", "|", "--id-column", "id", "--metadata-column", "note"],
        ),
        (
            "ids.txt",
            b"message_id\tmetadata\twhere\nA\tm\t\n",
            ["--delimiter", "tab", "--source-column", "where", "--format", "csv"],
        ),
    ],
)
async def test_bulk_reads_what_it_is_given(
    name: str, data: bytes, options: list[str], sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    ended = await sinch_conv("bulk", name, *options, "--fsync", folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0, ended.err
    assert sandbox.messages["A"].metadata == "m"


async def test_bulk_tries_again_what_failed_and_nothing_else(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path, failures = csv(tmp_path), tmp_path / "failed.csv"
    for row in (3, 17):
        sandbox.fail_next(404, message_id=f"ID{row}")
    ended = await sinch_conv(
        "bulk", path, "--failures", failures, "--output", "json", folder=tmp_path, sandbox=sandbox
    )
    assert ended.code == 1
    told = ended.json
    assert (
        told["records"],
        told["updated"],
        told["failed"],
        told["remaining"],
        told["exit_code"],
    ) == (
        20,
        18,
        2,
        0,
        1,
    )
    assert told["kinds"] == {"404 NotFoundError": 2}
    assert told["failures_written"] == 2
    assert (
        failures.read_text() == "message_id,metadata,_reason\n"
        f"ID3,{SECRET_METADATA}-3,404 NotFoundError NOT_FOUND\n"
        f"ID17,{SECRET_METADATA}-17,404 NotFoundError NOT_FOUND\n"
    )
    assert ended.err.splitlines() == [
        f"To try the failed records again: sinch-conv bulk {path} --failures {failures} --output json"
    ]
    sent = len(sandbox.requests)
    assert sent == 20

    ended = await sinch_conv("bulk", path, "--failures", failures, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0
    assert ended.err.startswith("Going on: 18 updated and 2 failed before")
    assert sorted(str(request.message_id) for request in sandbox.requests[sent:]) == ["ID17", "ID3"]
    assert failures.read_text() == "message_id,metadata,_reason\n"


async def test_metadata_and_secrets_are_never_shown(sandbox: Sandbox, tmp_path: Path) -> None:
    path = csv(tmp_path)
    path.write_text(
        path.read_text()
        + f"a/b,{SECRET_METADATA}\nID99,{SECRET_METADATA * 50}\nID98,{SECRET_METADATA},ELSEWHERE\n"
    )
    sandbox.fail_next(
        400, body=f'{{"error": {{"message": "{SECRET_METADATA}-1"}}}}'.encode(), times=2
    )
    ended = await sinch_conv(
        "bulk", path, "--on-bad-line", "skip", folder=tmp_path, sandbox=sandbox
    )
    assert ended.code == 1
    said = ended.out + ended.err + Path(f"{path}.journal.jsonl").read_text()
    assert SECRET_METADATA not in said
    assert sandbox.client_options()["key_secret"] not in said


async def test_a_bad_line_stops_before_anything_is_sent(sandbox: Sandbox, tmp_path: Path) -> None:
    path = csv(tmp_path, 2)
    path.write_text(path.read_text() + "only-one-field\n")
    ended = await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "line 4: 1 field, where the header has 2",
        f"Error: {path} has 1 bad line, so nothing was sent; --on-bad-line skip leaves it out",
    ]
    assert not sandbox.requests


async def test_bad_lines_are_skipped_told_and_final(sandbox: Sandbox, tmp_path: Path) -> None:
    path, failures = tmp_path / "ids.jsonl", tmp_path / "failed.jsonl.gz"
    bad = [f"nonsense {number}" for number in range(12)]
    path.write_text(
        "\n".join(
            ['{"message_id": "A", "metadata": "m"}', *bad, '{"message_id": "B", "metadata": "m"}']
        )
    )
    for updated_now in (2, 0):
        ended = await sinch_conv(
            "bulk",
            path,
            "--on-bad-line",
            "skip",
            "--failures",
            failures,
            "--output",
            "json",
            folder=tmp_path,
            sandbox=sandbox,
        )
        assert ended.code == 1
        assert (ended.json["updated"], ended.json["invalid"], ended.json["sent"]) == (
            2,
            12,
            updated_now,
        )
        assert ended.err.splitlines()[:11] == [
            *(f"line {number}: not JSON" for number in range(2, 12)),
            "and 2 more bad lines",
        ]
        assert gzip.decompress(failures.read_bytes()).decode().splitlines() == bad
    ended = await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 2
    assert "has 12 bad lines" in ended.err
    outcomes = [line["outcome"] for line in journal_of(Path(f"{path}.journal.jsonl"))]
    assert sorted(outcomes) == ["invalid"] * 12 + ["updated"] * 2


async def test_a_failed_record_that_a_later_one_updated_is_superseded(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path, failures = tmp_path / "ids.csv", tmp_path / "failed.csv"
    path.write_text("message_id,metadata\nA,first\nA,second\nB,first\n")
    sandbox.fail_next(404, message_id="A")
    sandbox.fail_next(404, message_id="B")
    ended = await sinch_conv("bulk", path, "--failures", failures, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 1
    assert next(line.split()[:2] for line in ended.out.splitlines() if "superseded" in line) == [
        "superseded",
        "1",
    ]
    assert (
        failures.read_text() == "message_id,metadata,_reason\nB,first,404 NotFoundError NOT_FOUND\n"
    )
    ended = await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0
    assert sandbox.messages["A"].metadata == "second"
    assert [request.metadata for request in sandbox.requests if request.message_id == "A"] == [
        "first",
        "second",
    ]


async def test_an_old_journal_without_the_word_supersedes_too(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """The job may have been killed between the two lines; what follows from them does not depend on
    it.
    """
    path = tmp_path / "ids.csv"
    path.write_text("message_id,metadata\nA,first\nA,second\n")
    journal = Path(f"{path}.journal.jsonl")
    sandbox.fail_next(404, message_id="A")
    assert (await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)).code == 0
    journal.write_text(
        "".join(
            line
            for line in journal.read_text().splitlines(keepends=True)
            if '"superseded"' not in line
        )
    )
    assert len(journal_of(journal)) == 2
    assert (await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)).code == 0
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize(
    ("limit", "code", "most"),
    [("2", 1, 30), ("0", 1, 20), ("1.5%", 1, 150), ("50%", 1, 200), ("100", 1, 200)],
)
async def test_too_many_failures_end_the_job(
    limit: str, code: int, most: int, sandbox: Sandbox, tmp_path: Path
) -> None:
    for row in range(1, 201, 20):
        sandbox.fail_next(404, message_id=f"ID{row}")
    path = csv(tmp_path, 200)
    ended = await sinch_conv(
        "bulk",
        path,
        "--max-failures",
        limit,
        "--concurrency",
        "5",
        folder=tmp_path,
        sandbox=sandbox,
    )
    assert ended.code == code
    stopped = f"more than {limit} of the updates failed" in ended.err
    assert stopped == (most < 200)
    assert len(sandbox.requests) <= most + 5 * (most < 200) + 200 * (limit == "2")


async def test_of_what_was_all_tried_nothing_is_said_to_be_left(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.fail_next(404, message_id="ID2")
    ended = await sinch_conv(
        "bulk", csv(tmp_path, 2), "--max-failures", "0", folder=tmp_path, sandbox=sandbox
    )
    assert ended.code == 1
    assert "the rest was not tried" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-failures", "many"], "a whole number, or a percentage"),
        (["--max-failures", "1.5"], "a whole number, or a percentage"),
        (["--max-failures", "1%%"], "a whole number, or a percentage"),
        (["--max-failures", "101%"], "more than 100%"),
        (["--delimiter", "ab"], "one character"),
        (["--delimiter", '"'], "one character"),
        (
            ["--failures", "ids.csv"],
            "--failures would overwrite ids.csv, which is the input or the journal",
        ),
        (
            ["--failures", "./j", "--journal", "j"],
            "--failures would overwrite j, which is the input or the",
        ),
        (
            ["--failures", "another-name.csv"],
            "would overwrite another-name.csv, which is the input",
        ),
        (
            ["--failures", "j", "--journal", "j.part"],
            "would overwrite j.part, which is the input or the journal",
        ),
        (["--failures", "nowhere/failed.csv"], "no file can be made in"),
        (
            ["--journal", "ids.csv"],
            "--journal names the input; name a file that does not exist yet",
        ),
        (["--journal", "another-name.csv", "--dry-run"], "--journal names the input"),
        (["--concurrency", "0"], "0 is not in the range"),
        (["--rate", "0"], "0.0 is not in the range"),
    ],
)
def test_bad_words_to_bulk_are_usage_errors(
    arguments: list[str], words: str, tmp_path: Path, here: Here
) -> None:
    path = csv(tmp_path)
    (tmp_path / "another-name.csv").hardlink_to(path)
    before = path.read_bytes()
    ended = here("bulk", "ids.csv", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in " ".join(ended.err.split())
    assert path.read_bytes() == before


async def test_input_that_cannot_be_read_ends_with_2(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("id,note\nA,m\n")
    ended = await sinch_conv("bulk", "ids.csv", folder=tmp_path, sandbox=sandbox)
    assert ended.code == 2
    assert (
        "ids.csv, line 1: the header has no column 'metadata'; it has 'id', 'note'; "
        "--metadata-column names another one" in ended.err
    )
    (tmp_path / "ids.csv").write_text("message_id;metadata\nA;m\n")
    ended = await sinch_conv("bulk", "ids.csv", folder=tmp_path, sandbox=sandbox)
    assert (ended.code, "; --delimiter ';' would find it" in ended.err) == (2, True)
    ended = await sinch_conv("bulk", "nowhere.csv", folder=tmp_path, sandbox=sandbox)
    assert (ended.code, "nowhere.csv: No such file" in ended.err) == (2, True)
    ended = await sinch_conv("bulk", tmp_path, folder=tmp_path, sandbox=sandbox)
    assert (ended.code, "is a directory" in ended.err) == (2, True)


async def test_an_input_without_records_is_all_updated_and_said_to_be_empty(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    for name, text in (("ids.csv", "message_id,metadata\n"), ("ids.jsonl", "")):
        (tmp_path / name).write_text(text)
        ended = await sinch_conv("bulk", name, folder=tmp_path, sandbox=sandbox)
        assert (ended.code, ended.err) == (0, f"{name} has no records.\n")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            "nowhere/j",
            "no journal can be written there: No such file or directory; name another place",
        ),
        (".", "no journal can be written there: Is a directory; name another place"),
        ("/dev/full", "is not a plain file; name another place"),
        ("ids.txt", "it is not the journal of a bulk job; name another with --journal"),
    ],
)
def test_a_place_that_is_none_for_a_journal_ends_with_3(
    place: str, words: str, tmp_path: Path, here: Here
) -> None:
    (tmp_path / "ids.txt").write_text("message_id,metadata\n")
    options = {"PROJECT_ID": "p", "KEY_ID": "k", "KEY_SECRET": "s", "CONVERSATION_REGION": "us"}
    known = {f"SINCH_{name}": value for name, value in options.items()}
    ended = here("bulk", csv(tmp_path), "--journal", place, **known)
    assert (ended.code, ended.out) == (3, "")
    assert words in ended.err
    assert ended.err.count("\n") == 1


async def test_another_jobs_journal_is_refused_with_3(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_project("other", key_id="other-key", key_secret="other-secret")
    path = csv(tmp_path, 3)
    assert (await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)).code == 0
    journal = Path(f"{path}.journal.jsonl")
    kept = journal.read_text()

    async def refused(words: str, *options: str, **env: str) -> None:
        before = journal.read_text()
        ended = await sinch_conv("bulk", path, *options, folder=tmp_path, sandbox=sandbox, env=env)
        assert (ended.code, ended.out) == (3, "")
        assert words in ended.err
        assert journal.read_text() == before

    other = {
        "SINCH_PROJECT_ID": "other",
        "SINCH_KEY_ID": "other-key",
        "SINCH_KEY_SECRET": "other-secret",
    }
    await refused("belongs to project sandbox-project, this job to other", **other)
    await refused(
        "was begun with messages_source 'messages_source', not 'where'", "--source-column", "where"
    )
    journal.write_text(kept.replace('"version": 1', '"version": 2', 1))
    await refused("its format has version 2")
    journal.write_text(kept)
    path.write_text(path.read_text() + "ID4,m\n")
    await refused("belongs to another content of ")
    assert len(sandbox.requests) == 3


async def test_a_journal_that_names_more_records_than_there_are_is_refused(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Somebody has edited it."""
    path = csv(tmp_path, 3)
    assert (await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)).code == 0
    journal = Path(f"{path}.journal.jsonl")
    for record, words in (
        (4, "names record 4, but the input has 3"),
        (2**32 - 1, "cannot follow record 3"),
    ):
        before = journal.read_text()
        journal.write_text(before + f'{{"record": {record}, "outcome": "updated"}}\n')
        ended = await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)
        assert ended.code == 3
        assert words in ended.err
        assert "with another --journal the job begins anew" in ended.err
        journal.write_text(before)


async def test_a_torn_last_line_is_sent_again(sandbox: Sandbox, tmp_path: Path) -> None:
    path = csv(tmp_path, 3)
    assert (
        await sinch_conv("bulk", path, "--concurrency", "1", folder=tmp_path, sandbox=sandbox)
    ).code == 0
    journal = Path(f"{path}.journal.jsonl")
    journal.write_bytes(journal.read_bytes()[:-9])
    ended = await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0
    assert "was cut short; its record is sent again" in ended.err
    assert [request.message_id for request in sandbox.requests] == ["ID1", "ID2", "ID3", "ID3"]


async def test_a_wrong_key_ends_the_job_with_3_and_loses_nothing(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path = csv(tmp_path)
    ended = await sinch_conv(
        "bulk", path, folder=tmp_path, sandbox=sandbox, env={"SINCH_KEY_SECRET": "wrong"}
    )
    assert ended.code == 3
    assert "Error: TokenError" in ended.err
    assert f"To go on: sinch-conv bulk {path}" in ended.err
    assert len(sandbox.token_requests) == 1
    assert (await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)).code == 0


async def test_an_outage_that_does_not_end_says_what_to_do(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path = csv(tmp_path, 3)
    sandbox.fail_next(503, times=10_000)
    ended = await sinch_conv(
        "bulk", path, "--max-outage", "1", "--output", "json", folder=tmp_path, sandbox=sandbox
    )
    assert ended.code == 1
    assert "The API has taken no update for" in ended.err
    assert "new job" not in ended.err
    assert ended.err.count("To go on: ") == 1
    assert ended.json["failed"] == 0
    assert ended.json["remaining"] == 3
    sandbox.clear_faults()
    assert (await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)).code == 0


async def test_a_token_endpoint_that_is_out_is_no_matter_of_credentials(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.fail_next_token(503, times=10_000)
    ended = await sinch_conv(
        "update", ID, "new", "--timeout", "1", folder=tmp_path, sandbox=sandbox
    )
    assert ended.code == 1


def test_a_large_input_is_checked_and_a_large_journal_read_with_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Here
) -> None:
    monkeypatch.setattr(_local, "TAKES_A_WHILE", 10)
    (tmp_path / "ids.csv").write_text("message_id,metadata\na/b,m\nc/d,m\n")
    nowhere = {
        "SINCH_PROJECT_ID": "p",
        "SINCH_KEY_ID": "k",
        "SINCH_KEY_SECRET": "s",
        "SINCH_CONVERSATION_REGION": "us",
    }
    ended = here("bulk", "ids.csv", **nowhere)
    assert ended.code == 2
    assert ended.err.startswith("Checking ids.csv (0 MB) before anything is sent.\nline 2: ")
    assert "has 2 bad lines, so nothing was sent" in ended.err
    for reading in (False, True):
        ended = here("bulk", "ids.csv", "--on-bad-line", "skip", **nowhere)
        assert ended.code == 1
        assert (
            "Reading what was done before in ids.csv.journal.jsonl (0 MB)." in ended.err
        ) is reading


async def test_failures_that_cannot_be_written_are_said_at_the_end(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "failed.part").mkdir()
    ended = await sinch_conv(
        "bulk", csv(tmp_path, 2), "--failures", "failed", folder=tmp_path, sandbox=sandbox
    )
    assert ended.code == 1
    assert "Error: failed could not be written: " in ended.err
    assert len(sandbox.requests) == 2


# bulk --dry-run


def test_a_dry_run_needs_no_credentials_and_says_what_would_be_done(
    tmp_path: Path, here: Here
) -> None:
    path = csv(tmp_path, 1600)
    before = sorted(tmp_path.iterdir())
    ended = here("bulk", path, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert [line.split() for line in ended.out.splitlines()] == [
        ["records", "1,600"],
        ["bad", "lines", "0"],
        ["to", "send", "1,600", "in", "about", "0:02"],
        ["Nothing", "was", "sent."],
    ]
    assert sorted(tmp_path.iterdir()) == before


async def test_a_dry_run_finds_bad_lines(tmp_path: Path, here: Here) -> None:
    (tmp_path / "ids.jsonl").write_text('{"message_id": "A", "metadata": "m"}\n[]\n')
    for options, code in (([], 2), (["--on-bad-line", "skip"], 1)):
        ended = here("bulk", "ids.jsonl", "--dry-run", "--output", "json", *options)
        assert ended.code == code
        assert ended.err == "line 2: not a JSON object with fields\n"
        assert (ended.json["records"], ended.json["invalid"], ended.json["to_send"]) == (2, 1, 1)
    given = b"message_id,metadata\nA,m\n"
    ended = await sinch_conv(
        "bulk", "-", "--dry-run", "--output", "json", folder=tmp_path, given=given
    )
    assert (ended.code, ended.json["to_send"]) == (0, 1)


async def test_a_dry_run_knows_what_the_journal_says(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "ids.csv"
    path.write_text("message_id,metadata\nA,first\nA,second\nB,first\n")
    sandbox.fail_next(404, message_id="A")
    sandbox.fail_next(404, message_id="B")
    await sinch_conv("bulk", path, folder=tmp_path, sandbox=sandbox)
    for known in (sandbox, None):
        ended = await sinch_conv(
            "bulk", path, "--dry-run", "--rate", "0.1", folder=tmp_path, sandbox=known
        )
        assert ended.code == 0
        said = [line.split()[:3] for line in ended.out.splitlines()]
        assert said[2:6] == [
            ["repeated", "1", "an"],
            ["updated", "1", "by"],
            ["superseded", "1"],
            ["to", "send", "1"],
        ]
        assert "0:10" in ended.out
    ended = await sinch_conv(
        "bulk", path, "--dry-run", folder=tmp_path, env={"SINCH_PROJECT_ID": "other"}
    )
    assert ended.code == 3


# bulk from a pipe


async def test_a_pipe_needs_a_journal(sandbox: Sandbox, tmp_path: Path) -> None:
    ended = await sinch_conv("bulk", "-", folder=tmp_path, sandbox=sandbox, given=b"")
    assert ended.code == 2
    assert "a pipe needs --journal FILE" in ended.err


async def test_a_pipe_is_updated_and_gone_on_with(sandbox: Sandbox, tmp_path: Path) -> None:
    data = csv(tmp_path, 600).read_bytes()
    arguments = ("bulk", "-", "--journal", "j", "--failures", "failed.csv", "--output", "json")
    sandbox.fail_next(404, message_id="ID2")
    ended = await sinch_conv(*arguments, folder=tmp_path, sandbox=sandbox, given=data)
    assert ended.code == 1
    assert (ended.json["updated"], ended.json["failed"], ended.json["records"]) == (599, 1, 600)
    assert (tmp_path / "failed.csv").read_text() == (
        f"message_id,metadata,_reason\nID2,{SECRET_METADATA}-2,404 NotFoundError NOT_FOUND\n"
    )
    assert (
        "To try the failed records again, with the same input: sinch-conv bulk - --journal j"
        in ended.err
    )
    ended = await sinch_conv(*arguments, folder=tmp_path, sandbox=sandbox, given=data)
    assert ended.code == 0
    assert len(sandbox.requests) == 601


async def test_a_pipe_is_sent_as_it_comes(sandbox: Sandbox, tmp_path: Path) -> None:
    async with Running(
        ["bulk", "-", "--journal", "j"], environment_of(sandbox), tmp_path
    ) as command:
        command.write(b"message_id,metadata\nA,m\n")
        await sandbox.wait_for_requests(1)
        command.write(b"B,m\n")
        await sandbox.wait_for_requests(2)
        ended = await command.ends()
    assert ended.code == 0


async def test_a_pipe_that_is_another_one_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    first = b"message_id,metadata\nA,m\nB,m\n"
    assert (
        await sinch_conv(
            "bulk", "-", "--journal", "j", folder=tmp_path, sandbox=sandbox, given=first
        )
    ).code == 0
    for other in (b"message_id,metadata\nC,m\nB,m\n", b"message_id,metadata\nA,m\nC,m\n"):
        ended = await sinch_conv(
            "bulk", "-", "--journal", "j", folder=tmp_path, sandbox=sandbox, given=other
        )
        assert ended.code == 3
        assert "another input" in ended.err
    assert len(sandbox.requests) == 2
    options = ("--journal", "j", "--dry-run")
    ended = await sinch_conv("bulk", "-", *options, folder=tmp_path, sandbox=sandbox, given=first)
    assert (ended.code, ended.out.splitlines()[-2].split()[:3]) == (0, ["to", "send", "0"])
    other = b"message_id,metadata\nC,m\n"
    ended = await sinch_conv("bulk", "-", *options, folder=tmp_path, sandbox=sandbox, given=other)
    assert ended.code == 3


async def test_a_bad_line_of_a_pipe_stops_there_or_is_skipped(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    given = b"message_id,metadata\nA,m\nonly-one-field\nB,m\n"
    ended = await sinch_conv(
        "bulk", "-", "--journal", "j", folder=tmp_path, sandbox=sandbox, given=given
    )
    assert ended.code == 2
    assert (
        "Error: line 3: 1 field, where the header has 2; nothing after it was sent; --on-bad-line skip leaves it out"
        in ended.err
    )
    assert (
        "To go on, mend that line in the input, or leave it out: sinch-conv bulk --on-bad-line skip - --journal j\n"
        in ended.err
    )
    assert "with the same input" not in ended.err
    assert list(sandbox.messages) == ["A"]
    skip = ("bulk", "-", "--journal", "j", "--on-bad-line", "skip", "--failures", "f")
    ended = await sinch_conv(*skip, folder=tmp_path, sandbox=sandbox, given=given)
    assert ended.code == 1
    assert "line 3: 1 field, where the header has 2\n" in ended.err
    assert list(sandbox.messages) == ["A", "B"]
    assert (tmp_path / "f").read_text() == (
        'message_id,metadata,_reason\nonly-one-field,"1 field, where the header has 2"\n'
    )


async def test_a_shells_file_that_is_a_pipe_is_one(sandbox: Sandbox, tmp_path: Path) -> None:
    csv(tmp_path, 3)
    line = 'exec "$@" bulk <(cat ids.csv) --journal j'
    shell = ("bash", "-c", line, "bash", *COMMAND)
    async with Running([], environment_of(sandbox), tmp_path, shell) as command:
        ended = await command.ends()
    assert ended.code == 0, ended.err
    assert len(sandbox.requests) == 3


# The program


def forget_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is imported anew."""
    for name in [name for name in sys.modules if name.startswith("sinch_conv_async.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("sinch_conv_async.cli")


def test_without_click_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_the_command_line(monkeypatch)
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err == "sinch-conv needs click: pip install 'sinch-conv-async[cli]'\n"
    )


def test_what_else_is_missing_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_command_line(monkeypatch)
    monkeypatch.setitem(sys.modules, "sinch_conv_async._job.local", None)
    with pytest.raises(ModuleNotFoundError):
        __main__.main()


def test_the_version_and_the_help_are_told(here: Here) -> None:
    assert here("--version").out.startswith("sinch-conv, version ")
    for command in ("update", "get", "list", "bulk", "sandbox", "demo"):
        ended = here(command, "-h")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith(f"Usage: sinch-conv {command} ")
        assert "RANGE" not in ended.out
        assert not re.search(r"default:\s+\d+\.0\b(?!\.)", ended.out)


def test_the_choices_are_the_enums_own() -> None:
    options = {parameter.name: parameter for parameter in cli.main.commands["update"].params}
    for name, words in (("region", Region), ("messages_source", MessagesSource)):
        choice = options[name].type
        assert isinstance(choice, click.Choice)
        assert list(choice.choices) == list(words)


async def in_a_shell(line: str, folder: Path, sandbox: Sandbox | None, **env: str) -> Ended:
    """``"$@"`` in the line is the command."""
    shell = ("bash", "-c", line, "bash", *COMMAND)
    async with Running([], environment_of(sandbox, **env), folder, shell) as command:
        return await command.ends()


@pytest.mark.parametrize(("secret", "code"), [(None, 0), ("wrong", 3)])
async def test_a_reader_who_left_changes_no_exit_code(
    sandbox: Sandbox, tmp_path: Path, secret: str | None, code: int
) -> None:
    csv(tmp_path, 2)
    env = {} if secret is None else {"SINCH_KEY_SECRET": secret}
    line = '"$@" bulk ids.csv --quiet | true; exit ${PIPESTATUS[0]}'
    ended = await in_a_shell(line, tmp_path, sandbox, **env)
    assert ended.code == code
    assert ended.out == ""


async def test_a_help_whose_reader_has_left_is_no_error(tmp_path: Path) -> None:
    ended = await in_a_shell('exec 3> >(true); wait $!; "$@" bulk --help >&3', tmp_path, None)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"])
async def test_a_standard_error_that_takes_nothing_changes_neither_exit_code_nor_document(
    sandbox: Sandbox, tmp_path: Path, where: str
) -> None:
    csv(tmp_path, 2)
    ended = await in_a_shell(f'"$@" bulk ids.csv --output json {where}', tmp_path, sandbox)
    assert (ended.code, ended.json["updated"]) == (0, 2)
    line = f'"$@" bulk ids.csv --journal other.jsonl --output json {where}'
    ended = await in_a_shell(line, tmp_path, sandbox, SINCH_KEY_SECRET="wrong")
    assert (ended.code, ended.json["exit_code"]) == (3, 3)
    (tmp_path / "bad.csv").write_text("message_id,metadata\n../x,y\n")
    ended = await in_a_shell(
        f'"$@" bulk bad.csv --dry-run --output json {where}', tmp_path, sandbox
    )
    assert (ended.code, ended.json["invalid"]) == (2, 1)
    ended = await in_a_shell(f'"$@" bulk missing.csv --output json >&- {where}', tmp_path, sandbox)
    assert ended.code == 2
    ended = await in_a_shell(f'"$@" bulk missing.csv {where}', tmp_path, sandbox)
    assert ended.code == 2


async def test_failures_of_an_input_that_was_changed_meanwhile_are_not_written(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path = csv(tmp_path, 2)
    sandbox.fail_next(400, times=2)
    sandbox.hold()
    arguments = ["bulk", path, "--failures", "failed.csv"]
    async with Running(arguments, environment_of(sandbox), tmp_path) as command:
        await sandbox.wait_for_requests(2)
        csv(tmp_path, 3)
        sandbox.release()
        ended = await command.ends()
    assert ended.code == 2
    assert "Error: failed.csv was not written: " in ended.err
    assert not (tmp_path / "failed.csv").exists()


async def test_failures_are_written_through_a_link(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    sandbox.fail_next(400)
    ended = await sinch_conv(
        "bulk", csv(tmp_path, 1), "--failures", "link.csv", folder=tmp_path, sandbox=sandbox
    )
    assert ended.code == 1
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == (
        f"message_id,metadata,_reason\nID1,{SECRET_METADATA}-1,400 BadRequestError INVALID_ARGUMENT\n"
    )


@pytest.mark.parametrize(
    ("place", "problem"), [("-", "a file is wanted"), ("fifo", "fifo is not a plain file")]
)
def test_failures_take_no_place_of_what_is_no_file(
    place: str, problem: str, tmp_path: Path, here: Here
) -> None:
    os.mkfifo(tmp_path / "fifo")
    ended = here("bulk", csv(tmp_path), "--failures", place)
    assert ended.code == 2
    assert problem in ended.err


async def test_of_a_pipe_a_quote_that_is_never_closed_swallows_no_other_failure(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.fail_next(400, times=2)
    given = b'message_id,metadata\nA,m\nB,m\nC,"never closed\n'
    options = ("--journal", "j", "--failures", "failed.csv", "--on-bad-line", "skip")
    ended = await sinch_conv("bulk", "-", *options, folder=tmp_path, sandbox=sandbox, given=given)
    assert ended.code == 2
    assert (
        "Error: standard input, line 4: a quote in it is never closed, so it is unknown where the record "
        "ends; nothing after it can be sent\nTo go on, mend that record in the input: sinch-conv bulk - "
    ) in ended.err
    lines = (tmp_path / "failed.csv").read_text().splitlines()
    assert sorted(lines[1:]) == [f"{name},m,400 BadRequestError INVALID_ARGUMENT" for name in "AB"]


async def test_a_pipe_that_was_not_read_to_its_end_leaves_older_failures_alone(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.fail_next(400, times=1_000)
    given = b"message_id,metadata\n" + b"".join(b"M%d,m\n" % number for number in range(40))
    options = ("--journal", "j", "--failures", "failed.csv")
    await sinch_conv("bulk", "-", *options, folder=tmp_path, sandbox=sandbox, given=given)
    before = (tmp_path / "failed.csv").read_bytes()
    assert before.count(b"\n") == 41
    early = ("--max-failures", "1", "--concurrency", "1")
    ended = await sinch_conv(
        "bulk", "-", *options, *early, folder=tmp_path, sandbox=sandbox, given=given
    )
    assert ended.code == 1
    assert (
        "failed.csv is left as it was: not every record of the input has been tried." in ended.err
    )
    assert (tmp_path / "failed.csv").read_bytes() == before
    env = {"SINCH_KEY_SECRET": "wrong"}
    ended = await sinch_conv(
        "bulk", "-", *options, folder=tmp_path, sandbox=sandbox, given=given, env=env
    )
    assert ended.code == 3
    assert (tmp_path / "failed.csv").read_bytes() == before


async def test_a_pipe_whose_first_record_was_bad_can_be_mended(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    for given, code in ((b"message_id,metadata\nA/1,m\n", 2), (b"message_id,metadata\nA1,m\n", 0)):
        ended = await sinch_conv(
            "bulk", "-", "--journal", "j", folder=tmp_path, sandbox=sandbox, given=given
        )
        assert ended.code == code, ended.err


def test_failures_of_a_pipe_need_a_place_until_they_are_written(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_local, "Spool", full)
    reading, writing = os.pipe()
    os.write(writing, b"message_id,metadata\nA,m\n")
    os.close(writing)
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        env = {"PROJECT_ID": "p", "KEY_ID": "k", "KEY_SECRET": "s", "CONVERSATION_REGION": "us"}
        arguments = ("bulk", "-", "--journal", "j", "--failures", "failed.csv")
        ended = here(*arguments, **{f"SINCH_{name}": value for name, value in env.items()})
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(reading)
    assert ended.code == 2
    assert (
        f"Error: {tmp_path}: no room for what fails until failed.csv is written: No space left"
        in ended.err
    )


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("empty.csv", "--dry-run"), 2, "empty.csv is empty"),
        (("ids.csv",), 3, "SINCH_PROJECT_ID"),
        (("ids.csv", "--credentials", "missing"), 3, "missing: No such file"),
        (("ids.csv", "--dry-run", "--journal", "fifo"), 3, "is not a plain file"),
    ],
)
def test_what_keeps_a_job_from_beginning_is_a_document_for_machines_too(
    arguments: tuple[str, ...], code: int, error: str, tmp_path: Path, here: Here
) -> None:
    csv(tmp_path)
    (tmp_path / "empty.csv").touch()
    os.mkfifo(tmp_path / "fifo")
    ended = here("bulk", *arguments, "--output", "json")
    assert ended.code == ended.json["exit_code"] == code
    assert error in ended.json["error"]
    assert ended.json["error"] in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("bulk", "ids.csv", "--dry-run", "--rate", "nan"),
        ("bulk", "ids.csv", "--max-outage", "inf"),
        ("update", "A", "m", "--timeout", "nan"),
        ("sandbox", "--latency", "inf"),
        ("sandbox", "--token-lifetime", "nan"),
    ],
)
def test_a_number_that_is_none_is_refused(
    arguments: tuple[str, ...], tmp_path: Path, here: Here
) -> None:
    csv(tmp_path)
    ended = here(*arguments)
    assert ended.code == 2
    assert "is not a finite number" in ended.err


@pytest.mark.parametrize(
    ("arguments", "done"),
    [
        ("bulk ids.csv --quiet", "; the outcome of each record is in ids.csv.journal.jsonl"),
        (
            "bulk ids.csv --quiet --output json",
            "; the outcome of each record is in ids.csv.journal.jsonl",
        ),
        ("bulk ids.csv --dry-run", ""),
        ("bulk ids.csv --dry-run --output json", ""),
        ("--version", ""),
        ("bulk --help", ""),
    ],
)
async def test_a_standard_output_without_room_is_one_sentence(
    arguments: str, done: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "ids.csv").write_text("message_id,metadata\n")
    ended = await in_a_shell(f'"$@" {arguments} >/dev/full', tmp_path, sandbox)
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == (
        f"Error: standard output cannot be written: No space left on device{done}"
    )


async def test_without_room_for_any_word_the_exit_code_is_still_the_commands(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    csv(tmp_path, 2)
    for line, code in (
        ("bulk ids.csv", 1),
        ("bulk missing.csv --output json", 2),
        ("--version", 1),
        ("sandbox --port ten", 2),
    ):
        ended = await in_a_shell(f'"$@" {line} >/dev/full 2>&1', tmp_path, sandbox)
        assert (line, ended.code) == (line, code)


# sandbox and demo


async def test_the_sandbox_prints_the_environment_that_leads_to_it(tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        options = [
            "sandbox",
            "--fail",
            "404:2",
            "--fail",
            "400:7",
            "--drop",
            "50",
            "--expire-tokens",
            "3",
            "--rate-limit",
            "0",
        ]
        async with Running(options, environment_of(None), tmp_path) as command:
            assert command.process.stdout is not None
            lines = [(await command.process.stdout.readline()).decode().strip() for _ in range(5)]
            env = dict(line.split("=", 1) for line in lines)
            assert list(env) == [
                "SINCH_PROJECT_ID",
                "SINCH_KEY_ID",
                "SINCH_KEY_SECRET",
                "SINCH_CONVERSATION_ORIGIN",
                "SINCH_AUTH_ORIGIN",
            ]
            codes = [
                (await sinch_conv("update", ID, "new", folder=tmp_path, env=env)).code
                for _ in range(4)
            ]
            # The third meets a token that expires with it, and its repeat, the fourth request,
            # another 404.
            assert codes == [0, 1, 1, 0]
            command.send(number)
            ended = await command.ends()
        assert (ended.code, ended.out, ended.err) == (0, "", "")


async def test_a_port_that_is_taken_is_said(sandbox: Sandbox, tmp_path: Path) -> None:
    ended = await sinch_conv("sandbox", "--port", str(sandbox.port), folder=tmp_path)
    assert ended.code == 2
    assert f"port {sandbox.port}: " in ended.err


@pytest.mark.parametrize("fail", ["503", "x:1", "200:5", "503:0"])
def test_a_fault_that_is_none_is_refused(fail: str, here: Here) -> None:
    ended = here("sandbox", "--fail", fail)
    assert ended.code == 2
    assert "STATUS:N or STATUS:P%, such as 503:100 or 429:1%" in ended.err


async def test_the_demo_loses_nothing(tmp_path: Path) -> None:
    ended = await sinch_conv("demo", "--messages", "1000", folder=tmp_path)
    assert ended.code == 0, ended.err
    said = [line.split() for line in ended.out.splitlines()]
    assert said[0] == ["updated", "1,000", "of", "1,000"]
    assert said[1] == ["failed", "0"]
    names = [words[0] for words in said]
    assert names == ["updated", "failed", "retried", "tokens", "rate", "All"]
    assert int(said[2][1]) >= 15
    assert said[3] == ["tokens", "fetched", "2"]
    assert ended.out.endswith("All 1,000 messages hold the right metadata.\n")


async def test_a_demo_can_be_interrupted(tmp_path: Path) -> None:
    async with Running(["demo", "--messages", "20000"], environment_of(None), tmp_path) as command:
        await command.says(" of 20,000 (")
        command.send(signal.SIGINT)
        ended = await command.ends()
    assert ended.code == 130
    assert "hold the right metadata" not in ended.out


@pytest.mark.parametrize(("lies", "code"), [(0, 0), (3, 1)])
def test_a_demo_counts_what_it_lost(
    lies: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _demo = importlib.import_module("sinch_conv_async.cli.demo")

    async def trouble(sandbox: Sandbox, messages: int) -> None:
        # Answers that claim what they did not do.
        body = b'{"id": "%s"}'
        for message_id in list(sandbox.messages)[:lies]:
            raw = body % message_id.encode()
            sandbox.answer_next(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % len(raw)
                + raw,
                message_id=message_id,
            )

    monkeypatch.setattr(_demo, "_trouble", trouble)
    assert cli.run(["demo", "--messages", "100"]) == code
    said = capsys.readouterr()
    assert ("3 messages do not hold what they should" in said.err) == (lies == 3)
    assert ("All 100 messages hold the right metadata." in said.out) == (lies == 0)


# Where it was sent, who is to be heard, and what a terminal can show


async def test_a_rehearsal_leaves_the_real_job_all_its_work(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """With the same project and the same file; only the origin differs."""
    path = csv(tmp_path, 3)
    async with Sandbox(auto_create=True) as mock:
        there = ("--conversation-origin", mock.origin, "--auth-origin", mock.origin)
        assert (await sinch_conv("bulk", path, *there, folder=tmp_path, sandbox=sandbox)).code == 0
        assert (len(mock.requests), len(sandbox.requests)) == (3, 0)
        for options in ((), ("--dry-run",)):
            ended = await sinch_conv("bulk", path, *options, folder=tmp_path, sandbox=sandbox)
            assert (ended.code, ended.out) == (3, "")
            assert (
                f"belongs to a job that sent to {mock.origin}; this one sends to {sandbox.origin}; "
                "name another with --journal" in ended.err
            )
        ended = await sinch_conv(
            "bulk", path, "--journal", "real", folder=tmp_path, sandbox=sandbox
        )
        assert (ended.code, len(sandbox.requests)) == (0, 3)
        ended = await sinch_conv("bulk", path, *there, folder=tmp_path, sandbox=sandbox)
        assert (ended.code, len(mock.requests)) == (0, 3)


async def test_a_customers_text_is_never_sent_as_an_update_of_its_own(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "ids.csv"
    path.write_bytes(
        b'message_id,metadata\nm1,"caf\xe9 order:\nVICTIM,overwritten\nthanks"\nm2,two\n'
    )
    ended = await sinch_conv(
        "bulk", path, "--on-bad-line", "skip", folder=tmp_path, sandbox=sandbox
    )
    assert ended.code == 1
    assert "line 2: not UTF-8 (lines 2 to 4)\n" in ended.err
    assert {name: message.metadata for name, message in sandbox.messages.items()} == {"m2": "two"}
    path.write_bytes(b'message_id,metadata\nm2,two\nm1,"order:\nVICTIM,overwritten\n')
    options = ("--on-bad-line", "skip", "--journal", "j")
    ended = await sinch_conv("bulk", path, *options, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 2
    assert "ids.csv, line 3: a quote in it is never closed" in ended.err
    assert list(sandbox.messages) == ["m2"]
    ended = await sinch_conv(
        "bulk", "-", *options, folder=tmp_path, sandbox=sandbox, given=path.read_bytes()
    )
    assert (ended.code, list(sandbox.messages)) == (2, ["m2"])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
async def test_a_letter_that_standard_output_lacks_ends_nothing(
    encoding: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    env = {"PYTHONIOENCODING": encoding, "LC_ALL": "C.UTF-8"}
    ended = await sinch_conv("update", ID, "Straße → 🚚", folder=tmp_path, sandbox=sandbox, env=env)
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["metadata"] == "Straße → 🚚"
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    path.write_text("message_id,metadata\nA,m\n")
    for number, options in enumerate(((), ("--output", "json"), ("--dry-run",))):
        arguments = ("bulk", path, "--journal", f"{path}.{number}", *options)
        ended = await sinch_conv(*arguments, folder=tmp_path, sandbox=sandbox, env=env)
        assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_that_the_shell_ignores_stays_ignored(
    number: signal.Signals, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.hold()
    # Coverage takes SIGTERM for itself.
    environment = unmeasured(environment_of(sandbox))
    ignoring = ("bash", "-c", f'trap "" {number.name}; exec "$@"', "bash", *COMMAND)
    # Coverage would take SIGTERM for itself, to save what it has measured.
    env = unmeasured(environment) if number is signal.SIGTERM else environment
    async with Running(["bulk", csv(tmp_path, 20)], env, tmp_path, ignoring) as command:
        await sandbox.wait_for_requests(20)
        command.send(number)
        sandbox.release()
        ended = await command.ends()
    assert (ended.code, ended.err) == (0, "")
    async with Running(["sandbox"], env, tmp_path, ignoring) as command:
        assert command.process.stdout is not None
        for _ in range(5):
            await command.process.stdout.readline()
        command.send(number)
        command.send(signal.SIGTERM if number is signal.SIGINT else signal.SIGINT)
        assert (await command.ends()).code == 0


async def test_a_wrong_region_is_guessed_when_everything_is_404(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        ended = await sinch_conv("bulk", csv(tmp_path, 3), folder=tmp_path, sandbox=sandbox)
        assert ended.code == 1
        assert "Every update was answered 404. " in ended.err
        assert "is --region the region that the Conversation API app lives in?" in ended.err
        hint = "--failures FILE writes what failed, each with its reason."
        assert hint in ended.err
        sandbox.add_message("ID1")
        failures = ("--failures", "failed.csv")
        file = csv(tmp_path, 3)
        ended = await sinch_conv("bulk", file, *failures, folder=tmp_path, sandbox=sandbox)
        assert "Every update was answered 404" not in ended.err
        assert hint not in ended.err


async def test_one_metadata_and_one_source_for_a_whole_file(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "ids.csv").write_text(
        "id,messages_source\nA,\nB,CONVERSATION_SOURCE\n", encoding="utf-8"
    )
    options = ("--set", '{"tag": "x"}', "--messages-source", "DISPATCH_SOURCE")
    ended = await sinch_conv("bulk", "ids.csv", *options, folder=tmp_path, sandbox=sandbox)
    assert (ended.code, ended.err) == (0, "")
    assert {
        (request.message_id, request.metadata, request.messages_source)
        for request in sandbox.requests
    } == {("A", '{"tag": "x"}', "DISPATCH_SOURCE"), ("B", '{"tag": "x"}', "CONVERSATION_SOURCE")}
    other = ("--set", '{"tag": "y"}', "--messages-source", "DISPATCH_SOURCE")
    ended = await sinch_conv("bulk", "ids.csv", *other, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 3
    assert "was begun with metadata of all " in ended.err
    assert "give the same options, or another --journal" in ended.err


async def test_an_encoding_may_be_named(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_bytes(b"message_id,metadata\nA,caf\xe9 \x80\n")
    ended = await sinch_conv(
        "bulk", "ids.csv", "--encoding", "CP1252", folder=tmp_path, sandbox=sandbox
    )
    assert (ended.code, sandbox.messages["A"].metadata) == (0, "café €")
    for options in ([], ["--dry-run", "--journal", "none"]):
        ended = await sinch_conv("bulk", "ids.csv", *options, folder=tmp_path, sandbox=sandbox)
        assert "line 2: not UTF-8\n" in ended.err
        assert "--encoding names another encoding, such as cp1252" in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--encoding", "utf-16"], "utf-16 does not contain ASCII"),
        (["--encoding", "iso2022_jp"], "iso2022_jp does not contain ASCII"),
        (["--encoding", "rot13"], "'rot13' is not a text encoding"),
        (["--encoding", "klingon"], "'klingon' is not a text encoding"),
        (["--set", "{tag: x}"], "it is not JSON; put single quotes around it"),
        (["--set", f'"{"x" * 1024}"'], "metadata must be at most 1,024 characters"),
        (["--proxy", "socks5://x"], "--proxy: "),
    ],
)
def test_a_bad_value_of_an_option_is_a_usage_error(
    arguments: list[str], words: str, tmp_path: Path, here: Here
) -> None:
    env = {"PROJECT_ID": "p", "KEY_ID": "k", "KEY_SECRET": "s", "CONVERSATION_REGION": "us"}
    known = {f"SINCH_{name}": value for name, value in env.items()}
    ended = here("bulk", csv(tmp_path), *arguments, **known)
    assert (ended.code, ended.out) == (2, "")
    assert words in " ".join(ended.err.split())


def test_a_dry_run_counts_what_would_clear_and_what_comes_twice(tmp_path: Path, here: Here) -> None:
    (tmp_path / "ids.csv").write_text("message_id,metadata\nA,one\nB,\nA,two\nA,\nC,three\n")
    ended = here("bulk", "ids.csv", "--dry-run", "--output", "json", "--encoding", "utf-8-sig")
    assert (ended.json["records"], ended.json["emptied"], ended.json["repeated"]) == (5, 2, 2)
    said = here("bulk", "ids.csv", "--dry-run").out.splitlines()
    assert said[2] == "empty                  2   metadata is empty, which clears the message's"
    assert said[3] == "repeated               2   an earlier record has the same id"


async def test_what_is_logged_is_asked_for(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.fail_next(503)
    ended = await sinch_conv("update", ID, "new", "-vv", folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0
    assert " DEBUG " in ended.err
    assert "503" in ended.err
    assert sandbox.client_options()["key_secret"] not in ended.err
