"""Runs every Python snippet of README and docs against a sandbox, as a reader would paste it.

A snippet finds the credentials in the environment, as `ConversationClient.from_env()` expects them,
and the messages of README's examples in the sandbox (`page_sandbox`, for an invisible block that
prepares more). It may `await` at the top level, as in a notebook. A snippet that defines tests is
run by pytest.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sybil import Sybil
from sybil.evaluators.python import pad
from sybil.parsers.rest import CodeBlockParser, SkipParser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sybil import Example

# The message of the API's examples, and of the pages'.
MESSAGE_ID = "01FC66621XXXXX119Z8PMV1QPA"


def run_snippet(example: Example) -> None:
    source = str(example.parsed)
    if any(
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
        for node in ast.parse(source).body
    ):
        run_as_tests(source)
        return
    # Padded, so that a traceback names the page's line.
    padded = pad(source, example.line + example.parsed.line_offset)
    code = compile(padded, example.path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    awaitable = eval(code, example.namespace)  # with a top-level await, this makes a coroutine
    if inspect.iscoroutine(awaitable):
        example.namespace["page_runner"].run(awaitable)


def run_as_tests(source: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test_snippet.py"
        path.write_text(source, "utf-8")
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"),
                *("-p", "pytest_asyncio.plugin"),
                *("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"),
                *(f"--rootdir={folder}", str(path)),
            ],
            # The one plugin that the pages ask for, and no measuring: half of the time, otherwise.
            env={
                **{name: word for name, word in os.environ.items() if "COVERAGE" not in name},
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def page_runner() -> Iterator[asyncio.Runner]:
    """One event loop for a page's top-level awaits, so that a client made in one snippet serves the
    next.
    """
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def page_sandbox() -> Iterator[Any]:
    """A sandbox in a thread of its own, and its environment variables."""
    from sinch_conv_async.sandbox import Sandbox

    with Sandbox() as sandbox, pytest.MonkeyPatch.context() as environment:
        sandbox.add_message(MESSAGE_ID, metadata="old")
        for name, value in sandbox.environment().items():
            environment.setenv(name, value)
        environment.setenv("SINCH_CONVERSATION_REGION", "us")
        yield sandbox


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", run_snippet), SkipParser()],
    patterns=["README.rst", "docs/*.rst", "docs/**/*.rst"],
    fixtures=["page_sandbox", "page_runner"],
).pytest()
