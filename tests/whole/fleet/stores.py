"""A private Redis or PostgreSQL server on a free loopback port, for one test: started, stopped,
killed, frozen.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.whole.faults.programs import free_port, listening, stop

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

# initdb and postgres refuse to run as root; Debian's package brings this user along.
POSTGRES_USER = "postgres"


class Store:
    """A server process in a folder of its own; the folder lives as long as the store."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="sinch-conv-store-"))
        self.process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.resume()
        self.stop()
        shutil.rmtree(self.folder)

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command(),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            user=self.user,
        )
        listening(self.port, self.process, self.host)
        self.ready()

    def ready(self) -> None:
        """Returns when it answers, where listening is not enough."""

    user: str | None = None
    host = "127.0.0.1"

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
            self.process = None

    def kill(self) -> None:
        """Ends it as a power cut does."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def signal_all(self, number: signal.Signals) -> None:
        """Sends a signal to the server and to all processes that it has started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def freeze(self) -> None:
        self.signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal_all(signal.SIGCONT)


class Redis(Store):
    """Keeps nothing on disk: started again, it is empty."""

    def command(self) -> Sequence[str]:
        fixed = (
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        )
        return ("redis-server", *fixed, "--dir", str(self.folder), *self.options)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def tell(self, *words: str) -> str:
        """What redis-cli prints."""
        said = subprocess.run(
            ["redis-cli", "-p", str(self.port), *words], capture_output=True, text=True, check=True
        )
        return said.stdout


@functools.cache
def new_cluster(user: str | None) -> str:
    """The folder of a cluster that nobody has used; made once in a process, and copied."""
    folder = tempfile.mkdtemp(prefix="sinch-conv-cluster-")
    atexit.register(shutil.rmtree, folder)
    if user is not None:
        shutil.chown(folder, user)
    subprocess.run(
        [
            *("initdb", "-D", "data", "-U", "tester", "-A", "trust"),
            *("--no-sync", "-E", "UTF8", "--locale=C"),
        ],
        cwd=folder,
        user=user,
        check=True,
        capture_output=True,
    )
    return f"{folder}/data"


class Postgres(Store):
    """A cluster of its own, run as a user that is not root; durable, so that a restart finds its
    tables.
    """

    user = POSTGRES_USER if os.getuid() == 0 else None

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        subprocess.run(["cp", "-a", new_cluster(self.user), str(self.folder / "data")], check=True)
        if self.user is not None:
            shutil.chown(self.folder, self.user)

    def command(self) -> Sequence[str]:
        fixed = ("-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder), "-c", "fsync=off")
        return ("postgres", "-D", str(self.folder / "data"), *fixed, *self.options)

    def ready(self) -> None:
        # It listens before it lets anybody in.
        while subprocess.run(["pg_isready", "-q", "-d", self.url], check=False).returncode == 1:
            time.sleep(0.02)

    def kill(self) -> None:
        super().kill()
        # What a crash leaves; the port may be taken by a new server at once.
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def signal_all(self, number: signal.Signals) -> None:
        # Each backend is in a process group of its own.
        if self.process is None:
            return
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(
            "utf-8"
        )
        for pid in (self.process.pid, *map(int, children.split())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def url(self) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/postgres"

    def tell(self, *statements: str) -> str:
        """What psql prints, without headings. Each statement is a transaction of its own."""
        words = [word for statement in statements for word in ("-c", statement)]
        said = subprocess.run(
            ["psql", "-qAtX", "-d", self.url, *words], capture_output=True, text=True, check=True
        )
        return said.stdout
