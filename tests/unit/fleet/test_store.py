"""One token for a fleet: what a process does whatever the store says. tests/whole/fleet has the
stores.
"""

from __future__ import annotations

from typing import Any

import pytest

from sinch_conv_async._wire.responses import TokenResponse
from sinch_conv_async.fleet import FleetError, TokenKey
from sinch_conv_async.fleet._store import Found, StoreFleet

KEY = TokenKey("https://auth.example", "key-id", "key-secret")
OWN = TokenResponse("own", 60.0)


class Locked(StoreFleet):
    """A store in which another process holds the lock and never brings a token."""

    def __init__(self, error: FleetError | None = None) -> None:
        self.error = error
        self.looks = 0

    async def look(self, name: str, owner: str) -> Found:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return Found(None, 0.0, locked=False)

    async def never(self, *arguments: Any) -> Any:
        raise AssertionError

    share_at = renew_lock = store = delete = close = never


async def fetch() -> TokenResponse:
    return OWN


async def test_who_has_waited_long_for_another_process_asks_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sinch_conv_async.fleet._store.WAIT", 0.05)
    monkeypatch.setattr("sinch_conv_async.fleet._store.LOOK_AGAIN", 0.01)
    store = Locked()
    assert await store.token(KEY, fetch) == OWN
    assert store.looks > 1


async def test_without_an_answer_of_the_store_each_process_asks_by_itself() -> None:
    store = Locked(FleetError("away"))
    assert await store.token(KEY, fetch) == OWN
    assert store.looks == 1
