"""What the tests with stores share."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def abandoned_connections_are_freed(loop_is_left_idle: None) -> Iterator[None]:
    """psycopg leaves the socket of a connection attempt that was given up to the collector."""
    yield
    gc.collect()
