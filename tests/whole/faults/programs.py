"""Servers that are not ours, started for one test on free loopback ports and stopped with it,
whatever became of the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from tests.commands import unmeasured

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parent.parent.parent.parent

# A program that has not come up by then will not.
START_SECONDS = 10.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def listening(port: int, process: subprocess.Popen[Any], host: str = "127.0.0.1") -> None:
    """Returns as soon as somebody accepts connections there; fails when the program has ended
    instead.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError(f"{process.args!r} does not listen on port {port}")


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends a program and whatever it has started, politely and then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
        break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


# nginx

TOKEN_ANSWER = '{"access_token":"nginx-token","expires_in":3599,"scope":"","token_type":"bearer"}'

# What it answers an update with: the id that it was asked for, and the metadata that
# `matrix.updates` has for it.
UPDATED = '{"id":"$1","metadata":"set-$1"}'

_NGINX = """
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile 4096;
{main}
pid {directory}/nginx.pid;
events {{ worker_connections 2000; }}
http {{
    # One line an answer, written as soon as it is given: the log that says what was applied.
    log_format calls '$msec $status $connection $server_port $request_method $sent_authorization $uri';
    map $http_authorization $sent_authorization {{ default yes; "" no; }}
    access_log {directory}/access.log calls;
    default_type application/json;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000;
    {http}
}}
"""


@attrs.frozen
class Logged:
    """One line of nginx's access log."""

    time: float
    status: int
    connection: int
    port: int
    method: str
    authorized: bool
    uri: str

    @property
    def message_id(self) -> str:
        return self.uri.rpartition("/")[2]


