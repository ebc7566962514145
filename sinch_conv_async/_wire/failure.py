"""What is known of one attempt that failed."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import SinchError

__all__ = ["Failure"]


class Failure(NamedTuple):
    """One attempt that did not give what its operation asks for.

    ``retryable``: whether trying again can change anything. ``maybe_applied``: whether the server
    may have applied the update, so that a repeat could overwrite what somebody else wrote in
    between. ``retry_after``: seconds that the server asked for. ``stale_connection``: an idle
    connection turned out to be closed. ``crossed``: the connection carried somebody else's answer
    and must not be used again.
    """

    error: SinchError
    retryable: bool
    maybe_applied: bool = False
    retry_after: float | None = None
    stale_connection: bool = False
    crossed: bool = False
