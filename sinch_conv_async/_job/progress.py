"""The protocol between a run and the display of its progress."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress"]


class Progress(Protocol):
    """Shows how far a run is. It must not raise if it cannot show something."""

    def start(self, total: int | None, done: int) -> None:
        """The run begins; ``done`` of ``total`` records (None: unknown) are done."""
        ...

    def see(self, done: int, failed: int, *, outage: str | None) -> None:
        """How far the run is. ``outage``: the last error while the API is out, otherwise None."""
        ...

    def say(self, sentence: str) -> None:
        """A sentence for the user, which is shown in quiet mode too."""
        ...

    def stop(self) -> None:
        """The run is over."""
        ...
