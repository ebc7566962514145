"""The real command in a process of its own, as a person or a scheduler starts it.

A Python that starts and imports takes most of a second, and hundreds are started. So most are
forked from one that has imported everything (tests/whole/forker.py): processes with descriptors, a
folder and an environment of their own. Those that a shell starts, or whose environment Python
itself reads, start as usual.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
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
    # Later Pythons do this by themselves: no thread outlives its process.
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())

SECRET_METADATA = "metadata-that-nobody-may-see"
PYTHON = (sys.executable, "-W", "error", "-m")
COMMAND = (*PYTHON, "sinch_conv_async")


def environment_of(sandbox: Sandbox | None, **more: str) -> dict[str, str]:
    """The environment variables for the sandbox; without a sandbox, for no server."""
    # PYTHONUNBUFFERED would hide how a process handles output that is still buffered at its end.
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
    """Without coverage, for processes that are killed before they can write their data."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("COVERAGE_PROCESS")
    }


async def benchmark(*words: str) -> str:
    """What a module of ``benchmarks`` prints, run unmeasured. It must end with 0."""
    root = Path(__file__).parent.parent
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words),
        cwd=root,
        env={**unmeasured(os.environ), "PYTHONPATH": str(root)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = (said.decode() for said in await process.communicate())
    print(out)
    process._transport.close()  # type: ignore[attr-defined]  # asyncio leaves the pipes to the garbage collector
    assert process.returncode == 0, err
    return out


@attrs.frozen
class Ended:
    """How a command ended, and its output."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def _takes_interrupts() -> None:
    # In a shell's background job, the tests and their children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Report(asyncio.Protocol):
    """The forker's report of a child: its process id, and how it ended."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.pid: asyncio.Future[int] = loop.create_future()
        self.status: asyncio.Future[int] = loop.create_future()
        self._said = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            (self.status if self.pid.done() else self.pid).set_result(int(line))


class Forked:
    """A child of the forker, with the parts of asyncio's ``Process`` that the tests use."""

    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    pid: int

    async def start(self, forker: Forker, request: dict[str, Any]) -> None:
        given, standard_input = socket.socketpair()
        out, standard_output = os.pipe()
        err, standard_error = os.pipe()
        told, report = os.pipe()
        theirs = [standard_input.detach(), standard_output, standard_error, report]
        forker.send(request, theirs)
        for descriptor in theirs:
            os.close(descriptor)
        _, self.stdin = await asyncio.open_connection(sock=given)
        self._transports: list[asyncio.BaseTransport] = [self.stdin.transport]
        self.stdout, self.stderr = [await self._reader(descriptor) for descriptor in (out, err)]
        self._report = _Report()
        await self._connect(told, self._report)
        self.pid = await self._report.pid

    async def _connect(self, descriptor: int, protocol: asyncio.Protocol) -> None:
        loop = asyncio.get_running_loop()
        pipe = open(descriptor, "rb", buffering=0)  # noqa: SIM115  # closed by its transport
        self._transports.append((await loop.connect_read_pipe(lambda: protocol, pipe))[0])

    async def _reader(self, descriptor: int) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        await self._connect(descriptor, asyncio.StreamReaderProtocol(reader))
        return reader

    @property
    def returncode(self) -> int | None:
        status = self._report.status
        return os.waitstatus_to_exitcode(status.result()) if status.done() else None

    async def wait(self) -> int:
        return os.waitstatus_to_exitcode(await asyncio.shield(self._report.status))

    async def communicate(self, given: bytes = b"") -> tuple[bytes, bytes]:
        with contextlib.suppress(ConnectionError):
            self.stdin.write(given)
            await self.stdin.drain()
        self.stdin.close()
        out, err, _ = await asyncio.gather(self.stdout.read(), self.stderr.read(), self.wait())
        return out, err

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        for transport in self._transports:
            transport.close()


class Forker:
    """A Python that has imported the command line, and its children:
    ``with Forker(...) as forker``.
    """

    # Python, the C library, coverage and OpenSSL (for aiohttp) read these before a command begins.
    READ_AT_START = ("COVERAGE", "LANG", "LC_", "LD_", "PYTHON", "SSL_", "TZ")

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def __enter__(self) -> Self:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*PYTHON, "tests.whole.forker", str(theirs.fileno())],
                cwd=Path(__file__).parent.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                preexec_fn=_takes_interrupts,
            )
        return self

    def __exit__(self, *exc: object) -> None:
        self._requests.close()
        ended = self._process.wait()  # on a line of its own: `python -O` drops asserts
        assert ended == 0

    def send(self, request: dict[str, Any], descriptors: list[int]) -> None:
        socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)

    def may_run(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a fork behaves like a newly started Python with these arguments."""
        return command is COMMAND and self._at_start(environment) == self._at_start(
            self._environment
        )

    def _at_start(self, environment: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in environment.items()
            if name.startswith(self.READ_AT_START)
        }


# The one of this run, if there is one: tests/whole/conftest.py.
forkers: list[Forker] = []


class Running:
    """A running command: ``async with Running(...) as command``. It is killed if the block is left
    early.
    """

    process: asyncio.subprocess.Process | Forked

    def __init__(
        self,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
        command: Sequence[str] = COMMAND,
        *,
        forker: Forker | None = None,
    ) -> None:
        self._arguments = [str(argument) for argument in arguments]
        self._environment = environment
        self._folder = folder
        self._command = command
        self._forkers = forkers if forker is None else [forker]
        self._err: list[str] = []

    async def __aenter__(self) -> Self:
        for forker in self._forkers:
            if forker.may_run(self._command, self._environment):
                self.process = Forked()
                request = {
                    "arguments": self._arguments,
                    "folder": str(self._folder),
                    "environment": dict(self._environment),
                }
                await self.process.start(forker, request)
                return self
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            *self._arguments,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=self._environment,
            cwd=self._folder,
            preexec_fn=_takes_interrupts,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.process.communicate()
        # Its pipes are closed by the loop, a pass after the process has ended.
        if isinstance(self.process, Forked):
            self.process.close()
        else:
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
        """How it ended, after this text on its standard input."""
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
