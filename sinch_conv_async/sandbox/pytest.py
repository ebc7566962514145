"""Fixtures for pytest.

Name this module in ``pytest_plugins`` of the ``conftest.py`` beside your tests. pytest does not
load it by itself. It works with synchronous and asynchronous tests, because the sandbox runs in a
thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .server import Sandbox

__all__ = ["sinch_environment", "sinch_sandbox"]


@pytest.fixture
def sinch_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox for one test, closed after it.

    Give it keyword arguments by
    ``@pytest.mark.parametrize("sinch_sandbox", [...], indirect=True)``, as dictionaries.
    """
    options = getattr(request, "param", {})
    with Sandbox(**options) as sandbox:
        yield sandbox


@pytest.fixture
def sinch_environment(sinch_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment variables for ``sinch_sandbox``, set for one test, and returned.

    ``ConversationClient.from_env()`` and the commands read it; a subprocess inherits it. The region
    is removed from the environment, because the sandbox has none.
    """
    monkeypatch.delenv("SINCH_CONVERSATION_REGION", raising=False)
    environment = sinch_sandbox.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment
