"""The programs in examples/, each started as a reader would start it and driven by a real client,
with a sandbox behind it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme

from sinch_conv_async import ConversationClient, NotFoundError, SessionManager, TokenError
from sinch_conv_async.sandbox import Sandbox
from tests.commands import unmeasured

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
ID = "01FC66621XXXXX119Z8PMV1QPA"
SECRETS = (
    "sandbox-key-secret",
    "Bearer",
    base64.b64encode(b"sandbox-key-id:sandbox-key-secret").decode(),
)
# Linux' and macOS' way of asking a process to stop; Windows has no SIGTERM that a program could
# answer.
posix = pytest.mark.skipif(os.name == "nt", reason="no SIGTERM to answer on Windows")

pytest.importorskip(
    "fastapi", reason="the examples' packages are not installed (dependency group `examples`)"
)


def example(name: str) -> ModuleType:
    """The example as a module: for those that are functions to be called, or an application to be
    served.
    """
    spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(sandbox: Sandbox) -> dict[str, str]:
    options = sandbox.client_options()
    return {f"SINCH_{name.upper()}": str(value) for name, value in options.items()}


@pytest.fixture
async def sandbox(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sandbox]:
    """A sandbox with one message, and an environment that leads to it, for this process and those
    that it starts.
    """
    async with Sandbox() as sandbox:
        sandbox.add_message(ID, metadata="old")
        for name, value in environment(sandbox).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONWARNINGS", "error::ResourceWarning")
        yield sandbox


class Program:
    """A process of an example's, its output line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def reads(self, pattern: str) -> re.Match[str]:
        """Reads on to the line that has this in it."""
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"ended without {pattern!r}:\n{''.join(self.lines)}")

    async def ends(self) -> int:
        """The exit code, once all output has been read."""
        assert self.process.stdout is not None
        self.lines += [line.decode() async for line in self.process.stdout]
        return await self.process.wait()

    @property
    def output(self) -> str:
        return "".join(self.lines)


def reaped(process: asyncio.subprocess.Process) -> None:
    """What asyncio leaves to later: the pipes to the garbage collector, on Python 3.11 a thread to
    its own last line.
    """
    process._transport.close()  # type: ignore[attr-defined]  # there is no public way
    if sys.version_info < (3, 12):
        # Of a watcher that has threads: where the kernel has pidfd, it is another one.
        thread = getattr(asyncio.get_child_watcher(), "_threads", {}).get(process.pid)
        if thread is not None:
            thread.join()


@contextlib.asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=ROOT,
        env=unmeasured(os.environ),
    )
    program = Program(process)
    try:
        yield program
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
        reaped(process)


async def run(*arguments: str) -> Program:
    async with running(*arguments) as program:
        await program.ends()
    return program


