"""The pages' transcripts: what is to be typed is run, in order, and says what the page says, but
for numbers.
"""

from __future__ import annotations

import ast
import codeop
import inspect
import re
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sinch_conv_async.sandbox import Sandbox
from tests.commands import COMMAND, Running, environment_of, unmeasured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "how-to" / "five-million.rst"
TUTORIAL = ROOT / "docs" / "tutorial" / "index.rst"
README = ROOT / "README.rst"
MARK = "==== next ===="

# The shell's word on a job of its own, and the line of progress that a job on a slow machine lives
# to write.
BY_THE_WAY = re.compile(
    r"\[\d+\]|[\d,]+ of [\d,]+ \([\d.]+ %\), [\d,]+/s, [\d,]+ failed, [\d:]+ left$"
)

# Under way, and some way on, before Ctrl-C is pressed: a signal to a program that is still loading
# would be another story.
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
        return (
            IN_BACKGROUND.format(command=self.command)
            if self.command.endswith("&")
            else self.command
        )


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
        r" +answers 429 \(too fast\): [0-9]+$", "", line
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
    environment = unmeasured(environment_of(None))
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    # A reader sees both streams in one place; `mark` keeps the exit code for the reader's `echo
    # $?`.
    script = f'exec 2>&1; set -m; mark() {{ code=$?; echo "{MARK}"; return $code; }}\n'
    script += "".join(f"{step.shell}\nmark\n" for step in told)
    async with Running(["-c", script], environment, tmp_path, ("bash",)) as shell:
        ended = await shell.ends()
    said = ended.out.split(f"{MARK}\n")
    for step, text in zip(told, said, strict=False):
        expected = [
            rough(line) for line in step.says if line != "^C" and not BY_THE_WAY.match(line)
        ]
        found = [rough(line) for line in text.splitlines() if not BY_THE_WAY.match(line)]
        # Standard error is printed as it comes, and the summary when the job is over: the order is
        # that of the two streams.
        assert sorted(found) == sorted(expected), f"{step.command}\n{text}"
    assert len(said) == len(told) + 1


def snippets(page: str) -> Iterator[tuple[str, list[str]]]:
    """The Python that is to be typed, each block with the lines that it is said to print; not the
    tests among it.
    """
    blocks = re.findall(
        r"^\.\. code-block:: (python|text)\n\n((?:   .*\n|\n)+)", f"{page}\n", re.MULTILINE
    )
    for number, (language, text) in enumerate(blocks):
        block = textwrap.dedent(text).strip("\n")
        if language == "python" and "def test_" not in block:
            after, says = blocks[number + 1] if number + 1 < len(blocks) else ("", "")
            yield block, textwrap.dedent(says).strip("\n").splitlines() if after == "text" else []


def typed(block: str) -> Iterator[CodeType]:
    """A block as `python -m asyncio` takes it when it is pasted: line by line, with Enter at its
    end.
    """
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    lines: list[str] = []
    for line in [*block.splitlines(), ""]:
        lines.append(line)
        code = compiler("\n".join(lines))
        if code is not None:
            lines.clear()
            yield code
    assert lines == [], f"unfinished:\n{block}"


def test_a_block_that_goes_on_below_its_indented_lines_cannot_be_typed() -> None:
    assert list(typed("if True:\n    pass\n\nprint()"))
    with pytest.raises(SyntaxError):
        list(typed("if True:\n    pass\nprint()"))


def test_readmes_blocks_can_be_pasted_from_where_it_says_so() -> None:
    _, found, page = README.read_text("utf-8").partition("into ``python -m asyncio``")
    assert found
    blocks = [block for block, _ in snippets(page)]
    assert len(blocks) > 4
    for block in blocks:
        assert list(typed(block))


async def test_the_tutorial_can_be_typed_and_prints_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = list(snippets(TUTORIAL.read_text("utf-8")))
    assert sum(bool(says) for _, says in told) > 5
    namespace: dict[str, Any] = {"__name__": "__main__"}
    async with Sandbox(auto_create=True) as sandbox:  # as `sinch-conv sandbox` makes it
        for name, value in sandbox.client_options().items():
            monkeypatch.setenv(f"SINCH_{name.upper()}", str(value))
        for block, says in told:
            for code in typed(block):
                awaitable = eval(code, namespace)
                if inspect.iscoroutine(awaitable):
                    await awaitable
            printed = capsys.readouterr().out.splitlines()
            assert [rough(line) for line in printed] == [rough(line) for line in says], block


def test_every_public_method_of_the_sandbox_has_its_place_in_the_reference() -> None:
    """They stand there one by one, under headings, and not as whatever the class has."""
    page = (ROOT / "docs" / "reference" / "sandbox.rst").read_text("utf-8")
    listed = re.findall(
        r"^\.\. auto(?:method|property):: Sandbox\.(\w+)(?:\(.*\))?$", page, re.MULTILINE
    )
    ours = [cls for cls in Sandbox.__mro__ if cls.__module__.startswith("sinch_conv_async")]
    public = {name for cls in ours for name in vars(cls) if not name.startswith("_")}
    assert sorted(listed) == sorted(public)
