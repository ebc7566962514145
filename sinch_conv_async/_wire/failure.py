"""The facts about one failed attempt."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import SinchError

__all__ = ["Failure"]


class Failure(NamedTuple):
    """One attempt that did not give the result of its operation.

    ``retryable``: whether trying again can change anything. ``maybe_applied``: whether the server
    may have applied the update, so that a repeat could overwrite the change of another writer.
    ``retry_after``: seconds that the server asked for. ``stale_connection``: an idle connection
    turned out to be closed. ``crossed``: the connection carried the answer to another request and
    must not be used again.
    """

    error: SinchError
    retryable: bool
    maybe_applied: bool = False
    retry_after: float | None = None
    stale_connection: bool = False
    crossed: bool = False
