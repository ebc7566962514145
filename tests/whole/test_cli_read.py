"""``get``, ``list`` and ``bulk --merge``, run as a person runs them: against a sandbox in another
process.
"""

from __future__ import annotations

import csv
import io
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async.sandbox import Sandbox
from tests.commands import COMMAND, Ended, Running, environment_of, sinch_conv, unmeasured

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TAG = '{"tag": "x"}'


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


def add(sandbox: Sandbox, number: int) -> None:
    """Messages M1 to Mn, the last one the newest, with a key each."""
    for row in range(1, number + 1):
        time = f"2026-11-{1 + row // 1440:02}T{row // 60 % 24:02}:{row % 60:02}:00Z"
        message = sandbox.add_message(f"M{row}", metadata=f'{{"row": {row}}}', accept_time=time)
        message.conversation_id = "C" if row % 2 else "D"


def outcomes_of(journal: Path) -> list[str]:
    return [json.loads(line)["outcome"] for line in journal.read_text().splitlines()[1:]]


# get


async def test_get_prints_the_message_as_json(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_message("A", metadata="old")
    options = ("--messages-source", "conversation_source", "--timeout", "20")
    ended = await sinch_conv("get", "A", *options, folder=tmp_path, sandbox=sandbox)
    assert (ended.code, ended.err) == (0, "")
    assert (ended.json["id"], ended.json["metadata"]) == ("A", "old")
    (request,) = sandbox.requests
    assert (request.method, request.messages_source) == ("GET", "CONVERSATION_SOURCE")


@pytest.mark.parametrize(("message_id", "code"), [("B", 1), ("a/b", 2)])
async def test_get_of_what_cannot_be_read_says_so(
    message_id: str, code: int, sandbox: Sandbox, tmp_path: Path
) -> None:
    ended = await sinch_conv("get", message_id, folder=tmp_path, sandbox=sandbox)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith("Error: ")


async def test_what_a_server_says_does_nothing_to_a_terminal(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_message("A", metadata="\x9b2J \x1b[2J é")
    ended = await sinch_conv("get", "A", folder=tmp_path, sandbox=sandbox)
    assert ended.json["metadata"] == "\x9b2J \x1b[2J é"
    assert all(sign.isprintable() or sign == "\n" for sign in ended.out)


# list


async def test_list_prints_one_message_a_line_the_newest_first(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    add(sandbox, 250)
    ended = await sinch_conv("list", folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert [message["id"] for message in found] == [f"M{row}" for row in range(250, 0, -1)]
    assert found[0]["metadata"] == '{"row": 250}'
    assert len(sandbox.requests) == 3


async def test_list_prints_csv_with_a_header(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_message("A", metadata='say "hi",\nor not', accept_time="2026-11-01T00:00:00Z")
    ended = await sinch_conv("list", "--output", "csv", folder=tmp_path, sandbox=sandbox)
    (row,) = csv.DictReader(io.StringIO(ended.out, newline=""))
    assert (row["id"], row["metadata"]) == ("A", 'say "hi",\nor not')
    assert (row["channel"], row["identity"]) == ("SMS", "12025550123")
    assert row["accept_time"].startswith("2026-11-01T00:00:00")


async def test_list_takes_filters_and_a_limit(sandbox: Sandbox, tmp_path: Path) -> None:
    add(sandbox, 100)
    filters = (
        *("--conversation-id", "D", "--direction", "to_contact", "--channel", "sms"),
        *("--start-time", "2026-11-01T00:10:00Z", "--end-time", "2026-11-01T01:30:00+00:00"),
        *("--messages-source", "CONVERSATION_SOURCE", "--view", "WITH_METADATA"),
        *("--contact-id", "01SANDBOXCONTACT0000000001", "--limit", "7", "--quiet"),
    )
    ended = await sinch_conv("list", *filters, folder=tmp_path, sandbox=sandbox)
    assert (ended.code, ended.err) == (0, "")
    found = [json.loads(line)["id"] for line in ended.out.splitlines()]
    assert found == [f"M{row}" for row in range(88, 74, -2)]
    (request,) = sandbox.requests
    assert "page_size=7&" in request.query + "&"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--start-time", "yesterday"], "'yesterday' is not a time such as"),
        (["--end-time", "2026-11-01T00:00:00"], "has no zone; add Z"),
        (["--page-size", "1001"], "1001 is not in the range"),
        (["--channel", "PIGEON"], "'PIGEON' is not one of"),
    ],
)
async def test_a_bad_filter_is_a_usage_error(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    ended = await sinch_conv("list", *arguments, folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert words in " ".join(ended.err.split())


async def test_list_ends_with_its_reader(sandbox: Sandbox, tmp_path: Path) -> None:
    add(sandbox, 1000)
    for output in ("jsonl", "csv"):
        sent = len(sandbox.requests)
        line = f'"$@" list --page-size 10 --output {output} | head -n 3; exit ${{PIPESTATUS[0]}}'
        shell = ("bash", "-c", line, "bash", *COMMAND)
        async with Running([], environment_of(sandbox), tmp_path, shell) as command:
            ended = await command.ends()
        assert (ended.code, len(ended.out.splitlines())) == (0, 3)
        assert "Traceback" not in ended.err
        assert len(sandbox.requests) - sent < 90


async def test_a_list_without_standard_output_asks_for_nothing(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    shell = ("bash", "-c", '"$@" list --output csv >&-', "bash", *COMMAND)
    async with Running([], environment_of(sandbox), tmp_path, shell) as command:
        ended = await command.ends()
    assert (ended.code, ended.err, sandbox.requests) == (0, "", [])


async def test_a_list_that_fails_on_its_way_says_so(sandbox: Sandbox, tmp_path: Path) -> None:
    add(sandbox, 20)
    sandbox.fail_next(403)
    ended = await sinch_conv("list", folder=tmp_path, sandbox=sandbox)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("Error: PermissionDeniedError: 403")


# bulk --merge


async def test_a_merge_keeps_what_is_there(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_message("A", metadata='{"a": 1, "old": true}')
    sandbox.add_message("B", metadata='{"tag": "x"}')
    sandbox.add_message("C", metadata="no JSON")
    sandbox.add_message("D", metadata="")
    path = tmp_path / "ids.csv"
    path.write_text('message_id,metadata\nA,"{""tag"": ""x"", ""old"": null}"\n')
    with path.open("a") as file:
        file.writelines(f'{name},"{{""tag"": ""x""}}"\n' for name in "BCDE")
    options = ("--merge", "--failures", "failed.csv", "--output", "json")
    ended = await sinch_conv("bulk", path, *options, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 1
    told = ended.json
    assert (told["updated"], told["unchanged"], told["failed"], told["remaining"]) == (2, 1, 2, 0)
    assert sandbox.messages["A"].metadata == '{"a":1,"tag":"x"}'
    assert sandbox.messages["D"].metadata == '{"tag":"x"}'
    assert [sandbox.messages[name].updates for name in "ABCD"] == [1, 0, 0, 1]
    reasons = {
        row["message_id"]: row["_reason"]
        for row in csv.DictReader((tmp_path / "failed.csv").read_text().splitlines())
    }
    assert reasons["C"].startswith(
        "InvalidArgumentError: the message's metadata must be a JSON object"
    )
    assert reasons["E"] == "404 NotFoundError NOT_FOUND"
    assert sorted(outcomes_of(tmp_path / "ids.csv.journal.jsonl")) == [
        *("failed", "failed", "unchanged", "updated", "updated"),
    ]
    # What is done is not read again.
    sent = len(sandbox.requests)
    ended = await sinch_conv("bulk", path, *options, folder=tmp_path, sandbox=sandbox)
    assert [request.message_id for request in sandbox.requests[sent:]] in (["C", "E"], ["E", "C"])


async def test_two_changes_of_one_message_are_both_made(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_message("A", metadata="{}")
    path = tmp_path / "ids.jsonl"
    path.write_text(
        '{"message_id": "A", "metadata": {"one": 1}}\n{"message_id": "A", "metadata": {"two": 2}}\n'
    )
    sandbox.fail_next(400, message_id="A")
    ended = await sinch_conv("bulk", path, "--merge", folder=tmp_path, sandbox=sandbox)
    assert ended.code == 1
    assert sandbox.messages["A"].metadata == '{"two":2}'
    # An update of a part supersedes nothing.
    assert (await sinch_conv("bulk", path, "--merge", folder=tmp_path, sandbox=sandbox)).code == 0
    assert json.loads(sandbox.messages["A"].metadata) == {"one": 1, "two": 2}


async def test_the_source_of_a_record_is_where_it_is_read(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_message("A", processing_mode="DISPATCH")
    (tmp_path / "ids.csv").write_text("id,messages_source\nA,DISPATCH_SOURCE\n")
    options = ("--merge", "--set", TAG)
    ended = await sinch_conv("bulk", "ids.csv", *options, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0, ended.err
    assert [request.messages_source for request in sandbox.requests] == ["DISPATCH_SOURCE"] * 2


async def test_a_merge_needs_an_object(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("id\nA\n")
    ended = await sinch_conv("bulk", "ids.csv", "--merge", "--set", "[1]", folder=tmp_path)
    assert (ended.code, "--set must be a JSON object to be merged" in ended.err) == (2, True)


async def recipe(line: str, folder: Path, sandbox: Sandbox) -> Ended:
    shell = ("bash", "-c", f'sinch_conv() {{ {" ".join(COMMAND)} "$@"; }}; {line}')
    async with Running([], unmeasured(environment_of(sandbox)), folder, shell) as command:
        return await command.ends()


async def test_a_conversation_is_tagged_by_the_recipe(sandbox: Sandbox, tmp_path: Path) -> None:
    add(sandbox, 300)
    line = (
        f"sinch_conv list --conversation-id C | sinch_conv bulk - --merge --set '{TAG}' --journal J"
    )
    ended = await recipe(line, tmp_path, sandbox)
    assert ended.code == 0, ended.err
    for row in range(1, 301):
        tagged = {"row": row, "tag": "x"} if row % 2 else {"row": row}
        assert json.loads(sandbox.messages[f"M{row}"].metadata) == tagged
    assert outcomes_of(tmp_path / "J") == ["updated"] * 150
    # Again: the listed messages look different now, and it is the same input all the same.
    sent = len(sandbox.requests)
    assert (await recipe(line, tmp_path, sandbox)).code == 0
    assert {request.method for request in sandbox.requests[sent:]} == {"GET"}
    assert {request.message_id for request in sandbox.requests[sent:]} == {None}


async def test_after_a_kill_a_merge_goes_on(sandbox: Sandbox, tmp_path: Path) -> None:
    add(sandbox, 600)
    arguments = ("bulk", "-", "--merge", "--set", TAG, "--journal", "j", "--concurrency", "8")
    given, sent = listed(sandbox), 0
    async with Running(arguments, unmeasured(environment_of(sandbox)), tmp_path) as command:
        command.write(given)
        await sandbox.wait_for_requests(sent + 300)
        command.send(signal.SIGKILL)
        await command.process.wait()
    done = outcomes_of_whole_lines(tmp_path / "j")
    assert 0 < done < 600
    # Messages that were updated are listed with their new metadata.
    again = listed(sandbox)
    assert again != given
    sent = len(sandbox.requests)
    ended = await sinch_conv(*arguments, folder=tmp_path, sandbox=sandbox, given=again)
    assert ended.code == 0, ended.err
    assert len({request.message_id for request in sandbox.requests[sent:]}) == 600 - done
    for row in range(1, 601):
        message = sandbox.messages[f"M{row}"]
        assert json.loads(message.metadata) == {"row": row, "tag": "x"}
        assert message.updates == 1  # one that was under way is read, and found to be done
    words = [json.loads(line)["outcome"] for line in (tmp_path / "j").read_text().splitlines()[1:]]
    assert set(words) <= {"updated", "unchanged"}
    assert words.count("unchanged") <= 8


def listed(sandbox: Sandbox) -> bytes:
    """The messages as ``list`` prints them, but for some fields."""
    return b"".join(
        json.dumps({"id": message.id, "metadata": message.metadata}).encode() + b"\n"
        for message in sandbox.messages.values()
    )


def outcomes_of_whole_lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") - 1
