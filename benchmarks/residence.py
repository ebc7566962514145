"""The resident memory of `update_many`, over jobs of different lengths.

The peak that the kernel saw, in a process for each length: what grows with the job shows as a
difference.
"""

import asyncio
import functools
import json
import resource
import sys
from collections.abc import Iterator

from benchmarks import process, sample
from benchmarks.clients import ours as our_client
from benchmarks.clients import workload
from benchmarks.figures import Goal, Measurement, Plot, number
from benchmarks.plan import Plan


def measure(plan: Plan) -> Measurement:
    """Peak resident memory of a job and of one ten times as long."""
    lengths = (2_000, 20_000) if plan.short else (100_000, 1_000_000)
    results = process.interleaved(
        1,
        {
            f"{length:,} updates": functools.partial(
                process.run, "benchmarks.residence", plan.origin, length
            )
            for length in lengths
        },
    )
    peaks = [process.median(found, "peak_mib") for found in results.values()]
    growth = None if peaks[0] is None or peaks[1] is None else peaks[1] - peaks[0]
    return Measurement(
        name="residence",
        title="Resident memory of update_many",
        how="Updates come from a generator and each outcome is dropped; the kernel's peak of the process.",
        columns=("job", "peak MiB", "CPU µs an update", "updates/s"),
        rows=[
            (
                name,
                number(process.median(found, "peak_mib"), 2),
                number(process.median(found, "cpu_us")),
                number(None if not found else 1e6 / found[0]["wall_us"], 0),
            )
            for name, found in results.items()
        ],
        goals=[
            Goal(
                text=f"growth of resident memory, {lengths[0]:,} to {lengths[1]:,} updates",
                figure=growth,
                bound=5,
                unit="MiB",
            )
        ],
        plot=Plot(
            label="peak resident memory, MiB",
            series={
                name: [(0.0, peak)]
                for name, found in results.items()
                if (peak := process.median(found, "peak_mib")) is not None
            },
        ),
        raw={"rounds": results},
    )


async def _job(origin: str, length: int) -> dict[str, float]:
    our_client.choose_json("plain")
    from sinch_conv_async import ConversationClient, MetadataUpdate

    def updates() -> Iterator[MetadataUpdate]:
        for message_id in workload.message_ids(length):
            yield MetadataUpdate(message_id, sample.METADATA)

    options = our_client.client_options(origin)
    async with ConversationClient(**options) as client:  # type: ignore[arg-type]  # keywords of several types
        await client.authenticate()
        done = 0
        with workload.Stopwatch() as stopwatch:
            async with client.update_many(updates()) as outcomes:
                async for outcome in outcomes:
                    if not outcome.ok:
                        raise RuntimeError(f"an update failed: {outcome.error}")
                    done += 1
    if done != length:
        raise RuntimeError(f"{done} outcomes of {length} updates")
    # The kernel counts in KiB, on macOS in bytes.
    unit = 1024 if sys.platform != "darwin" else 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return {"peak_mib": peak, **workload.result(length, stopwatch)}


def main() -> None:
    """A job's process."""
    with workload.missing_is_reported():
        print(json.dumps(asyncio.run(_job(sys.argv[1], int(sys.argv[2])))))


if __name__ == "__main__":
    main()
