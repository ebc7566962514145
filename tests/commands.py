"""The real command in a process of its own, as a person or a scheduler starts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

import sinch_conv_async

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from sinch_conv_async.sandbox import Sandbox

if sys.version_info < (3, 12):
    # What later Pythons do by themselves: no thread that outlives its process by a moment.
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())

SECRET_METADATA = "metadata-that-nobody-may-see"
COMMAND = (sys.executable, "-W", "error", "-m", "sinch_conv_async")


def environment_of(sandbox: Sandbox | None, **more: str) -> dict[str, str]:
    """An environment that leads to the sandbox; without one, to nowhere."""
    # PYTHONUNBUFFERED would hide what a process does about output that is still buffered at its
    # end.
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SINCH_") and name != "PYTHONUNBUFFERED"
    }
    here = str(Path(sinch_conv_async.__file__).parent.parent)
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    if sandbox is not None:
        options: Mapping[str, Any] = sandbox.client_options()
        clean |= {f"SINCH_{name.upper()}": value for name, value in options.items()}
    return {**clean, **more}


def unmeasured(environment: Mapping[str, str]) -> dict[str, str]:
    """Without coverage's measuring, for processes that are killed before they could say what they ran."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("COVERAGE_PROCESS")
    }


@attrs.frozen
class Ended:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def _takes_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A command under way: ``async with Running(...) as command``. One that is left early is killed."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._arguments = [*command, *map(str, arguments)]
        self._environment = environment
        self._folder = folder
        self._err: list[str] = []

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self._arguments,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=self._environment,
            cwd=self._folder,
            # A shell that runs the tests in the background has them ignore Ctrl-C, and whatever
            # they start too.
            preexec_fn=_takes_interrupts,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.process.communicate()
        # Its pipes are closed by the loop, a pass after the process has ended.
        self.process._transport.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    async def says(self, words: str) -> str:
        """The next line on standard error with these words in it."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self._err.append(line)
            if words in line:
                return line
        raise AssertionError(f"it never said {words!r}: {''.join(self._err)}")

    async def line(self) -> str:
        """The next line on standard output."""
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode()

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ends(self, given: bytes | None = None) -> Ended:
        """How it ended, after this much on its standard input."""
        out, err = await self.process.communicate(
            given or b""
        )  # b"": Python 3.11 leaves standard input open for None
        assert self.process.returncode is not None
        ended = Ended(self.process.returncode, out.decode(), "".join(self._err) + err.decode())
        for word in ("Traceback", "Exception ignored", "Warning: unclosed", "never awaited"):
            assert word not in ended.err, ended.err
        return ended


async def sinch_conv(
    *arguments: str | Path,
    folder: Path,
    sandbox: Sandbox | None = None,
    given: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Runs ``sinch-conv`` with these arguments to its end."""
    async with Running(arguments, {**environment_of(sandbox), **(env or {})}, folder) as command:
        return await command.ends(given)


def csv(folder: Path, rows: int = 20, name: str = "ids.csv") -> Path:
    """A file of updates, of ID1, ID2 and so on, each with its own metadata."""
    path = folder / name
    path.write_text(
        "message_id,metadata\n"
        + "".join(f"ID{row},{SECRET_METADATA}-{row}\n" for row in range(1, rows + 1))
    )
    return path
