"""The seam between a run and whoever shows how far it is."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress"]


class Progress(Protocol):
    """Is told how far a run is. What it cannot show must not raise."""

    def start(self, total: int | None, done: int) -> None:
        """The run begins, with ``done`` of ``total`` records behind it (None: unknown)."""
        ...

    def see(self, done: int, failed: int, *, outage: str | None) -> None:
        """How far the run is. ``outage``: the last error while the API is out; else None."""
        ...

    def say(self, sentence: str) -> None:
        """A sentence for people, which no quiet mode holds back."""
        ...

    def stop(self) -> None:
        """The run is over."""
        ...
