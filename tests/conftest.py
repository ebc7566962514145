"""Checks for every test: it leaves nothing behind, and it is not skipped silently if a server is
missing.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from sinch_conv_async.sandbox import Sandbox
from tests import programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

os.environ["PATH"] = programs.path()

# No deadlines, because a slow machine is not a failure. In CI the examples are the same in every
# run, so that a failed run can be repeated; "quick" is for `nox -s tests-3.13 -- tests/unit`; the
# fuzzing profile is for `nox -s fuzz`, which tries many more.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=20_000, print_blob=True)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") == "true" else "default")
)

DESCRIPTORS = "/proc/self/fd"

# Closing a transport takes the loop a pass to call connection_lost and one for each layer above it
# (TLS, the stream, the protocol that waited). Ten is generous, and still a count and not a time.
LOOP_PASSES = 10

# Characters of one parameter in the id of a test.
LONGEST_ID = 40


# Most tests of tests/whole are about servers, processes and loads, and show the same on each
# Python: `nox -s tests` leaves these to `nox -s once`. These files of tests/whole depend on the
# Python.
ON_EACH_PYTHON = {"test_bulk.py", "test_calls.py", "test_secrets.py"}


def pytest_make_parametrize_id(val: object) -> str | None:
    """A parameter's part of a test's id: short, of plain characters, so that tools can pass it on.

    Other values than these have pytest's own names.
    """
    if type(val) not in (str, bytes, int, float):
        return None
    text = val.decode("latin-1") if isinstance(val, bytes) else str(val)
    return re.sub(r"[^\w .,=+-]+", "_", ascii(text[:LONGEST_ID])[1:-1], flags=re.ASCII)[:LONGEST_ID]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    whole = Path(__file__).parent / "whole"
    for item in items:
        if whole in item.path.parents and item.path.name not in ON_EACH_PYTHON:
            item.add_marker(pytest.mark.once)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose program is missing; in CI, where `.ci/run` installs them all, that is a
    failure.
    """
    for marker in item.iter_markers("needs_program"):
        missing = programs.missing(*marker.args)
        if not missing:
            continue
        reason = f"needs {', '.join(missing)}, not on this machine"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}: add it to .ci/run", pytrace=False)
        pytest.skip(reason)


def open_descriptors() -> dict[str, str]:
    """Number and target of every descriptor of this process; empty without /proc.

    Each test asks twice or more, and pathlib would take five times as long.
    """
    found = {}
    for name in os.listdir(DESCRIPTORS) if os.path.exists(DESCRIPTORS) else ():
        try:
            found[name] = os.readlink(f"{DESCRIPTORS}/{name}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


@pytest.fixture(autouse=True)
def leaves_no_descriptor_or_thread() -> Iterator[None]:
    """Before the event loop is made and after it is gone: the same open files and sockets, the same
    threads.
    """
    descriptors, threads = open_descriptors(), set(threading.enumerate())
    yield
    left = dict(open_descriptors().items() - descriptors.items())
    assert not left, f"descriptors left open: {left}"
    running = {thread for thread in threading.enumerate() if thread not in threads}
    assert not running, f"threads left running: {running}"


@pytest.fixture(autouse=True)
def leaves_no_task(request: pytest.FixtureRequest, leaves_no_descriptor_or_thread: None) -> None:
    """For a test that is a coroutine, check its loop before it is closed, because closing cancels
    the tasks.
    """
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("loop_is_left_idle")


@pytest.fixture
async def loop_is_left_idle() -> AsyncIterator[None]:
    """After the test and its fixtures: no task on the loop but this one, and no descriptor that the
    test opened.
    """
    tasks, descriptors = asyncio.all_tasks(), open_descriptors()
    yield
    for _ in range(LOOP_PASSES):
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - tasks - {asyncio.current_task()}
        opened = dict(open_descriptors().items() - descriptors.items())
        if os.environ.get("EVENT_LOOP") == "uvloop":
            # each run of the loop opens sockets of its own; the other fixture looks after it
            opened = {}
        if not left and not opened:
            return
    assert not left, f"tasks left running: {left}"
    assert not opened, f"descriptors left open: {opened}"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A sandbox that knows every message id, without a limit on token requests."""
    async with Sandbox(auto_create=True, keep_headers=True, token_rate=None) as sandbox:
        yield sandbox


@pytest.fixture(params=["direct", "traced"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice: with trace hooks (or a proxy) a call goes by aiohttp's session, otherwise
    by the fast route.
    """
    if request.param == "direct":
        return
    import aiohttp

    from sinch_conv_async import SessionManager

    construct = SessionManager.__init__

    def traced(self: SessionManager, **options: Any) -> None:
        construct(self, **{"trace_configs": [aiohttp.TraceConfig()], **options})

    monkeypatch.setattr(SessionManager, "__init__", traced)
