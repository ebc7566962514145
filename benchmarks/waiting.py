"""The memory of a call that waits for its turn, in a gather of very many.

Counted by tracemalloc, the caller's task included; the caller's own strings are not. Bytes depend
on the Python, not on the machine, so this may fail a run.
"""

import asyncio
import contextlib
import functools
import gc
import json
import sys
import tracemalloc
from collections.abc import Awaitable, Callable

from benchmarks import process, sample
from benchmarks.calls import HANDWRITTEN, OURS
from benchmarks.clients import ours as our_client
from benchmarks.clients import workload
from benchmarks.figures import Goal, Measurement, Plot, number
from benchmarks.plan import Plan


def measure(plan: Plan) -> Measurement:
    """Bytes a waiting call, and what is left of it once it has been cancelled."""
    # Under ten thousand, what the client has once would be counted as if each call had it.
    waiting = 10_000 if plan.short else 100_000
    jobs = {
        f"{HANDWRITTEN}, at a semaphore": functools.partial(
            process.run, "benchmarks.waiting", "handwritten", plan.origin, waiting
        ),
        OURS: functools.partial(process.run, "benchmarks.waiting", "ours", plan.origin, waiting),
    }
    results = process.interleaved(1, jobs)
    figure = process.median(results[OURS], "bytes_a_call")
    return Measurement(
        name="waiting",
        title="Memory of a waiting call",
        how=(
            f"{waiting:,} calls made at once with asyncio.gather, held back by the pacer (by a semaphore for aiohttp by "
            "hand); traced memory of all of them, their tasks and gather's own list included, divided by their number. "
            "What is left is measured after all have been cancelled."
        ),
        columns=("client", "bytes a waiting call", "bytes left after cancelling"),
        rows=[
            (
                name,
                number(process.median(found, "bytes_a_call"), 0),
                number(process.median(found, "bytes_left"), 0),
            )
            for name, found in results.items()
        ],
        goals=[
            Goal(
                text=f"a waiting call in a gather of {waiting:,}",
                figure=None if figure is None else figure / 1024,
                # Frames of coroutines are larger on Python 3.11.
                bound=2.4 if sys.version_info >= (3, 12) else 2.5,
                unit="KiB",
                count=True,
            )
        ],
        plot=Plot(
            label="bytes a waiting call",
            series={
                name: [(0.0, value)]
                for name, found in results.items()
                if (value := process.median(found, "bytes_a_call")) is not None
            },
        ),
        raw={"rounds": results},
    )


async def _ours(origin: str, count: int) -> dict[str, float]:
    our_client.choose_json("plain")
    from sinch_conv_async import ConversationClient

    # A call a second: hardly one leaves while the memory is read.
    options = our_client.client_options(origin, rate_limit=1)
    async with ConversationClient(**options) as client:  # type: ignore[arg-type]  # keywords of several types
        await client.authenticate()
        return await _measured(client.update_message_metadata, count)


async def _handwritten(_origin: str, count: int) -> dict[str, float]:
    import aiohttp

    semaphore = asyncio.Semaphore(0)
    async with aiohttp.ClientSession() as session:

        async def call(message_id: str, metadata: str) -> object:
            async with (
                semaphore,
                session.patch(message_id, json={"metadata": metadata}) as response,
            ):
                return await response.json()

        return await _measured(call, count)


async def _measured(call: Callable[[str, str], Awaitable[object]], count: int) -> dict[str, float]:
    ids = list(workload.message_ids(count))
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    gathered = asyncio.gather(*(call(message_id, sample.METADATA) for message_id in ids))
    # One turn of the loop starts every task, the next ones take each as far as it gets without an
    # answer.
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()
    during = tracemalloc.get_traced_memory()[0]
    gathered.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await gathered
    # gather is done with its last task, whose frame the loop may still be in: let it come round
    # again.
    await asyncio.sleep(0.1)
    del gathered
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    return {"bytes_a_call": (during - before) / count, "bytes_left": after - before}


def main() -> None:
    """A client's process."""
    client = {"ours": _ours, "handwritten": _handwritten}[sys.argv[1]]
    with workload.missing_is_reported():
        print(json.dumps(asyncio.run(client(sys.argv[2], int(sys.argv[3])))))


if __name__ == "__main__":
    main()
