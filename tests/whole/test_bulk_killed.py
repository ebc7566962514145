"""A job that is killed, interrupted, robbed of its journal or left without a disk: what was sent is
known, and the next run goes on.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import signal
import struct
import sys
import termios
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from sinch_conv_async.sandbox import Sandbox
from tests.commands import COMMAND, Forker, Running, csv, environment_of, sinch_conv, unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable

CONCURRENCY = 8
KILLS = 100
OF_A_PYTHON = (
    5  # of the kills, those that may come while Python itself starts; a fork starts at once
)


TOO_LATE = "the job was over before all kills were dealt"


def outcomes_in(journal: Path) -> list[tuple[int, str]]:
    """Record and outcome of each whole line after the header."""
    lines = journal.read_bytes().splitlines(keepends=True)[1:] if journal.exists() else []
    found = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [(line["record"], line["outcome"]) for line in found]


def updated_in(journal: Path) -> set[int]:
    return {record for record, outcome in outcomes_in(journal) if outcome == "updated"}


async def held(sandbox: Sandbox, number: int = CONCURRENCY) -> None:
    """So many updates are under way, and none is answered."""
    await sandbox.wait_for_requests(number)
    assert sandbox.in_flight == number


# Killed


@attrs.frozen
class Victim:
    """One job that is killed again and again, and what must hold each time."""

    folder: Path
    rng: random.Random
    rows: tuple[tuple[str, str], ...]

    async def killed(self, sandbox: Sandbox, kills: int) -> None:
        path, journal = self.folder / "ids.csv", self.folder / "journal"
        path.write_text(
            "message_id,metadata\n"
            + "".join(f"{name},{metadata}\n" for name, metadata in self.rows)
        )
        environment = unmeasured(environment_of(sandbox))
        arguments = (
            "bulk",
            str(path),
            "--journal",
            str(journal),
            "--concurrency",
            str(CONCURRENCY),
            "--quiet",
        )
        # Slowly, so that a machine on which a kill takes its time does not see the job's end first.
        slowly = (*arguments, "--rate", "250")
        number_of = {row: number for number, row in enumerate(self.rows, 1)}
        done: set[int] = set()
        with Forker(environment) as forker:
            for kill in range(kills):
                sent = len(sandbox.requests)
                a_python = kill < OF_A_PYTHON
                command = list(COMMAND) if a_python else COMMAND
                async with Running(
                    slowly, environment, self.folder, command, forker=forker
                ) as victim:
                    await self.moment(sandbox, sent, begin=0.5 if a_python else 0.05)
                    victim.send(signal.SIGKILL)
                    assert await victim.process.wait() == -signal.SIGKILL, TOO_LATE
                assert not self.sent_again(sandbox, sent, number_of, done)
                done = updated_in(journal)
                applied = {
                    number_of[name, message.metadata]
                    for name, message in sandbox.messages.items()
                    if message.updates
                }
                assert len(applied - done) <= CONCURRENCY
        sent = len(sandbox.requests)
        while (
            ended := await sinch_conv(*arguments, folder=self.folder, sandbox=sandbox)
        ).code == 1:
            pass
        assert ended.code == 0, ended.err
        assert not self.sent_again(sandbox, sent, number_of, done)
        self.check_the_end(sandbox, journal)

    async def moment(self, sandbox: Sandbox, sent: int, *, begin: float) -> None:
        """A random moment: within ``begin`` seconds of the start, or after some requests, at
        whatever the job does then.
        """
        further = self.rng.choice([0, *range(1, 30)])
        if further:
            await sandbox.wait_for_requests(sent + further)
        await asyncio.sleep(self.rng.uniform(0, 0.02 if further else begin))

    @staticmethod
    def sent_again(
        sandbox: Sandbox, sent: int, number_of: dict[tuple[str, str], int], done: set[int]
    ) -> set[int]:
        """Records that the journal called updated before these requests, and that were sent all the
        same.
        """
        numbers = {
            number_of[str(request.message_id), str(request.metadata)]
            for request in sandbox.requests[sent:]
        }
        return numbers & done

    def check_the_end(self, sandbox: Sandbox, journal: Path) -> None:
        newest = dict(self.rows)
        assert {name: message.metadata for name, message in sandbox.messages.items()} == newest
        final: dict[int, str] = {}
        successes: Counter[int] = Counter()
        for record, outcome in outcomes_in(journal):
            final[record] = outcome
            successes[record] += outcome == "updated"
        assert sorted(final) == list(range(1, len(self.rows) + 1))
        assert set(final.values()) <= {"updated", "superseded"}
        assert set(successes.values()) <= {0, 1}
        for number, (name, metadata) in enumerate(self.rows, 1):
            if final[number] == "superseded":
                assert newest[name] != metadata


def rows_of(rng: random.Random, number: int) -> tuple[tuple[str, str], ...]:
    """Some ids twice, near each other or far apart."""
    names = [
        f"ID{row if rng.random() < 0.9 else max(row - rng.randint(1, 200), 0)}"
        for row in range(number)
    ]
    return tuple((name, f"new-{row}") for row, name in enumerate(names))


async def test_killed_at_a_hundred_random_moments_a_job_loses_nothing_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    rng = random.Random(0)
    rows = rows_of(rng, 4000)
    async with Sandbox(auto_create=True, latency=0.01) as sandbox:
        for name, _ in rng.sample(rows, 60):
            sandbox.fail_next(404, message_id=name)
        await Victim(tmp_path, rng, rows).killed(sandbox, KILLS)


# Interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_finishes_what_is_under_way(
    number: signal.Signals, sandbox: Sandbox, tmp_path: Path
) -> None:
    path, journal = csv(tmp_path, 40), tmp_path / "j"
    sandbox.hold()
    arguments = (
        "bulk",
        path,
        "--journal",
        journal,
        "--concurrency",
        str(CONCURRENCY),
        "--failures",
        tmp_path / "f",
    )
    async with Running(arguments, environment_of(sandbox), tmp_path) as command:
        await held(sandbox)
        command.send(number)
        await command.says("Finishing the updates under way; a second signal ends the job now.")
        sandbox.release()
        ended = await command.ends()
    assert ended.code == 130
    assert "To go on: sinch-conv bulk" in ended.err
    assert "remaining" in ended.out
    assert updated_in(journal) == set(range(1, CONCURRENCY + 1))
    assert (tmp_path / "f").read_text() == "message_id,metadata,_reason\n"
    ended = await sinch_conv(*arguments, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0
    assert len(sandbox.requests) == 40


async def test_the_second_signal_ends_it_now(sandbox: Sandbox, tmp_path: Path) -> None:
    path, journal = csv(tmp_path, 40), tmp_path / "j"
    sandbox.hold()
    arguments = (
        "bulk",
        path,
        "--journal",
        journal,
        "--concurrency",
        str(CONCURRENCY),
        "--failures",
        tmp_path / "f",
        "--output",
        "json",
    )
    async with Running(arguments, environment_of(sandbox), tmp_path) as command:
        await held(sandbox)
        command.send(signal.SIGINT)
        await command.says("Finishing the updates under way")
        command.send(signal.SIGINT)
        ended = await command.ends()
    assert ended.code == 130
    assert (ended.json["interrupted"], ended.json["updated"], ended.json["remaining"]) == (
        True,
        0,
        40,
    )
    assert updated_in(journal) == set()
    sandbox.release()
    assert (await sinch_conv(*arguments, folder=tmp_path, sandbox=sandbox)).code == 0
    assert len(sandbox.requests) == 40 + CONCURRENCY


async def test_a_signal_while_a_pipe_says_nothing_ends_the_job(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    async with Running(
        ["bulk", "-", "--journal", "j"], environment_of(sandbox), tmp_path
    ) as command:
        command.write(b"message_id,metadata\nA,m\n")
        await sandbox.wait_for_requests(1)
        command.send(signal.SIGTERM)
        await command.says("Finishing")
        assert await command.process.wait() == 130
    assert updated_in(tmp_path / "j") == {1}


async def test_a_signal_before_the_job_began_ends_it(sandbox: Sandbox, tmp_path: Path) -> None:
    """While the pipe's first line is waited for, no event loop is there to take the signal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        async with Running(
            ["bulk", "-", "--journal", "j"], environment_of(sandbox), tmp_path
        ) as command:
            while not (tmp_path / "j").exists():
                await asyncio.sleep(0.01)
            command.send(number)
            ended = await command.ends()
        assert (ended.code, ended.err.strip()) == (130, "Interrupted.")
        (tmp_path / "j").unlink()


