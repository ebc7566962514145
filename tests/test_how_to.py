"""The pages' shell transcripts: every command is run, in order, and says what the page says, but for numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from tests.commands import COMMAND, Running, environment_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "five-million.rst"
MARK = "==== next ===="

# The shell's word on a job of its own, and the line of progress that a job on a slow machine lives to write.
BY_THE_WAY = re.compile(r"\[\d+\]|[\d,]+ of [\d,]+ \([\d.]+ %\), [\d,]+/s, [\d,]+ failed, [\d:]+ left$")

# Under way, and some way on, before Ctrl-C is pressed: a signal to a program that is still loading would be another story.
INTERRUPTED = """
{command} & job=$!
until [ "$(wc -l < messages.csv.journal.jsonl)" -gt 1000 ]; do sleep 0.05; done 2>/dev/null
kill -INT $job; wait $job"""

# What a reader does without knowing: looks whether it is there, before typing on.
IN_BACKGROUND = """{command}
until [ "$(wc -l < sandbox.env)" -ge 5 ]; do sleep 0.05; done"""


@attrs.define
class Step:
    command: str
    says: list[str] = attrs.field(factory=list)

    @property
    def shell(self) -> str:
        if self.says[:1] == ["^C"]:
            return INTERRUPTED.format(command=self.command)
        return IN_BACKGROUND.format(command=self.command) if self.command.endswith("&") else self.command


def steps(page: str) -> Iterator[Step]:
    """The commands of the console blocks, each with the lines that it is said to print."""
    for block in re.findall(r"^\.\. code-block:: console\n\n((?:   .*\n|\n)+)", page, re.MULTILINE):
        step = None
        for line in block.splitlines():
            if line.startswith("   $ "):
                if step is not None:
                    yield step
                step = Step(line.removeprefix("   $ "))
            elif line.strip():
                assert step is not None, line
                step.says.append(line[3:])
        assert step is not None, block
        yield step


def rough(line: str) -> str:
    """Without numbers, digests and columns, which differ from run to run."""
    line = re.sub(
        r" +[0-9]+ of them for being too fast \(429\)$", "", line
    )  # on a machine that does other things too
    return " ".join(re.sub(r'"[0-9a-f]{16}"|[0-9][0-9,.:]*', "#", line).split())


def test_a_transcript_is_read_as_commands_and_what_they_say() -> None:
    page = ".. code-block:: console\n\n   $ a\n   b 1\n     c\n   $ d\n\ntext\n\n.. code-block:: console\n\n   $ e\n   ^C\n"
    assert list(steps(page)) == [Step("a", ["b 1", "  c"]), Step("d"), Step("e", ["^C"])]


def test_only_numbers_may_differ() -> None:
    assert rough("updated   1,402  of 4,000 in 0:02") == rough("updated 7 of 12 in 1:00:00")
    assert rough("updated 7 of 12") != rough("failed 7 of 12")


async def test_the_page_can_be_followed_word_for_word(tmp_path: Path) -> None:
    told = list(steps(PAGE.read_text("utf-8")))
    assert len(told) > 10
    program = tmp_path / "bin" / "sinch-conv"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    environment = environment_of(None)
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    # A reader sees both streams in one place; `mark` keeps the exit code for the reader's `echo $?`.
    script = f'exec 2>&1; set -m; mark() {{ code=$?; echo "{MARK}"; return $code; }}\n'
    script += "".join(f"{step.shell}\nmark\n" for step in told)
    async with Running(["-c", script], environment, tmp_path, ("bash",)) as shell:
        ended = await shell.ends()
    said = ended.out.split(f"{MARK}\n")
    for step, text in zip(told, said, strict=False):
        expected = [rough(line) for line in step.says if line != "^C"]
        found = [rough(line) for line in text.splitlines() if not BY_THE_WAY.match(line)]
        # Standard error is printed as it comes, and the summary when the job is over: the order is that of the two streams.
        assert sorted(found) == sorted(expected), f"{step.command}\n{text}"
    assert len(said) == len(told) + 1
