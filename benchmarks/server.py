"""A server that is not ours: one nginx worker on loopback, returning the recorded answer.

Knows nothing of the clients. nginx returns the id it was asked for, because a careful client checks
that.
"""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import sample

_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    default_type application/json;
    # A connection that nginx closes in the middle of a round would measure reconnecting instead.
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    keepalive_time 10h;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location = /oauth2/token {{ return 200 '{token_answer}'; }}
        location ~ "^/v1/projects/[^/]+/messages/([^/]+)$" {{ return 200 '{answer}'; }}
        location ~ "^/v1/projects/[^/]+/messages$" {{
            root {pages};
            try_files /$arg_page_token.json =404;
        }}
    }}
}}
"""


class ServerMissingError(Exception):
    """nginx is not installed, or did not come up."""


@contextlib.contextmanager
def nginx(*, pages: Path | None = None) -> Iterator[str]:
    """Yields the origin of a running nginx and stops it afterwards; raises `ServerMissingError`.

    ``pages``: a folder with the pages of a list, each named by its page token, the first by none.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise ServerMissingError(
            "nginx is not installed; the benchmark needs a server that is not ours"
        )
    with tempfile.TemporaryDirectory(prefix="sinch-bench-") as directory:
        port = _free_port()
        configuration = Path(directory, "nginx.conf")
        configuration.write_text(
            _CONFIGURATION.format(
                directory=directory,
                port=port,
                pages=directory if pages is None else pages,
                token_answer=_quoted(sample.TOKEN_ANSWER),
                answer=_quoted(sample.answer("@")).replace("@", "$1"),
            )
        )
        process = subprocess.Popen(
            [program, "-e", "stderr", "-p", directory, "-c", str(configuration)],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _wait_until_listening(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate(timeout=10)


def version() -> str:
    """What nginx says of itself, such as ``nginx/1.26.2``."""
    program = (
        shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or "nginx"
    )
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    return said.rpartition(": ")[2].strip()


def _quoted(body: str) -> str:
    """A body as it stands between single quotes in nginx's configuration, where ``$`` begins a
    variable.
    """
    if "$" in body:
        raise ValueError("nginx has no escape for a dollar sign in a returned body")
    return body.replace("\\", "\\\\").replace("'", "\\'")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_until_listening(port: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerMissingError(f"nginx did not start: {process.communicate()[1].strip()}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise ServerMissingError(f"nginx did not listen on port {port} within 10 s")