async def test_a_signal_in_an_outage_does_not_wait_for_its_end_and_is_no_success(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path, journal = csv(tmp_path, 5), tmp_path / "j"
    sandbox.fail_next(503, times=100_000)
    arguments = ("bulk", path, "--journal", journal, "--output", "json")
    async with Running(arguments, environment_of(sandbox), tmp_path) as command:
        await sandbox.wait_for_requests(5 * 5 + 1)
        command.send(signal.SIGINT)
        ended = await command.ends()
    assert ended.code == 130
    assert (ended.json["exit_code"], ended.json["updated"], ended.json["remaining"]) == (130, 0, 5)
    assert "To go on: sinch-conv bulk" in ended.err
    assert outcomes_in(journal) == []


async def test_a_signal_that_comes_when_all_is_under_way_interrupts_nothing(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path, journal = csv(tmp_path, CONCURRENCY), tmp_path / "j"
    sandbox.hold()
    arguments = ("bulk", path, "--journal", journal, "--concurrency", str(CONCURRENCY))
    async with Running(arguments, environment_of(sandbox), tmp_path) as command:
        await held(sandbox)
        command.send(signal.SIGTERM)
        await command.says("Finishing the updates under way")
        sandbox.release()
        ended = await command.ends()
    assert ended.code == 0
    assert updated_in(journal) == set(range(1, CONCURRENCY + 1))


SIGNALLED = """
import os, signal, sys
from sinch_conv_async import cli
from sinch_conv_async._job import local as _local

write_failures = _local.write_failures

def signalled(path, form, rows, states):
    def some():
        for row in rows:
            yield row
            os.kill(os.getpid(), signal.{})
    return write_failures(path, form, some(), states)

_local.write_failures = signalled
sys.exit(cli.run())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_while_the_failures_are_written_ends_that_and_reports(
    number: signal.Signals, sandbox: Sandbox, tmp_path: Path
) -> None:
    path, journal, failures = csv(tmp_path, 40), tmp_path / "j", tmp_path / "f"
    failures.write_text("older")
    sandbox.fail_next(404, message_id="ID7")
    arguments = ("bulk", path, "--journal", journal, "--failures", failures, "--output", "json")
    program = (sys.executable, "-W", "error", "-c", SIGNALLED.format(number.name))
    async with Running(arguments, environment_of(sandbox), tmp_path, program) as command:
        ended = await command.ends()
    assert ended.code == 130
    told = ended.json
    assert (told["updated"], told["failed"], told["failures"]) == (39, 1, None)
    assert "f was not written: interrupted" in ended.err
    assert "To try the failed records again: sinch-conv bulk" in ended.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f", "ids.csv", "j"]
    assert failures.read_text() == "older"


# Without its journal, or without a disk


def unlinked(journal: Path) -> None:
    journal.unlink()


def replaced(journal: Path) -> None:
    copy = journal.with_name("copy")
    copy.write_bytes(journal.read_bytes())
    copy.replace(journal)


def emptied(journal: Path) -> None:
    journal.write_bytes(b"")


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (unlinked, "was removed"),
        (replaced, "was replaced"),
        (emptied, "was changed by somebody else"),
    ],
)
async def test_a_journal_that_is_lost_ends_the_job(
    happens: Callable[[Path], None], words: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    path, journal = csv(tmp_path, 400), tmp_path / "j"
    sandbox.hold()
    arguments = (
        "bulk",
        path,
        "--journal",
        journal,
        "--concurrency",
        str(CONCURRENCY),
        "--output",
        "json",
    )
    async with Running(arguments, environment_of(sandbox), tmp_path) as command:
        await held(sandbox)
        happens(journal)
        sandbox.release()
        ended = await command.ends()
    assert ended.code == 3
    assert words in ended.err
    assert (ended.json["updated"], ended.json["exit_code"]) == (0, 3)
    assert len(sandbox.requests) <= 2 * CONCURRENCY


async def test_a_full_disk_ends_the_job_and_the_next_run_repeats_no_success(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path, journal = csv(tmp_path, 400), tmp_path / "j"
    arguments = ("bulk", path, "--journal", journal, "--concurrency", str(CONCURRENCY))
    limited = ("bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *COMMAND)
    async with Running(
        arguments, unmeasured(environment_of(sandbox)), tmp_path, limited
    ) as command:
        ended = await command.ends()
    assert ended.code == 3
    assert "cannot be written: File too large" in ended.err
    assert journal.read_bytes().endswith(b"}\n")
    done, sent = updated_in(journal), len(sandbox.requests)
    assert 0 < len(done) < 400
    assert sandbox.updates_applied - len(done) <= CONCURRENCY
    ended = await sinch_conv(*arguments, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0
    assert not {f"ID{record}" for record in done} & {
        request.message_id for request in sandbox.requests[sent:]
    }
    assert updated_in(journal) == set(range(1, 401))


@pytest.mark.parametrize("piped", [False, True])
async def test_a_disk_that_has_no_room_for_the_failures_says_so(
    sandbox: Sandbox, tmp_path: Path, *, piped: bool
) -> None:
    path = tmp_path / "ids.csv"
    path.write_text(
        "message_id,metadata,more\n" + "".join(f"ID{row},m,{'x' * 40_000}\n" for row in range(3))
    )
    sandbox.fail_next(404, times=3)
    options = ("--journal", tmp_path / "j", "--failures", tmp_path / "f", "--output", "json")
    arguments = ("bulk", "-" if piped else path, *options)
    limited = ("bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *COMMAND)
    async with Running(
        arguments, unmeasured(environment_of(sandbox)), tmp_path, limited
    ) as command:
        ended = await command.ends(path.read_bytes() if piped else None)
    assert ended.code == 1
    assert "f could not be written" in ended.err
    assert (ended.json["failed"], ended.json["failures"]) == (3, None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ids.csv", "j"]


async def test_a_second_copy_of_the_job_is_kept_out(sandbox: Sandbox, tmp_path: Path) -> None:
    path, journal = csv(tmp_path, 40), tmp_path / "j"
    sandbox.hold()
    arguments = ("bulk", path, "--journal", journal, "--concurrency", str(CONCURRENCY))
    async with Running(arguments, environment_of(sandbox), tmp_path) as command:
        await held(sandbox)
        second = await sinch_conv(*arguments, folder=tmp_path, sandbox=sandbox)
        assert second.code == 3
        assert "is in use: another job works with it" in second.err
        sandbox.release()
        ended = await command.ends()
    assert ended.code == 0
    assert sorted(outcomes_in(journal)) == [(record, "updated") for record in range(1, 41)]


async def test_an_input_that_is_changed_meanwhile_ends_the_job(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path, journal = csv(tmp_path, 400), tmp_path / "j"
    sandbox.hold()
    arguments = ("bulk", path, "--journal", journal, "--concurrency", str(CONCURRENCY))
    async with Running(arguments, environment_of(sandbox), tmp_path) as command:
        await held(sandbox)
        with path.open("a") as file:
            file.write("ID401,m\n")
        sandbox.release()
        ended = await command.ends()
    assert ended.code == 2
    assert (
        "was changed while the job was running; its journal goes on only with the file as it was"
        in ended.err
    )
    assert len(sandbox.requests) < 400  # found out at once, and not when all was sent
    assert "ID401" not in sandbox.messages
    ended = await sinch_conv(*arguments, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 3
    assert "belongs to another content of" in ended.err


# As it is seen


@pytest.mark.parametrize(("columns", "sees_a_bar"), [(80, True), (0, False)])
async def test_a_terminal_sees_a_bar(
    columns: int, sees_a_bar: bool, sandbox: Sandbox, tmp_path: Path
) -> None:
    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        shell = ("bash", "-c", f'exec "$@" 2>{os.ttyname(theirs)}', "bash", *COMMAND)
        async with Running(
            ["bulk", csv(tmp_path, 300)], environment_of(sandbox), tmp_path, shell
        ) as command:
            ended = await command.ends()
        os.set_blocking(ours, False)
        try:
            shown = os.read(ours, 65536)
        except BlockingIOError:
            shown = b""
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.code == 0
    assert ended.out.startswith("updated")
    assert "\r" not in ended.out
    assert (b"300/300" in shown and b"\r" in shown) == sees_a_bar


async def test_a_log_sees_lines(sandbox: Sandbox, tmp_path: Path) -> None:
    path = csv(tmp_path, 60)
    ended = await sinch_conv("bulk", path, "--rate", "10", folder=tmp_path, sandbox=sandbox)
    assert ended.code == 0
    first = ended.err.splitlines()[0]
    assert " of 60 (" in first
    assert first.endswith(" left")
    assert all(sign.isprintable() or sign == "\n" for sign in ended.err + ended.out)
