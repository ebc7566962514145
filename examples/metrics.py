"""Prometheus: a session manager's `stats()` as metrics, read whenever they are scraped.

`stats()` may be called from any thread, so you can use prometheus_client's own HTTP server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from sinch_conv_async import SessionManager

COUNTERS = {
    "calls": "Calls that were started.",
    "succeeded": "Calls that ended with a result.",
    "timed_out_waiting": "Calls whose timeout passed before anything was sent.",
    "budget_refusals": "Calls that ended because the retry budget was used up.",
    "attempts": "HTTP exchanges with the API.",
    "retries": "Attempts after the first of a call.",
    "throttled": "Answers of status 429.",
    "token_requests": "Requests to token endpoints.",
    "token_failures": "Requests to token endpoints that brought no token.",
    "wait_seconds": "Seconds that calls have waited.",
    "exchange_seconds": "Seconds that HTTP exchanges took.",
}
GAUGES = {
    "in_flight": "Exchanges under way.",
    "waiting": "Calls that wait for their turn.",
}
PROJECT_GAUGES = {
    "pace": "Requests a second that a project may send now.",
    "limit": "The most requests a second that the project's clients allow.",
    "paused_for": "Seconds until the project may send again; 0 if it may.",
    "in_outage": "1 while a bulk job of the project waits for the API.",
}


class SessionCollector(Collector):
    """For ``prometheus_client.REGISTRY.register(SessionCollector(manager))``, once."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        stats = self._manager.stats()
        for name, what in COUNTERS.items():
            yield CounterMetricFamily(f"sinch_{name}", what, value=getattr(stats, name))
        for name, what in GAUGES.items():
            yield GaugeMetricFamily(f"sinch_{name}", what, value=getattr(stats, name))
        failed = CounterMetricFamily(
            "sinch_failed", "Calls that ended with an error.", labels=["error"]
        )
        for error, count in stats.failed.items():
            failed.add_metric([error], count)
        yield failed
        for name, what in PROJECT_GAUGES.items():
            gauge = GaugeMetricFamily(f"sinch_{name}", what, labels=["project"])
            for project in stats.projects:
                value = getattr(project, name)
                if value is not None:  # no limit
                    gauge.add_metric([project.project_id], value)
            yield gauge
