"""Reading beside updating: what a read costs, ``transform_many`` at the API's pace and in memory, a
long list.

The server's answer to a read is the recorded message. Its metadata is not what the update writes,
so ``transform_many`` sends two requests for every message.
"""

import asyncio
import functools
import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import process, sample, server
from benchmarks.clients import ours as our_client
from benchmarks.clients import workload
from benchmarks.figures import Goal, Measurement, number
from benchmarks.plan import Plan

# The API's limit for a project, which is also the client's default.
RATE = 800

# The most that the API puts on a page.
PAGE = 1_000

CHANGED = '{"ticket":"48213","state":"archived"}'


def measure(plan: Plan) -> Measurement:
    """One table: single calls, the paced job, two unpaced jobs for their memory, and the list."""
    paced = 400 if plan.short else 20_000
    lengths = (1_000, 10_000) if plan.short else (100_000, 1_000_000)
    listed = 3_000 if plan.short else 100_000

    def client(*arguments: object) -> process.Result:
        return process.run("benchmarks.reading", *arguments)

    jobs = {
        "update_message_metadata": ("update", plan.origin, plan.calls, plan.concurrency),
        "get_message": ("get", plan.origin, plan.calls, plan.concurrency),
    }
    results = process.interleaved(
        plan.rounds, {name: functools.partial(client, *given) for name, given in jobs.items()}
    )
    at_pace = f"transform_many, {paced:,} messages at {RATE} requests/s"
    results |= process.interleaved(
        1, {at_pace: functools.partial(client, "transform", plan.origin, paced, RATE)}
    )
    jobs_of = [f"transform_many, {length:,} messages" for length in lengths]
    results |= process.interleaved(
        1,
        {
            name: functools.partial(
                client, "transform", plan.origin, length, our_client.UNREACHED_RATE
            )
            for name, length in zip(jobs_of, lengths, strict=True)
        },
    )
    the_list = f"list_messages, {listed:,} messages"
    with tempfile.TemporaryDirectory(prefix="sinch-bench-") as directory:
        Path(directory).chmod(0o755)  # nginx's worker is another user, where root starts it
        write_pages(Path(directory), listed)
        with server.nginx(pages=Path(directory)) as origin:
            results |= process.interleaved(
                1, {the_list: functools.partial(client, "list", origin, listed, PAGE)}
            )
    peaks = [process.median(results[name], "peak_mib") for name in jobs_of]
    growth = None if peaks[0] is None or peaks[1] is None else peaks[1] - peaks[0]
    per_second = process.median(results[at_pace], "requests_per_second")
    return Measurement(
        name="reading",
        title="Reading, and reading before writing",
        how=(
            f"Single calls by {plan.concurrency} tasks, medians of {plan.rounds} interleaved rounds. A message of "
            "transform_many is read and then updated: two requests, and its CPU is that of both. The list comes in "
            f"pages of {PAGE:,}. The peak is the kernel's, of a process for each row."
        ),
        columns=("what", "CPU µs a message", "messages/s", "requests/s", "seconds", "peak MiB"),
        rows=[
            (
                name,
                number(process.median(found, "cpu_us")),
                number(_per_second(found), 0),
                number(process.median(found, "requests_per_second"), 0),
                number(process.median(found, "seconds")),
                number(process.median(found, "peak_mib"), 2),
            )
            for name, found in results.items()
        ],
        goals=[
            Goal(
                text="CPU of a read against an update",
                figure=process.ratio(
                    results["get_message"], results["update_message_metadata"], "cpu_us"
                ),
                bound=1.1,
            ),
            Goal(
                text=f"requests a second of transform_many at a pace of {RATE}",
                figure=None if per_second is None else 100 * per_second / RATE,
                bound=95,
                at_least=True,
                unit="%",
            ),
            Goal(
                text=f"growth of resident memory, transform_many of {lengths[0]:,} to {lengths[1]:,} messages",
                figure=growth,
                bound=5,
                unit="MiB",
            ),
        ],
        raw={"rounds": results},
    )


def _per_second(found: list[process.Result]) -> float | None:
    wall = process.median(found, "wall_us")
    return None if wall is None else 1e6 / wall


def write_pages(directory: Path, count: int) -> None:
    """The pages of a list, as files that the server finds by their page token."""
    pages = -(-count // PAGE)
    ids = workload.message_ids(count)
    for page in range(pages):
        messages = ",".join(sample.answer(next(ids)) for _ in range(min(PAGE, count - page * PAGE)))
        token = str(page + 1) if page + 1 < pages else ""
        name = str(page) if page else ""
        Path(directory, f"{name}.json").write_text(
            f'{{"messages":[{messages}],"next_page_token":"{token}"}}'
        )


async def _work(what: str, origin: str, count: int, given: int) -> process.Result:
    """Seconds, CPU and peak of one row. ``given``: tasks, requests a second, or
    messages on a page.
    """
    our_client.choose_json("plain")
    from sinch_conv_async import ConversationClient

    pace = given if what == "transform" else our_client.UNREACHED_RATE
    options = our_client.client_options(origin, pace)
    async with ConversationClient(**options) as client:  # type: ignore[arg-type]  # keywords of several types
        await client.authenticate()
        requests, stopwatch = await _KINDS[what](client, origin, count, given)
    # The kernel counts in KiB, on macOS in bytes.
    unit = 1024 if sys.platform != "darwin" else 1
    return {
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20,
        "requests_per_second": requests / stopwatch.wall,
        "seconds": stopwatch.wall,
        **workload.result(count, stopwatch),
    }


async def _get(client: Any, origin: str, count: int, given: int) -> tuple[int, workload.Stopwatch]:
    async def call(message_id: str, metadata: str) -> object:
        return await client.get_message(message_id)

    return await _calls(call, origin, count, given)


async def _update(
    client: Any, origin: str, count: int, given: int
) -> tuple[int, workload.Stopwatch]:
    return await _calls(client.update_message_metadata, origin, count, given)


async def _calls(
    call: workload.Call, origin: str, count: int, tasks: int
) -> tuple[int, workload.Stopwatch]:
    asked = workload.Arguments(origin, count, tasks, None, "plain", latencies=False)
    await workload.work(call, asked.warmup, asked)
    with workload.Stopwatch() as stopwatch:
        await workload.work(call, count, asked)
    return count, stopwatch


async def _transform(
    client: Any, origin: str, count: int, given: int
) -> tuple[int, workload.Stopwatch]:
    done = 0
    ids = workload.message_ids(count)
    with workload.Stopwatch() as stopwatch:
        async with client.transform_many(ids, lambda message: CHANGED) as outcomes:
            async for outcome in outcomes:
                if not outcome.ok or outcome.attempts != 2:
                    raise RuntimeError(f"not read and updated: {outcome!r}")
                done += 1
    if done != count:
        raise RuntimeError(f"{done} outcomes of {count} messages")
    return 2 * count, stopwatch


async def _list(client: Any, origin: str, count: int, given: int) -> tuple[int, workload.Stopwatch]:
    done = 0
    with workload.Stopwatch() as stopwatch:
        async for _ in client.list_messages(page_size=given):
            done += 1
    if done != count:
        raise RuntimeError(f"{done} messages of {count}")
    return -(-count // given), stopwatch


_KINDS = {"get": _get, "update": _update, "transform": _transform, "list": _list}


def main() -> None:
    """The process of one row."""
    with workload.missing_is_reported():
        found = asyncio.run(_work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        print(json.dumps(found))


if __name__ == "__main__":
    main()
