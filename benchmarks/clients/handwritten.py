"""aiohttp as people write it by hand: one session, ``json=``, ``raise_for_status``,
``await response.json()``.

No token cache, no retry, no pacing, no types. What every ratio in the table is taken against.
With a rate, each task sleeps until its slot has come.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

from benchmarks import sample
from benchmarks.clients import workload


@contextlib.asynccontextmanager
async def opened(given: workload.Arguments) -> AsyncIterator[workload.Call]:
    import aiohttp

    token = sample.TOKEN

    async with aiohttp.ClientSession() as session:

        async def call(message_id: str, metadata: str) -> Any:
            url = f"{given.origin}/v1/projects/{sample.PROJECT_ID}/messages/{message_id}"
            async with session.patch(
                url, json={"metadata": metadata}, headers={"Authorization": f"Bearer {token}"}
            ) as response:
                response.raise_for_status()
                return await response.json()

        yield call if given.rate is None else _sleeping(call, given.rate)


def _sleeping(call: workload.Call, rate: float) -> workload.Call:
    loop = asyncio.get_running_loop()
    start = loop.time()
    slots = itertools.count()

    async def paced(message_id: str, metadata: str) -> Any:
        await asyncio.sleep(start + next(slots) / rate - loop.time())
        return await call(message_id, metadata)

    return paced


if __name__ == "__main__":
    workload.run(opened, distributions=["aiohttp"])