class Nginx:
    """One nginx with one worker, in the foreground, in a process group of its own."""

    def __init__(
        self,
        directory: Path,
        http: str,
        *,
        main: str = "",
        before: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self.directory = directory
        self._main = main
        self.host = host
        self.port = free_port()
        self._before = before
        self.configure(http)
        self._process: subprocess.Popen[Any] | None = None

    @property
    def origin(self) -> str:
        return f"http://{self.host}:{self.port}"

    def configure(self, http: str) -> None:
        user = "user root;" if os.getuid() == 0 else ""
        configuration = _NGINX.format(
            directory=self.directory,
            user=user,
            main=self._main,
            http=http.replace("@port", str(self.port)),
        )
        (self.directory / "nginx.conf").write_text(configuration)

    def start(self) -> None:
        command = ["nginx", "-e", str(self.directory / "error.log"), "-p", str(self.directory)]
        self._process = subprocess.Popen(
            [*self._before, *command, "-c", str(self.directory / "nginx.conf")],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        listening(self.port, self._process, self.host)

    def reload(self) -> None:
        """New workers take over; the old ones close what is idle, and finish what they have begun
        if they are given the time.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Ends it with all its connections, now."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)

    def log(self) -> list[Logged]:
        # A line is written after its answer has left. One more answer from the same worker, and
        # those before it are there.
        with socket.create_connection((self.host, self.port), 5) as connection:
            connection.sendall(b"GET /log HTTP/1.0\r\n\r\n")
            while connection.recv(4096):
                pass
        lines = []
        for line in (self.directory / "access.log").read_text().splitlines():
            moment, status, connection, port, method, authorized, uri = line.split(" ")
            if uri != "/log":
                lines.append(
                    Logged(
                        float(moment),
                        int(status),
                        int(connection),
                        int(port),
                        method,
                        authorized == "yes",
                        uri,
                    )
                )
        return lines

    def applied(self, *, port: int | None = None) -> Counter[str]:
        """How often each message was updated."""
        return Counter(
            line.message_id
            for line in self.log()
            if line.method == "PATCH" and line.status == 200 and port in (None, line.port)
        )

    def attempts(self) -> int:
        """Updates that reached it, whatever it answered."""
        return sum(line.method == "PATCH" for line in self.log())

    @property
    def options(self) -> dict[str, Any]:
        """What makes a client speak to it."""
        return options(self.origin)


def options(origin: str) -> dict[str, Any]:
    return {
        "project_id": "project",
        "key_id": "key",
        "key_secret": "secret",
        "conversation_origin": origin,
        "auth_origin": origin,
    }


def api(
    server: str = "", update: str = f"return 200 '{UPDATED}';", listen: str = "127.0.0.1:@port"
) -> str:
    """An nginx server that gives tokens and updates messages."""
    return f"""
    server {{
        listen {listen} backlog=1024;
        {server}
        location = /oauth2/token {{ return 200 '{TOKEN_ANSWER}'; }}
        location ~ "^/v1/projects/[^/]+/messages/([^/]+)$" {{ {update} }}
    }}
    """


@contextlib.contextmanager
def nginx(
    http: str,
    *,
    main: str = "",
    before: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[Nginx]:
    with tempfile.TemporaryDirectory(prefix="faults-nginx-") as directory:
        server = Nginx(Path(directory), http, main=main, before=before, host=host)
        if port is not None:
            server.port = port
            server.configure(http)
        try:
            server.start()
            yield server
        finally:
            server.stop()


# The sandbox, in a process of its own: behind a proxy that is not ours it is what says what was
# applied.


@attrs.frozen
class Record:
    """One request as the sandbox recorded it."""

    time: float
    message_id: str | None
    status: int | None
    applied: bool


class Backend:
    """A sandbox in another process, told what to do through a pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.options: dict[str, Any] = json.loads(process.stdout.readline())

    @property
    def origin(self) -> str:
        origin: str = self.options["conversation_origin"]
        return origin

    @property
    def port(self) -> int:
        return int(self.origin.rpartition(":")[2])

    def do(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Calls a method of the sandbox, or sets an attribute of it where there is no
        such method.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments, keywords]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def requests(self) -> list[Record]:
        return [Record(*record) for record in self.do("requests")]

    def token_requests(self) -> int:
        return len(self.do("token_requests"))

    def applied(self) -> Counter[str]:
        return Counter(str(record.message_id) for record in self.requests() if record.applied)

    def metadata(self) -> dict[str, str]:
        """What each message was set to last."""
        found: dict[str, str] = self.do("metadata")
        return found

    def forget(self) -> None:
        """Forgets what has arrived, so that the next run is counted alone."""
        self.do("forget")


@contextlib.contextmanager
def backend(*, environment: dict[str, str] | None = None, **keywords: Any) -> Iterator[Backend]:
    """``keywords`` are the sandbox's; it makes up every message that it is asked for."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.whole.faults.backend",
            json.dumps({"auto_create": True, **keywords}),
        ],
        cwd=ROOT,
        env={**unmeasured(os.environ), **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Backend(process)
    finally:
        stop(process)


# haproxy

_HAPROXY = """
global
    maxconn 4000
    stats socket {directory}/runtime.sock mode 600 level admin
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout http-keep-alive 30s
    retries 0
frontend entry
    bind 127.0.0.1:{port}
    default_backend api
frontend refusal
    # A backend that is there and cannot serve.
    bind 127.0.0.1:{refusing}
    http-request return status 503 content-type text/html string "<html><body><h1>503</h1></body></html>"
backend api
    balance roundrobin
    http-reuse always
{servers}
"""


class Haproxy:
    """One haproxy, and its runtime interface: which of its backends are in use is changed while it
    runs.
    """

    def __init__(self, directory: Path, servers: dict[str, int]) -> None:
        self.directory = directory
        self.port, refusing = free_port(), free_port()
        lines = [
            f"    server {name} 127.0.0.1:{port}"
            for name, port in {**servers, "refusing": refusing}.items()
        ]
        self.servers = [*servers, "refusing"]
        self.path = directory / "haproxy.cfg"
        self.path.write_text(
            _HAPROXY.format(
                directory=directory, port=self.port, refusing=refusing, servers="\n".join(lines)
            )
        )

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self, line: str) -> str:
        """One command of the runtime interface (haproxy's management guide, chapter 9.3)."""
        with socket.socket(socket.AF_UNIX) as runtime:
            runtime.connect(str(self.directory / "runtime.sock"))
            runtime.sendall(f"{line}\n".encode())
            answer = b""
            while data := runtime.recv(65536):
                answer += data
        return answer.decode()

    def use(self, *names: str) -> None:
        """These backends serve, the others are in maintenance; with none of them haproxy answers
        503 itself.
        """
        for name in self.servers:
            answer = self.command(
                f"set server api/{name} state {'ready' if name in names else 'maint'}"
            )
            assert not answer.strip(), answer

    def requests(self) -> int:
        """Requests that its front has had, by its own count."""
        header, *lines = self.command("show stat").lstrip("# ").splitlines()
        names = header.split(",")
        for line in lines:
            fields = dict(zip(names, line.split(","), strict=False))
            if (fields.get("pxname"), fields.get("svname")) == ("entry", "FRONTEND"):
                return int(fields["req_tot"])
        raise AssertionError("haproxy has no statistics of its front")


@contextlib.contextmanager
def haproxy(**servers: int) -> Iterator[Haproxy]:
    """``servers``: the port of each backend by its name; ``refusing``, which answers 503, is always
    there.
    """
    with tempfile.TemporaryDirectory(prefix="faults-haproxy-") as directory:
        server = Haproxy(Path(directory), servers)
        process = subprocess.Popen(
            ["haproxy", "-db", "-q", "-f", str(server.path)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            listening(server.port, process)
            yield server
        finally:
            stop(process)


# tinyproxy

_TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 500
Allow 127.0.0.1
DisableViaHeader Yes
LogLevel Connect
LogFile "{directory}/tinyproxy.log"
{more}
"""


class Tinyproxy:
    """One forward proxy."""

    def __init__(self, directory: Path, more: str) -> None:
        self.directory = directory
        self.port = free_port()
        self._configuration = directory / "tinyproxy.conf"
        self._configuration.write_text(
            _TINYPROXY.format(port=self.port, directory=directory, more=more)
        )
        self._process: subprocess.Popen[Any] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["tinyproxy", "-d", "-c", str(self._configuration)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        listening(self.port, self._process)

    def kill(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)

    def connects(self) -> int:
        """Tunnels that it was asked for."""
        return (self.directory / "tinyproxy.log").read_text().count("CONNECT ")


@contextlib.contextmanager
def tinyproxy(more: str = "") -> Iterator[Tinyproxy]:
    with tempfile.TemporaryDirectory(prefix="faults-tinyproxy-") as directory:
        if os.getuid() == 0:
            more += "\nUser root\nGroup root\n"
        proxy = Tinyproxy(Path(directory), more)
        try:
            proxy.start()
            yield proxy
        finally:
            proxy.stop()


def program(name: str) -> str | None:
    return shutil.which(name)
