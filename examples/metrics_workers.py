"""Prometheus with several worker processes: `stats()` is copied into counters that add up.

With PROMETHEUS_MULTIPROC_DIR set, prometheus_client keeps the values of its own counters and gauges
in files, and adds up the processes when it is scraped. It does not call collectors then.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sinch_conv_async import SessionManager

CALLS = Counter("sinch_calls", "Calls that ended.", ["outcome"])
TOTALS = {
    "timed_out_waiting": "Calls whose timeout passed before anything was sent.",
    "budget_refusals": "Calls that ended because the retry budget was used up.",
    "attempts": "HTTP exchanges with the API.",
    "retries": "Attempts after the first of a call.",
    "throttled": "Answers of status 429.",
    "token_failures": "Requests to token endpoints that brought no token.",
    "wait_seconds": "Seconds that calls have waited.",
    "exchange_seconds": "Seconds that HTTP exchanges took.",
}
COUNTERS = {name: Counter(f"sinch_{name}", what) for name, what in TOTALS.items()}
WAITING = Gauge(
    "sinch_waiting", "Calls that wait for their turn.", multiprocess_mode="livesum"
)


class Copier:
    """Add to the counters what `stats()` has gained since the last time."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self._seen: dict[Counter, float] = {}

    def copy(self) -> None:
        stats = self._manager.stats()
        self._count(CALLS.labels("succeeded"), stats.succeeded)
        for error, number in stats.failed.items():
            self._count(CALLS.labels(error), number)
        for name, counter in COUNTERS.items():
            self._count(counter, getattr(stats, name))
        WAITING.set(stats.waiting)

    def _count(self, counter: Counter, value: float) -> None:
        counter.inc(value - self._seen.get(counter, 0))
        self._seen[counter] = value


@contextlib.asynccontextmanager
async def copied(
    manager: SessionManager, *, seconds: float = 5.0
) -> AsyncIterator[None]:
    """For the lifespan of each worker: ``async with copied(manager)``, inside the manager's."""
    copier = Copier(manager)

    async def keep_copying() -> None:
        while True:
            await asyncio.sleep(seconds)
            copier.copy()

    task = asyncio.create_task(keep_copying())
    try:
        yield
    finally:
        task.cancel()
        copier.copy()
