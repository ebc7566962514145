"""httpx's `AsyncClient` as its documentation shows it, with its own limits (100 connections)."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from benchmarks import sample
from benchmarks.clients import workload


@contextlib.asynccontextmanager
async def opened(given: workload.Arguments) -> AsyncIterator[workload.Call]:
    import httpx

    token = sample.TOKEN

    async with httpx.AsyncClient() as client:

        async def call(message_id: str, metadata: str) -> Any:
            response = await client.patch(
                f"{given.origin}/v1/projects/{sample.PROJECT_ID}/messages/{message_id}",
                json={"metadata": metadata},
                headers={"Authorization": f"Bearer {token}"},
            )
            response.raise_for_status()
            return response.json()

        yield call


if __name__ == "__main__":
    workload.run(opened, distributions=["httpx", "httpcore", "h11"])
