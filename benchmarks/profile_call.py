"""Where the time of one call goes: ``python -m benchmarks.profile_call``.

Runs a client of the benchmark against its nginx and prints where it was. ``sample`` interrupts the
process by its CPU time and looks at the stack, which favours nothing; ``functions`` is cProfile,
which counts every call but charges for doing so and makes small functions look dear. Neither sees
into C.
"""

import argparse
import asyncio
import collections
import cProfile
import pstats
import signal
from pathlib import Path
from types import FrameType

from benchmarks import server
from benchmarks.clients import handwritten, ours, workload

_CLIENTS = {"ours": ours.opened, "handwritten": handwritten.opened}

# A prime number of microseconds, so that it does not beat with anything periodic. The kernel may
# round it up to its tick (1 to 4 ms): the number of samples is printed.
_INTERVAL = 0.000_997


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_call", description=__doc__)
    parser.add_argument("--client", choices=sorted(_CLIENTS), default="ours")
    parser.add_argument("--variant", default="plain", help="plain or speedups, for ours")
    parser.add_argument("--how", choices=["sample", "functions"], default="sample")
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--lines", type=int, default=40, help="how many lines to print")
    parser.add_argument(
        "--save", type=Path, help="with functions: write the profile there, for pstats or snakeviz"
    )
    options = parser.parse_args()
    with server.nginx() as origin:
        given = workload.Arguments(
            origin=origin,
            calls=options.calls,
            concurrency=options.concurrency,
            rate=None,
            variant=options.variant,
            latencies=False,
        )
        profile = _sampled if options.how == "sample" else _counted
        asyncio.run(profile(given, options))


async def _sampled(given: workload.Arguments, options: argparse.Namespace) -> None:
    itself: collections.Counter[str] = collections.Counter()
    below: collections.Counter[str] = collections.Counter()
    lines: collections.Counter[str] = collections.Counter()

    def look(_signal: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        itself[_name(frame)] += 1
        lines[f"{_place(frame)}:{frame.f_lineno}"] += 1
        seen = set()
        while frame is not None:
            seen.add(_name(frame))
            frame = frame.f_back
        below.update(seen)

    async with _CLIENTS[options.client](given) as call:
        await workload.work(call, given.warmup, given)
        signal.signal(signal.SIGPROF, look)
        with workload.Stopwatch() as stopwatch:
            signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)
            await workload.work(call, given.calls, given)
            signal.setitimer(signal.ITIMER_PROF, 0)
    cost = stopwatch.cpu / given.calls * 1e6
    total = max(1, itself.total())
    print(f"{cost:.1f} µs of CPU a call, {given.calls:,} calls, {total:,} samples")
    titles = {
        "in the function itself (C functions it calls included)": itself,
        "in the function and all below it": below,
        "at the line": lines,
    }
    for title, found in titles.items():
        print(f"\n  µs a call  share  {title}")
        for name, hits in found.most_common(options.lines):
            print(f"  {cost * hits / total:9.1f}  {hits / total:5.1%}  {name}")


async def _counted(given: workload.Arguments, options: argparse.Namespace) -> None:
    async with _CLIENTS[options.client](given) as call:
        await workload.work(call, given.warmup, given)
        profile = cProfile.Profile()
        profile.enable()
        await workload.work(call, given.calls, given)
        profile.disable()
    print(f"{given.calls:,} calls; divide by that")
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(options.lines)
    if options.save is not None:
        profile.dump_stats(options.save)


def _name(frame: FrameType) -> str:
    return f"{_place(frame)} {frame.f_code.co_qualname}"


def _place(frame: FrameType) -> str:
    """The last two parts of the file's path, which tell aiohttp's ``client.py`` from ours."""
    return "/".join(Path(frame.f_code.co_filename).parts[-2:])


if __name__ == "__main__":
    main()
