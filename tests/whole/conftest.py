"""What the tests of the whole share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import commands

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def forker() -> Iterator[None]:
    """Most commands of this run are its children."""
    with commands.Forker(commands.environment_of(None)) as forker:
        commands.forkers.append(forker)
        yield
        commands.forkers.clear()
