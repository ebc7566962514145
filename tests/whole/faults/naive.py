"""The loop that people write by hand: aiohttp, a token, gather, a semaphore. A row first shows that
the fault bites this.

It is no caricature: it closes its session, raises for a status, reads JSON. What it leaves to
chance is what the row is about. Only ``nox -s faults_full`` runs it (FAULTS_NAIVE=1): that a fault
bites need not be shown at every commit.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.whole.faults.matrix import Side, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


RUN = os.environ.get("FAULTS_NAIVE") == "1"


async def fetch_token(
    session: aiohttp.ClientSession, options: dict[str, Any], **request: Any
) -> str:
    async with session.post(
        f"{options['auth_origin']}/oauth2/token",
        data={"grant_type": "client_credentials"},
        headers={
            "Authorization": aiohttp.encode_basic_auth(options["key_id"], options["key_secret"])
        },
        **request,
    ) as response:
        response.raise_for_status()
        return (await response.json())["access_token"]


async def update(
    session: aiohttp.ClientSession,
    options: dict[str, Any],
    token: str,
    message_id: str,
    metadata: str,
    **request: Any,
) -> tuple[str | None, str | None]:
    async with session.patch(
        f"{options['conversation_origin']}/v1/projects/{options['project_id']}/messages/{message_id}",
        json={"metadata": metadata},
        headers={"Authorization": f"Bearer {token}"},
        **request,
    ) as response:
        response.raise_for_status()
        message = await response.json()
        return message.get("id"), message.get("metadata")


async def loop(
    options: dict[str, Any],
    calls: Sequence[tuple[str, str]],
    *,
    session: dict[str, Any] | None = None,
    request: dict[str, Any] | None = None,
    rate: float | None = None,
    concurrency: int = 50,
    pause: Callable[[], float] | None = None,
    patience: float = 30.0,
) -> Side:
    """The calls, each made once. ``session``, ``request``: what is given to aiohttp's session, and
    to each of its requests.
    """
    async with aiohttp.ClientSession(**(session or {})) as http:
        side = Side(len(calls), time.monotonic())
        try:
            token = await fetch_token(http, options, **(request or {}))
        except (aiohttp.ClientError, TimeoutError, KeyError):
            return side  # and with it every call

        async def one(message_id: str, metadata: str) -> tuple[str | None, str | None]:
            side.attempts += 1
            return await update(http, options, token, message_id, metadata, **(request or {}))

        side.began = time.monotonic()
        return await spread(
            calls, one, side, rate=rate, concurrency=concurrency, pause=pause, patience=patience
        )


async def cached(
    options: dict[str, Any],
    calls: Sequence[tuple[str, str]],
    *,
    rate: float | None = None,
    concurrency: int = 50,
    patience: float = 30.0,
) -> Side:
    """The loop with the token cache that people write: fetched by whoever finds none, kept by the
    wall clock for as long as the answer says.
    """
    token = ""
    good_until = 0.0
    async with aiohttp.ClientSession() as http:
        side = Side(len(calls), time.monotonic())

        async def one(message_id: str, metadata: str) -> tuple[str | None, str | None]:
            nonlocal token, good_until
            if not token or time.time() > good_until:
                async with http.post(
                    f"{options['auth_origin']}/oauth2/token",
                    data={"grant_type": "client_credentials"},
                    headers={
                        "Authorization": aiohttp.encode_basic_auth(
                            options["key_id"], options["key_secret"]
                        )
                    },
                ) as response:
                    response.raise_for_status()
                    answer = await response.json()
                    token, good_until = answer["access_token"], time.time() + answer["expires_in"]
            return await update(http, options, token, message_id, metadata)

        return await spread(calls, one, side, rate=rate, concurrency=concurrency, patience=patience)
