"""The sandbox's records of requests, and a counter that can be awaited."""

from __future__ import annotations

import asyncio
from typing import TypedDict, TypeVar
from urllib.parse import parse_qs

import attrs

__all__ = ["ClientOptions", "SandboxRequest", "SandboxTokenRequest", "Tally", "remember"]

_T = TypeVar("_T")


class ClientOptions(TypedDict):
    """The keywords of ``ConversationClient(**options)`` for a sandbox."""

    project_id: str
    key_id: str
    key_secret: str
    conversation_origin: str
    auth_origin: str


@attrs.define(eq=False)
class SandboxRequest:
    """One request to the API, and its result.

    ``time`` is the arrival in seconds of the sandbox's monotonic clock. ``message_id`` is None for
    a list. ``metadata`` is None if the body holds no text of that name. ``status`` is None until
    the request is answered, and stays None if it never is (a dropped connection, a cut answer).
    ``applied`` tells whether the message was changed, answered or not. ``headers`` (names in lower
    case) are kept only by ``Sandbox(keep_headers=True)``.
    """

    number: int
    time: float
    method: str
    project_id: str | None
    message_id: str | None
    query: str = attrs.field(repr=False)
    metadata: str | None = attrs.field(repr=False)
    headers: dict[str, str] | None = attrs.field(repr=False)
    # Only if it is not the usual path of the two ids, to save a string in each of a million
    # records.
    _path: str | None = attrs.field(repr=False, alias="path")
    status: int | None = None
    applied: bool = False

    @property
    def path(self) -> str:
        """The path of the request, percent-encoded as it arrived, without the query."""
        return self._path or f"/v1/projects/{self.project_id}/messages/{self.message_id}"

    @property
    def messages_source(self) -> str | None:
        """The query parameter ``messages_source``, or None if the request has none."""
        sources = parse_qs(self.query, keep_blank_values=True).get("messages_source")
        return sources[0] if sources else None


@attrs.define(eq=False)
class SandboxTokenRequest:
    """One request to the token endpoint as it arrived.

    ``key_id`` is the user name of its Basic credentials, or None without any. ``status`` is None
    until the request is answered, and stays None if it never is.
    """

    number: int
    time: float
    key_id: str | None
    status: int | None = None


def remember(records: list[_T], record: _T, *, keep: int | None) -> None:
    """Append a record and keep the list at the latest `keep`; None keeps all."""
    if keep == 0:
        return
    records.append(record)
    if keep is not None and len(records) > keep:
        del records[0]


class Tally:
    """Counts events, and wakes the tasks that wait for the n-th event."""

    def __init__(self) -> None:
        self.count = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def add(self) -> None:
        """Count one event."""
        self.count += 1
        for number, future in self._waiters:
            if number <= self.count and not future.done():
                future.set_result(None)

    async def reaches(self, number: int) -> None:
        """Return as soon as so many events have been counted."""
        if self.count >= number:
            return
        waiter = (number, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiters.remove(waiter)
