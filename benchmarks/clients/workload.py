"""The work every client is given, and the stopwatch around it.

Knows no client: a client hands in a way to open itself. Warm-up comes first and is not counted
(connections, the token, the interpreter's specialised code). Standard library only, since clients
from other environments import it.
"""

import argparse
import asyncio
import importlib
import importlib.metadata
import json
import resource
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Self

from benchmarks import sample

Call = Callable[[str, str], Awaitable[object]]


@dataclass(frozen=True)
class Arguments:
    """What a client is asked to do: `calls` updates against `origin`, at most `concurrency` at a
    time.

    With a `rate` (calls per second) all calls are made at once, and the client holds the rate
    itself.
    """

    origin: str
    calls: int
    concurrency: int
    rate: float | None
    variant: str
    latencies: bool
    loop: str = "asyncio"

    @property
    def warmup(self) -> int:
        """Calls before the stopwatch starts: enough to open every connection and to settle the
        interpreter.
        """
        return 100 if self.rate else max(500, 2 * min(self.concurrency, 300))


def arguments() -> Arguments:
    """The command line of a client's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("origin")
    parser.add_argument("calls", type=int)
    parser.add_argument("concurrency", type=int)
    parser.add_argument(
        "--rate", type=float, default=None, help="calls per second, held by the client"
    )
    parser.add_argument(
        "--variant", default="", help="which form of the client; each names its own"
    )
    parser.add_argument("--latencies", action="store_true", help="clock every single call")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    return Arguments(**vars(parser.parse_args()))


def cpu_seconds() -> float:
    """User and system time of this process so far, all its threads included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Stopwatch:
    """CPU and wall seconds between entering and leaving."""

    def __enter__(self) -> Self:
        self._cpu, self._wall = cpu_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = cpu_seconds() - self._cpu


def message_ids(count: int) -> Iterator[str]:
    """Ids of the length of Sinch's, each its own: one id for all would have yarl find every URL in
    its cache.
    """
    return (f"{sample.MESSAGE_ID[:18]}{number:08d}" for number in range(count))


def run(
    opened: Callable[[Arguments], AbstractAsyncContextManager[Call]],
    *,
    distributions: Sequence[str],
) -> None:
    """Opens the client, has it do the work, and prints what that took."""
    given = arguments()

    async def main() -> dict[str, Any]:
        async with opened(given) as call:
            await work(call, given.warmup, given)
            latencies: list[float] | None = [] if given.latencies else None
            with Stopwatch() as stopwatch:
                await work(call, given.calls, given, latencies)
        return result(given.calls, stopwatch, latencies)

    with missing_is_reported():
        factory = (
            importlib.import_module("uvloop").new_event_loop if given.loop == "uvloop" else None
        )
        with asyncio.Runner(loop_factory=factory) as runner:
            found = runner.run(main())
        report(found, distributions=[*distributions, *(["uvloop"] if factory else [])])


def result(
    calls: int, stopwatch: Stopwatch, latencies: list[float] | None = None
) -> dict[str, Any]:
    """Microseconds a call: of CPU, of wall clock and, where clocked, the spread of single calls."""
    found = {
        "cpu_us": stopwatch.cpu / calls * 1e6,
        "wall_us": stopwatch.wall / calls * 1e6,
        "calls": calls,
    }
    found["share_of_a_core"] = stopwatch.cpu / stopwatch.wall
    if latencies:
        found["median_us"] = statistics.median(latencies) * 1e6
        found["p99_us"] = statistics.quantiles(latencies, n=100)[98] * 1e6
    return found


def report(found: dict[str, Any], *, distributions: Sequence[str]) -> None:
    """Prints the one line that the parent process reads."""
    found["versions"] = {name: _version(name) for name in distributions}
    print(json.dumps(found))


class missing_is_reported:  # noqa: N801 (reads as the `with` statement that it is for)
    """A client that is not installed is an answer, not a crash."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if not isinstance(error, ImportError):
            return False
        print(json.dumps({"missing": str(error)}))
        return True


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


async def work(
    call: Call, count: int, given: Arguments, latencies: list[float] | None = None
) -> None:
    """Makes `count` calls, `given.concurrency` at a time; with a rate, all at once. Clocks each
    where asked to.
    """
    ids = message_ids(count)

    async def worker() -> None:
        for message_id in ids:
            await call(message_id, sample.METADATA)

    async def clocked_worker(latencies: list[float]) -> None:
        for message_id in ids:
            began = time.perf_counter()
            await call(message_id, sample.METADATA)
            latencies.append(time.perf_counter() - began)

    if given.rate is not None:
        await asyncio.gather(*(call(message_id, sample.METADATA) for message_id in ids))
        return
    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(given.concurrency, count)):
            tasks.create_task(worker() if latencies is None else clocked_worker(latencies))