@contextlib.asynccontextmanager
async def uvicorn(app: str) -> AsyncIterator[tuple[Program, aiohttp.ClientSession]]:
    """An application under uvicorn, in a process of its own, and somebody who uses it."""
    arguments = ("-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "0", "--no-access-log", app)
    async with running(*arguments) as program:
        origin = (await program.reads(r"running on (http://\S+)")).group(1)
        async with aiohttp.ClientSession(origin) as user:
            yield program, user


# Web services


@posix
async def test_fastapi_updates_a_message_and_stops_cleanly(sandbox: Sandbox) -> None:
    async with uvicorn("fastapi_app:app") as (program, user):
        async with user.put(f"/messages/{ID}/metadata", json={"metadata": "new"}) as answer:
            assert answer.status == 200
            assert (await answer.json())["metadata"] == "new"
        assert sandbox.messages[ID].metadata == "new"
        program.process.send_signal(signal.SIGTERM)
        await program.ends()
    assert "Application shutdown complete" in program.output
    assert "Warning" not in program.output
    assert sandbox.open_connections == 0


@posix
async def test_fastapi_finishes_what_is_queued_before_it_stops(sandbox: Sandbox) -> None:
    ids = [f"{ID}-{number}" for number in range(20)]
    for message_id in ids:
        sandbox.add_message(message_id)
    async with uvicorn("fastapi_app:app") as (program, user):
        sandbox.hold()
        async with user.post("/tickets/42/close", json={"message_ids": ids}) as answer:
            assert answer.status == 202
            assert await answer.json() == {"accepted": 20}
        await sandbox.wait_for_requests(20)
        program.process.send_signal(signal.SIGTERM)
        await program.reads("Shutting down")
        sandbox.release()
        await program.ends()
    assert "Application shutdown complete" in program.output
    assert all(
        sandbox.messages[message_id].metadata == '{"ticket": "42", "state": "closed"}'
        for message_id in ids
    )


@contextlib.asynccontextmanager
async def process(app: str) -> AsyncIterator[tuple[Program, aiohttp.ClientSession]]:
    """One of the three services in a process of its own, and somebody who uses it."""
    if app != "aiohttp_app":
        async with uvicorn(f"{app}:app") as started:
            yield started
        return
    async with running("-u", "examples/aiohttp_app.py") as program:
        origin = (await program.reads(r"Running on (http://\S+)")).group(1)
        async with aiohttp.ClientSession(origin) as user:
            yield program, user


@posix
@pytest.mark.parametrize("app", ["fastapi_app", "starlette_app", "aiohttp_app"])
async def test_a_service_that_is_told_to_stop_in_an_outage_is_soon_gone_and_names_each_message(
    app: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "0")
    ids = [f"{ID}-{number}" for number in range(10)]
    async with process(app) as (program, user):
        await sandbox.close()
        for number, message_id in enumerate(ids):
            body = {"message_ids": [message_id]}
            async with user.post(f"/tickets/{number}/close", json=body) as answer:
                assert (answer.status, await answer.json()) == (202, {"accepted": 1})
        late = [
            asyncio.create_task(
                user.put(f"/messages/late-{number}/metadata", **put_body(app, "new"))
            )
            for number in range(10)
        ]
        await asyncio.sleep(0.1)  # they are under way
        program.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            await program.ends()
        for answer in await asyncio.gather(*late):
            assert answer.status in (502, 503)
            answer.close()
    for message_id in ids:
        assert f"{message_id} was not updated: the service ended" in program.output
    for number in range(10):
        assert f"/messages/late-{number}/metadata" in program.output
    assert "Traceback" not in program.output
    assert "Warning" not in program.output


def put_body(app: str, metadata: str) -> dict[str, Any]:
    """What the three services take as the body of their PUT."""
    return {"json": {"metadata": metadata}} if app == "fastapi_app" else {"data": metadata}


@posix
@pytest.mark.parametrize("app", ["fastapi_app:app", "starlette_app:app"])
async def test_a_service_with_a_wrong_secret_does_not_start(
    app: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINCH_KEY_SECRET", "wrong-secret")
    arguments = ("-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "0", app)
    program = await run(*arguments)
    assert program.process.returncode == 3  # uvicorn's own code for a startup that failed
    assert "invalid_client" in program.output
    assert "wrong-secret" not in program.output


@posix
async def test_starlette_updates_a_message_and_stops_cleanly(sandbox: Sandbox) -> None:
    async with uvicorn("starlette_app:app") as (program, user):
        async with user.put(f"/messages/{ID}/metadata", data="new") as answer:
            assert (answer.status, (await answer.json())["metadata"]) == (200, "new")
        program.process.send_signal(signal.SIGTERM)
        await program.ends()
    assert "Application shutdown complete" in program.output
    assert sandbox.open_connections == 0


@contextlib.asynccontextmanager
async def aiohttp_web() -> AsyncIterator[aiohttp.ClientSession]:
    """The application of aiohttp.web, in this process, and somebody who uses it."""
    module = example("aiohttp_app")
    runner = aiohttp.web.AppRunner(module.make_app())
    await runner.setup()
    try:
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        _, port = runner.addresses[0]
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as user:
            yield user
    finally:
        await runner.cleanup()
    assert runner.app[module.CLIENT].closed


async def test_aiohttp_updates_a_message_and_closes_its_client(sandbox: Sandbox) -> None:
    async with aiohttp_web() as user, user.put(f"/messages/{ID}/metadata", data="new") as answer:
        assert (answer.status, (await answer.json())["metadata"]) == (200, "new")


Put = Callable[..., Awaitable[int]]


@contextlib.asynccontextmanager
async def service(app: str) -> AsyncIterator[Put]:
    """One of the three, and what it answers to an update: the status, with no secret and a time to
    come back where it is 503.
    """
    async with contextlib.AsyncExitStack() as stack:
        if app == "aiohttp_app":
            user = await stack.enter_async_context(aiohttp_web())
        else:
            _, user = await stack.enter_async_context(uvicorn(f"{app}:app"))

        async def put(message_id: str = ID, metadata: str = "new") -> int:
            target = f"/messages/{message_id}/metadata"
            async with user.put(target, **put_body(app, metadata)) as answer:
                text = await answer.text()
                assert not any(secret in text for secret in SECRETS)
                assert ("Retry-After" in answer.headers) == (answer.status == 503)
                return answer.status

        yield put


@pytest.fixture(
    params=[
        pytest.param("fastapi_app", marks=posix),
        pytest.param("starlette_app", marks=posix),
        "aiohttp_app",
    ]
)
def app(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_services_answer_errors_by_the_pages_rule(app: str, sandbox: Sandbox) -> None:
    async with service(app) as put:
        assert await put() == 200
        assert await put("unknown") == 404
        assert await put(metadata="x" * 1025) == 422
        sandbox.fail_next(400)
        assert await put() == 502
        sandbox.redirect_next(302, "https://elsewhere.example/")
        assert await put() == 502
        sandbox.fail_next(429, retry_after=1000)
        assert await put() == 503
        sandbox.rotate_secret("sandbox-key-id", "another-secret")
        sandbox.revoke_tokens()
        assert await put() == 502
        assert [request.status for request in sandbox.requests] == [200, 404, 400, 302, 429, 401]


async def test_services_answer_503_to_an_update_that_would_be_too_late(
    app: str, sandbox: Sandbox
) -> None:
    async with service(app) as put:
        sandbox.fail_next(429, retry_after=60)
        assert await put() == 503
        assert await put() == 503
        assert len(sandbox.requests) == 1


async def test_services_answer_502_where_no_answer_came(
    app: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that nobody vouches for is not tried again, so this is a TransportError without
    a wait.
    """
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server)
    async with Sandbox(ssl=server) as stranger:
        monkeypatch.setenv("SINCH_CONVERSATION_ORIGIN", stranger.origin)
        async with service(app) as put:
            assert await put() == 502
        assert stranger.requests == []


# A service under load

RATE = 500
SECONDS = 4


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@posix
@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="counts another process's descriptors in /proc"
)
async def test_a_service_under_load_loses_nothing_leaks_nothing_and_stops_gracefully(
    sandbox: Sandbox,
) -> None:
    """500 requests a second through uvicorn, on one client; then SIGTERM with requests
    under way.
    """
    total, last = RATE * SECONDS, 50
    ids = [f"{ID}-{number}" for number in range(total + last)]
    for message_id in ids:
        sandbox.add_message(message_id)

    async def put(message_id: str) -> int:
        async with user.put(f"/messages/{message_id}/metadata", json={"metadata": "new"}) as answer:
            await answer.read()
            return answer.status

    async def stats() -> dict[str, int]:
        async with user.get("/stats") as answer:
            return await answer.json()

    async with uvicorn("fastapi_app:app") as (program, user):
        assert await put(ids[0]) == 200
        pid = program.process.pid
        before = descriptors(pid)

        loop = asyncio.get_running_loop()
        began, requests = loop.time(), []
        for number in range(1, total):
            # Each at its own time, so that a service that is slow for a moment gets no less to do.
            await asyncio.sleep(began + number / RATE - loop.time())
            requests.append(asyncio.create_task(put(ids[number])))
        assert await asyncio.gather(*requests) == [200] * (total - 1)

        assert await stats() == {
            "calls": total,
            "attempts": total,
            "token_requests": 1,
            "in_flight": 0,
            "waiting": 0,
        }
        # What it has more open than before are connections that are kept: the user's and the
        # sandbox's, each counted.
        kept = (
            len([key for keys in user.connector._conns.values() for key in keys])
            + sandbox.open_connections
        )
        assert descriptors(pid) <= before + kept

        sandbox.hold()
        under_way = [asyncio.create_task(put(message_id)) for message_id in ids[total:]]
        await sandbox.wait_for_requests(total + last)
        program.process.send_signal(signal.SIGTERM)
        await program.reads("Shutting down")
        sandbox.release()
        assert await asyncio.gather(*under_way) == [200] * last
        await program.ends()

    assert "Application shutdown complete" in program.output
    assert "Warning" not in program.output
    assert sandbox.open_connections == 0
    assert [message_id for message_id in ids if sandbox.messages[message_id].updates != 1] == []


# A worker


@pytest.fixture
def jobs_path(tmp_path: Path) -> str:
    return str(tmp_path / "jobs.sqlite")


@pytest.fixture
def queue(jobs_path: str) -> Iterator[Any]:
    """The queue that the worker takes its jobs from, with none in it."""
    with contextlib.closing(example("worker").Queue(jobs_path)) as queue:
        yield queue


@posix
async def test_a_worker_that_is_told_to_stop_loses_no_job_and_does_none_twice(
    sandbox: Sandbox, jobs_path: str, queue: Any
) -> None:
    module, jobs = example("worker"), 100
    ids = [f"{ID}-{number}" for number in range(jobs)]
    for message_id in ids:
        sandbox.add_message(message_id)
        queue.put(message_id, "done")

    sandbox.hold()
    async with running("examples/worker.py", jobs_path) as program:
        await sandbox.wait_for_requests(module.WORKERS)
        program.process.send_signal(signal.SIGTERM)
        sandbox.release()
        assert await program.ends() == 0
    done = queue.count("done")
    assert done == sandbox.updates_applied
    assert module.WORKERS <= done < jobs
    assert (queue.count("new"), queue.count("claimed")) == (jobs - done, 0)

    async with running("examples/worker.py", jobs_path) as program:
        await sandbox.wait_for_requests(jobs)
        program.process.send_signal(signal.SIGTERM)
        assert await program.ends() == 0
    assert queue.count("done") == jobs
    assert all(sandbox.messages[message_id].updates == 1 for message_id in ids)


@posix
async def test_a_worker_looks_at_a_job_that_failed_in_passing_again_later(
    sandbox: Sandbox, jobs_path: str, queue: Any
) -> None:
    for message_id in ("busy", "free"):
        sandbox.add_message(message_id)
        queue.put(message_id, "done")
    sandbox.fail_next(409, times=1_000, message_id="busy")  # not tried again by the client
    async with running("examples/worker.py", jobs_path) as program:
        await sandbox.wait_for_requests(2)
        while not queue.count("done"):
            await asyncio.sleep(0.01)
        program.process.send_signal(signal.SIGTERM)
        assert await program.ends() == 0
    assert (queue.count("done"), queue.count("new")) == (1, 1)
    assert [request.message_id for request in sandbox.requests].count("busy") == 1
    queue.put_back(job := example("worker").Job(1, "busy", "done"), 60)
    assert queue.claim() is None
    queue.put_back(job, 0)
    assert queue.claim() == job


def test_a_worker_claims_no_job_before_an_earlier_one_for_the_same_message_has_ended(
    queue: Any,
) -> None:
    """Else its retry would bring old metadata back; and two workers could hold both."""
    queue.put("same", "old")
    queue.put("SAME", "new")
    queue.put("other", "x")
    old = queue.claim()
    assert old.metadata == "old"
    assert queue.claim().message_id == "other"
    assert queue.claim() is None
    queue.put_back(old, 60)
    assert queue.claim() is None
    queue.put_back(old, 0)
    assert queue.claim() == old
    queue.finish(old, "done")
    assert queue.claim().metadata == "new"


@posix
async def test_a_worker_whose_key_may_do_nothing_ends_and_fails_no_job(
    sandbox: Sandbox, jobs_path: str, queue: Any
) -> None:
    for number in range(100):
        queue.put(f"{ID}-{number}", "done")
    sandbox.fail_next(403, times=1_000)
    async with running("examples/worker.py", jobs_path) as program:
        assert await program.ends() != 0
    assert "PermissionDeniedError" in program.output
    assert (queue.count("failed"), queue.count("done")) == (0, 0)


@posix
async def test_a_worker_that_is_killed_leaves_its_jobs_to_the_next(
    sandbox: Sandbox, jobs_path: str, queue: Any
) -> None:
    module, jobs = example("worker"), 30
    ids = [f"{ID}-{number}" for number in range(jobs)]
    for message_id in ids:
        sandbox.add_message(message_id)
        queue.put(message_id, "done")
    queue.put("unknown", "done")

    sandbox.hold()
    async with running("examples/worker.py", jobs_path) as program:
        await sandbox.wait_for_requests(module.WORKERS)
        program.process.kill()
        await program.ends()
    assert queue.count("claimed") == module.WORKERS
    sandbox.release()

    async with running("examples/worker.py", jobs_path) as program:
        await sandbox.wait_for_requests(module.WORKERS + jobs + 1)
        program.process.send_signal(signal.SIGTERM)
        assert await program.ends() == 0
    assert (queue.count("done"), queue.count("failed"), queue.count("claimed")) == (jobs, 1, 0)
    assert all(sandbox.messages[message_id].metadata == "done" for message_id in ids)


# An outbox


@posix
@pytest.mark.needs_program("initdb")
async def test_the_outbox_sends_each_row_once_and_keeps_what_it_could_not_send(
    sandbox: Sandbox,
) -> None:
    import psycopg

    from tests.whole.fleet.stores import Postgres

    module = example("outbox")
    ids = [f"{ID}-{number}" for number in range(50)]
    for message_id in ids:
        sandbox.add_message(message_id)
    insert = "insert into outbox (message_id, metadata) values (%s, %s)"
    with Postgres() as store, psycopg.connect(store.url, autocommit=True) as db:

        def left() -> list[tuple[str, bool]]:
            select = "select message_id, error is not null from outbox order by number"
            return db.execute(select).fetchall()

        db.execute(module.TABLE)
        for number, message_id in enumerate((*ids, "unknown", *ids)):
            db.execute(insert, (message_id, str(number)))
        async with running("examples/outbox.py", store.url) as program:
            while left() != [("unknown", True)]:
                assert program.process.returncode is None
                await asyncio.sleep(0.01)
            await sandbox.close()
            db.execute(insert, (ID, "in an outage"))
            db.execute(insert, (ids[0], "in an outage"))
            await asyncio.sleep(0.5)
            program.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await program.ends() == 0
        # The log of the outage, and nothing else.
        said = program.output.splitlines()
        assert [line for line in said if not line.startswith("a job waits for the API")] == []
        assert left() == [("unknown", True), (ID, False), (ids[0], False)]
    for number, message_id in enumerate(ids):
        message = sandbox.messages[message_id]
        assert (message.updates, message.metadata) == (2, str(51 + number))


# Scripts and notebooks


async def test_the_script_updates_all(sandbox: Sandbox) -> None:
    ids = [f"{ID}-{number}" for number in range(10)]
    for message_id in ids:
        sandbox.add_message(message_id)
    program = await run("examples/script.py", "spring", *ids)
    assert (program.process.returncode, program.output) == (0, "10 updated\n")
    assert all(sandbox.messages[message_id].metadata == "spring" for message_id in ids)


async def test_the_script_reports_what_failed(sandbox: Sandbox) -> None:
    program = await run("examples/script.py", "spring", "unknown")
    assert program.process.returncode == 1
    assert program.output.startswith("failed: 404 NOT_FOUND")


async def test_the_notebook_runs_from_top_to_bottom(sandbox: Sandbox, tmp_path: Path) -> None:
    """IPython runs a notebook's cells as Jupyter does, each with `await` at its top level, on one
    event loop.
    """
    async with running(
        *("-m", "IPython", "--no-banner", "--colors=NoColor", f"--ipython-dir={tmp_path}"),
        str(EXAMPLES / "notebook.ipynb"),
    ) as program:
        await program.ends()
    assert program.output.split("\n")[:3] == ['{"ticket": "closed"}', "[True, True, True]", "True"]
    assert sandbox.messages[ID].metadata == "note 2"


# Seeing what happens


async def test_every_exchange_is_a_span_under_the_callers_without_a_secret(
    sandbox: Sandbox,
) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    sandbox.fail_next(503)

    await example("tracing").main(provider, ID)

    spans = exporter.get_finished_spans()
    provider.shutdown()
    assert [span.name for span in spans] == ["POST", "PATCH", "PATCH", "update message metadata"]
    call = spans[-1]
    assert {span.context.trace_id for span in spans[1:]} == {call.context.trace_id}
    assert (call.attributes["sinch.attempts"], call.attributes["sinch.outcome"]) == (2, "succeeded")
    assert call.attributes["sinch.waited"] > 0
    assert call.status.is_unset
    assert [span.attributes["http.status_code"] for span in spans[1:3]] == [503, 200]
    everything = "".join(span.to_json() for span in spans)
    assert ID in everything
    assert not any(secret in everything for secret in SECRETS)


async def test_a_call_that_failed_is_a_span_with_an_error(sandbox: Sandbox) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.raises(NotFoundError):
        await example("tracing").main(provider, "unknown")
    call = exporter.get_finished_spans()[-1]
    provider.shutdown()
    assert (call.attributes["sinch.attempts"], call.attributes["sinch.outcome"]) == (
        1,
        "NotFoundError",
    )
    assert not call.status.is_ok


async def test_logs_spans_and_metrics_of_one_call_are_as_the_page_shows_them() -> None:
    def without_numbers(text: str) -> list[str]:
        return re.sub(r"\d+\.\d{3,}|127\.0\.0\.1:\d+", "#", text).splitlines()

    program = await run("examples/one_call.py")
    shown = (ROOT / "docs/how-to/one-call.txt").read_text("utf-8")
    assert without_numbers(program.output) == without_numbers(shown)


def test_the_workers_counters_add_up_and_survive_their_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = f"""
import asyncio, sys
sys.path.insert(0, {str(EXAMPLES)!r})
from metrics_workers import copied
from sinch_conv_async import ConversationClient, NotFoundError, SessionManager

async def main():
    async with (
        SessionManager() as manager,
        copied(manager, seconds=0.05),
        ConversationClient.from_env(session_manager=manager) as client,
    ):
        for _ in range(3):
            await client.update_message_metadata({ID!r}, "x")
            await asyncio.sleep(0.06)
        try:
            await client.update_message_metadata("unknown", "x")
        except NotFoundError:
            pass

asyncio.run(main())
"""
    scrape = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with Sandbox() as sandbox:
        sandbox.add_message(ID)
        for name, value in sandbox.environment().items():
            monkeypatch.setenv(name, value)
        for _ in range(2):
            subprocess.run([sys.executable, "-c", worker], cwd=ROOT, check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", scrape], check=True, timeout=60, capture_output=True, text=True
    )
    assert 'sinch_calls_total{outcome="succeeded"} 6.0\n' in done.stdout
    assert 'sinch_calls_total{outcome="NotFoundError"} 2.0\n' in done.stdout
    assert "sinch_attempts_total 8.0\n" in done.stdout
    assert "sinch_retries_total 0.0\n" in done.stdout
    assert re.search(r"sinch_exchange_seconds_total 0\.\d", done.stdout)


async def test_prometheus_scrapes_the_stats_from_another_thread(sandbox: Sandbox) -> None:
    import prometheus_client

    from sinch_conv_async import ConversationClient

    registry = prometheus_client.CollectorRegistry()
    async with (
        SessionManager() as manager,
        ConversationClient.from_env(session_manager=manager) as client,
    ):
        registry.register(example("metrics").SessionCollector(manager))
        for number in range(3):
            await client.update_message_metadata(ID, str(number))
        sandbox.fail_next(404)
        with pytest.raises(NotFoundError):
            await client.update_message_metadata(ID, "lost")
        server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)

        def scrape() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
                return answer.read().decode()

        try:
            text = scrape()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
    assert "\nsinch_calls_total 4.0\n" in text
    assert "\nsinch_succeeded_total 3.0\n" in text
    assert "\nsinch_attempts_total 4.0\n" in text
    assert "\nsinch_token_requests_total 1.0\n" in text
    assert "\nsinch_in_flight 0.0\n" in text
    of_projects = {"pace": 800.0, "limit": 800.0, "paused_for": 0.0, "in_outage": 0.0}
    for name, value in of_projects.items():
        assert f'\nsinch_{name}{{project="sandbox-project"}} {value}\n' in text
    assert '\nsinch_failed_total{error="NotFoundError"} 1.0\n' in text
    assert "\nsinch_timed_out_waiting_total 0.0\n" in text
    assert re.search(r"\nsinch_wait_seconds_total \d", text)


async def test_the_log_has_a_json_line_for_each_attempt_and_no_secret(sandbox: Sandbox) -> None:
    sandbox.fail_next(503)
    program = await run("examples/json_logging.py", ID, "unknown")
    lines = [json.loads(line) for line in program.lines]
    attempts = [line for line in lines if "attempt" in line]
    assert [(line["message_id"], line["attempt"], line["status"]) for line in attempts] == [
        (ID, 1, 503),
        (ID, 2, 200),
        ("unknown", 1, 404),
    ]
    assert [line["error"] for line in attempts] == ["ServerError", None, "NotFoundError"]
    assert all(
        line["seconds"] >= 0 and line["project_id"] == "sandbox-project" for line in attempts
    )
    assert lines[-1]["level"] == "ERROR"
    assert not any(secret in program.output for secret in SECRETS)


# Bring your own


@contextlib.asynccontextmanager
async def https_sandbox(
    monkeypatch: pytest.MonkeyPatch, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[Sandbox, trustme.CA]]:
    """A sandbox that speaks https with a certificate of a CA that nobody knows."""
    ca = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(host).configure_cert(server)
    async with Sandbox(ssl=server) as sandbox:
        sandbox.add_message(ID, metadata="old")
        origin = f"https://{host}:{sandbox.port}"
        for name, value in environment(sandbox).items():
            monkeypatch.setenv(name, origin if name.endswith("_ORIGIN") else value)
        yield sandbox, ca


async def test_a_private_ca_is_trusted_when_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with https_sandbox(monkeypatch) as (sandbox, ca):
        ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        program = await run("examples/private_ca.py", str(tmp_path / "ca.pem"), ID)
        assert program.output == f"{ID} seen\n"
        assert sandbox.messages[ID].metadata == "seen"


async def test_another_private_ca_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with https_sandbox(monkeypatch) as (sandbox, _):
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
        program = await run("examples/private_ca.py", str(tmp_path / "other.pem"), ID)
        assert "certificate was not accepted" in program.output
        assert sandbox.requests == sandbox.token_requests == []


@pytest.fixture
async def tinyproxy(tmp_path: Path) -> AsyncIterator[int]:
    """A proxy that lets in whoever is called user with the password pass-word; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "tinyproxy.log"
    (tmp_path / "tinyproxy.conf").write_text(
        f'Port {port}\nListen 127.0.0.1\nTimeout 60\nLogFile "{log}"\nLogLevel Connect\n'
        "MaxClients 20\nBasicAuth user pass-word\n"
    )
    process = await asyncio.create_subprocess_exec(
        *("tinyproxy", "-d", "-c", str(tmp_path / "tinyproxy.conf")),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        while True:
            assert process.returncode is None, "tinyproxy ended"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                await writer.wait_closed()
                break
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        reaped(process)


@pytest.mark.needs_program("tinyproxy")
async def test_https_goes_through_a_proxy_that_asks_for_credentials(
    monkeypatch: pytest.MonkeyPatch, tinyproxy: int, tmp_path: Path
) -> None:
    async with https_sandbox(monkeypatch) as (sandbox, ca):
        context = ssl.create_default_context()
        ca.configure_trust(context)
        manager = SessionManager(ssl=context, proxy=f"http://user:pass-word@127.0.0.1:{tinyproxy}")
        await example("proxy").main(ID, manager)
        assert sandbox.messages[ID].metadata == "seen"
        assert (tmp_path / "tinyproxy.log").read_text().count(
            f"CONNECT 127.0.0.1:{sandbox.port}"
        ) == 1


@pytest.mark.needs_program("tinyproxy")
async def test_http_goes_through_the_proxy_too(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tinyproxy: int
) -> None:
    monkeypatch.setenv("SINCH_PROXY", f"http://user:pass-word@127.0.0.1:{tinyproxy}")
    program = await run("examples/proxy.py", ID)
    assert program.output == f"{ID} seen\n"


@pytest.mark.needs_program("tinyproxy")
async def test_a_proxy_that_refuses_is_an_error_that_keeps_the_password_to_itself(
    monkeypatch: pytest.MonkeyPatch, tinyproxy: int
) -> None:
    async with https_sandbox(monkeypatch) as (sandbox, _):
        manager = SessionManager(proxy=f"http://user:wrong-password@127.0.0.1:{tinyproxy}")
        with pytest.raises(
            TokenError, match=r"the proxy answered 40[17]"
        ) as caught:  # 401 by an old tinyproxy
            await example("proxy").main(ID, manager)
        assert "wrong-password" not in repr(caught.value)
        assert "wrong-password" not in repr(manager)
        assert sandbox.token_requests == []


async def test_a_resolver_decides_where_a_host_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real API's name, with a certificate for it, and an address of our own."""
    host = "us.conversation.api.sinch.com"
    module = example("resolver")
    async with https_sandbox(monkeypatch, host) as (sandbox, ca):
        context = ssl.create_default_context()
        ca.configure_trust(context)
        manager = SessionManager(ssl=context, resolver=module.PinnedResolver({host: "127.0.0.1"}))
        await module.main(ID, {}, manager)
        assert sandbox.messages[ID].metadata == "seen"


async def test_a_resolver_leaves_other_hosts_to_the_system(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = f"http://localhost:{sandbox.port}"
    monkeypatch.setenv("SINCH_CONVERSATION_ORIGIN", origin)
    monkeypatch.setenv("SINCH_AUTH_ORIGIN", origin)
    await example("resolver").main(ID, {"us.conversation.api.sinch.com": "127.0.0.1"})
    assert sandbox.messages[ID].metadata == "seen"


def test_a_resolver_serves_a_second_event_loop() -> None:
    manager = SessionManager(resolver=example("resolver").PinnedResolver({}))

    async def update(*, close: bool) -> None:
        async with Sandbox(auto_create=True) as sandbox:
            origin = f"http://localhost:{sandbox.port}"
            origins = {"conversation_origin": origin, "auth_origin": origin}
            client = ConversationClient(
                **{**sandbox.client_options(), **origins, "session_manager": manager}
            )
            await client.update_message_metadata(ID, "seen")
            if close:
                await manager.close()

    asyncio.run(update(close=False))
    asyncio.run(update(close=True))


def test_every_example_is_tried() -> None:
    here = Path(__file__).parent
    text = "".join(path.read_text("utf-8") for path in sorted(here.rglob("test_*.py")))
    names = {path.stem for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb"}}
    assert names
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", text)] == []
