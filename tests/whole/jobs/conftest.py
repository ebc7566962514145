"""The cluster that the tests of jobs share, and a database for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sinch_conv_async.jobs import JobStore
from tests.whole.fleet.stores import Postgres
from tests.whole.jobs.database import new_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="session")
def cluster() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def empty_url(cluster: Postgres) -> str:
    """A database without tables."""
    return new_database(cluster)


@pytest.fixture
async def url(empty_url: str) -> str:
    """A database with the tables of jobs."""
    await JobStore(empty_url).create_schema()
    return empty_url


@pytest.fixture
async def store(url: str) -> AsyncIterator[JobStore]:
    async with JobStore(url) as opened:
        yield opened
