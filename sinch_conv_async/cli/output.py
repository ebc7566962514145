"""The output of a command: the result on standard output, everything else on standard error.

If standard error cannot be written, the command and its exit code do not change. If standard output
cannot be written, the exit code changes, because the result is lost.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Generator
from typing import Any, Final, TextIO

import click

__all__ = [
    "INTERRUPTED",
    "REFUSED",
    "SOME_FAILED",
    "USAGE",
    "Ended",
    "PrintingCommand",
    "PrintingGroup",
    "printing",
    "put",
    "put_json",
    "say",
]

SOME_FAILED: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
INTERRUPTED: Final = 130
"""128 plus SIGINT, as in shells."""


class Ended(click.ClickException):
    """Ends the command with this sentence and this exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads the attribute of the instance

    def show(self, file: Any = None) -> None:
        """Print the sentence."""
        say(f"Error: {self.message}")


@contextlib.contextmanager
def printing(done: str = "", code: int = 0) -> Generator[None]:
    """Around output to standard output.

    If it cannot be written, the command says so and what is ``done``, and ends with ``code``, or
    with 1 instead of 0. A reader that has left is not an error.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EPIPE:
            problem = f"standard output cannot be written: {error.strerror}{done}"
            raise Ended(problem, code or SOME_FAILED) from None


class PrintingCommand(click.Command):
    """A command that prints --help and --version with the functions of this file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The remaining arguments."""
        with printing():
            return super().parse_args(ctx, args)
        raise click.exceptions.Exit(0)


class PrintingGroup(PrintingCommand, click.Group):
    """A group of such commands."""

    command_class = PrintingCommand


def put(text: str, *, done: str = "", code: int = 0) -> bool:
    """Write to standard output, and return whether it still has a reader.

    A character that its encoding lacks is written as an escape.
    """
    if sys.stdout is None or sys.stdout.closed:
        return False
    with printing(done, code):
        _write(sys.stdout, text)
        return True
    return False


def put_json(document: Any, *, indent: int | None = None, done: str = "", code: int = 0) -> bool:
    """Write a JSON document as :func:`put` does.

    It is ASCII with escapes if a character could harm a terminal or is missing in the encoding.
    """
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        plain = all(map(str.isprintable, text.split("\n"))) and bool(text.encode(encoding))
    except UnicodeEncodeError:
        plain = False
    return put(text if plain else json.dumps(document, indent=indent), done=done, code=code)


def say(sentence: str) -> None:
    """Write to standard error, if that is possible."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            _write(sys.stderr, sentence)


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(f"{text}\n")
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
