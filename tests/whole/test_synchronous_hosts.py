"""The examples for synchronous hosts, each under the server or worker that its page names, with
many calls at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async.sandbox import Sandbox
from tests.commands import unmeasured

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
CALLS = 60

for name in ("flask", "django", "celery", "procrastinate", "gunicorn", "anyio"):
    pytest.importorskip(name, reason="the examples' packages are not installed (group `examples`)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox(auto_create=True) as sandbox:
        for name, value in sandbox.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        yield sandbox


@contextlib.contextmanager
def running(*command: str, until: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that is asked to stop at the end, and does within 20 seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=unmeasured(os.environ),
    )
    try:
        if until is not None:
            wait_for_port(until, process)
        yield process
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
        assert process.returncode in (0, -signal.SIGTERM), output
        assert "Traceback" not in output, output
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for_port(port: int, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise AssertionError("it never listened")


def put(port: int, target: str) -> int:
    url = f"http://127.0.0.1:{port}/{target}"
    request = urllib.request.Request(url, data=b"new", method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def put_many(port: int, prefix: str) -> set[int]:
    with ThreadPoolExecutor(16) as pool:
        return set(pool.map(lambda number: put(port, f"{prefix}/m{number}"), range(CALLS)))


@pytest.mark.parametrize(
    ("app", "prefix"), [("flask_app:app", "messages"), ("django_app:wsgi", "threads")]
)
def test_threads_of_gunicorn_share_one_client(sandbox, app, prefix):
    port = free_port()
    options = ("--chdir", str(EXAMPLES), "--threads", "8", "-b", f"127.0.0.1:{port}")
    with running("gunicorn", *options, app, until=port):
        assert put_many(port, prefix) == {200}
    assert sandbox.updates_applied == CALLS
    assert len(sandbox.token_requests) == 1


def test_each_worker_process_of_gunicorn_makes_its_own_client_after_the_fork(sandbox):
    port = free_port()
    options = ("--chdir", str(EXAMPLES), "--preload", "--workers", "2", "--threads", "4")
    with running("gunicorn", *options, "-b", f"127.0.0.1:{port}", "flask_app:app", until=port):
        assert put_many(port, "messages") == {200}
    assert sandbox.updates_applied == CALLS
    assert len(sandbox.token_requests) <= 2


def test_flask_answers_errors_as_its_example_says(sandbox):
    port = free_port()
    options = ("--chdir", str(EXAMPLES), "--threads", "8", "-b", f"127.0.0.1:{port}")
    with running("gunicorn", *options, "flask_app:app", until=port):
        sandbox.fail_next(404)
        assert put(port, "messages/m") == 404
        sandbox.fail_next(429, times=20, retry_after=60)
        assert put(port, "messages/m") == 503


def test_django_under_asgi_uses_one_client_from_both_kinds_of_views(sandbox):
    port = free_port()
    options = ("--app-dir", str(EXAMPLES), "--port", str(port), "django_app:asgi")
    with running("uvicorn", *options, until=port):
        assert put_many(port, "async") == {200}
        assert put_many(port, "sync") == {200}
    assert sandbox.updates_applied == 2 * CALLS
    assert len(sandbox.token_requests) == 1


@pytest.mark.needs_program("redis-server")
def test_celerys_threads_share_one_client(sandbox, tmp_path, monkeypatch):
    port = free_port()
    server = shutil.which("redis-server")
    assert server is not None
    redis = subprocess.Popen(
        [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    try:
        monkeypatch.setenv("CELERY_BROKER_URL", f"redis://127.0.0.1:{port}/0")
        worker = ("celery", "--workdir", str(EXAMPLES), "-A", "celery_app", "worker")
        send = (
            "from celery_app import tag\n"
            f"for number in range({CALLS}):\n"
            "    tag.delay(f'm{number}', 'new')\n"
        )
        environment = {**unmeasured(os.environ), "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{ROOT}"}
        subprocess.run([sys.executable, "-c", send], env=environment, check=True, timeout=60)
        with running(*worker, "-P", "threads", "-c", "8", "--without-gossip", "--without-mingle"):
            sandbox.run(sandbox.wait_for_requests(CALLS), timeout=120)
        assert sandbox.updates_applied == CALLS
        assert len(sandbox.token_requests) == 1
    finally:
        redis.terminate()
        redis.wait()


def test_procrastinate_runs_both_kinds_of_tasks(sandbox):
    program = f"""
import asyncio
from procrastinate.testing import InMemoryConnector
import procrastinate_app
from sync_client import sinch

async def main():
    with procrastinate_app.app.replace_connector(InMemoryConnector()) as app:
        async with app.open_async():
            for number in range({CALLS}):
                task = app.tasks["procrastinate_app." + ("tag", "tag_in_a_thread")[number % 2]]
                await task.defer_async(message_id=f"m{{number}}", metadata="new")
            await app.run_worker_async(wait=False, concurrency=8, listen_notify=False)
    await procrastinate_app.client.close()

asyncio.run(main())
"""
    environment = {**unmeasured(os.environ), "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sandbox.updates_applied == CALLS
    assert len(sandbox.token_requests) == 2  # one for each of the two clients


def test_a_synchronous_program_runs_a_job_on_the_portal(sandbox):
    program = """
from sync_client import sinch

async def close_all(client, ids):
    updates = [(message_id, "closed") for message_id in ids]
    return [outcome.ok async for outcome in client.update_many(updates)]

print(sinch.run(close_all, ["m1", "m2"]))
print(sinch.update_message_metadata("m1", "open").metadata)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**unmeasured(os.environ), "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[True, True]\nopen\n", "")
    assert len(sandbox.token_requests) == 1


def test_a_client_that_threads_share_without_the_portal_says_where_to_read(sandbox):
    program = """
import asyncio, threading
from sinch_conv_async import ClientStateError, ConversationClient
client = ConversationClient.from_env()
ready, over = threading.Event(), threading.Event()

async def first():
    await client.update_message_metadata("m", "x")
    ready.set()
    await asyncio.to_thread(over.wait)
    await client.close()

thread = threading.Thread(target=asyncio.run, args=(first(),))
thread.start()
ready.wait()
try:
    asyncio.run(client.update_message_metadata("m", "y"))
except ClientStateError as error:
    print(error)
over.set()
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "docs/how-to/synchronous-hosts" in done.stdout
    assert (ROOT / "docs/how-to/synchronous-hosts.rst").is_file()
