"""The table of a run: collected from the rows, printed at its end, and written as a page where
``FAULTS_PAGE`` names one.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.whole.faults import page
from tests.whole.faults.matrix import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE = pytest.StashKey[Table]()


@pytest.fixture(autouse=True, scope="session")
def leaves_nothing_behind_when_it_is_told_to_stop() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: the test is cancelled, and takes down the servers and
    networks that it made.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    """Where a row writes down what it found."""
    return request.config.stash.setdefault(TABLE, Table())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    table = config.stash.get(TABLE, None)
    if table is None or not table.rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(page.text(table))
    if path := os.environ.get("FAULTS_PAGE"):
        Path(path).write_text(page.rest(table), "utf-8")
        terminalreporter.write_line(f"written: {path}")
