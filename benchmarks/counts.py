"""What one call costs in counts that are the same on every machine: the part of the benchmark that
may fail a build.

Counted are calls of Python functions, bytecode instructions, and the blocks of memory that a call
keeps when it is over. The first two are held against aiohttp written by hand on the same Python, so
that a new release of either moves both. The server is a thread with a plain socket, which needs no
nginx. Profile and trace functions see their own thread only.
"""

import asyncio
import contextlib
import functools
import gc
import itertools
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import attrs

from benchmarks import process, sample
from benchmarks.calls import HANDWRITTEN, OURS, OURS_SPEEDUPS
from benchmarks.clients import handwritten, workload
from benchmarks.clients import ours as our_client
from benchmarks.figures import Goal, Measurement, number
from benchmarks.plan import Plan

# Enough that what happens once in many calls (a bucket of the retry budget, say) is seen, and
# spread.
_CALLS = 100


@attrs.frozen(kw_only=True)
class Counts:
    """Of one call: function calls, instructions; blocks kept over `_CALLS` calls."""

    python_calls: float
    instructions: float
    blocks_kept: float


def measure(plan: Plan) -> Measurement:
    """Counts a call, and the bounds that a build is held to."""
    results = process.interleaved(
        1,
        {
            HANDWRITTEN: functools.partial(process.run, "benchmarks.counts", "handwritten"),
            OURS: functools.partial(process.run, "benchmarks.counts", "ours", "plain"),
            OURS_SPEEDUPS: functools.partial(process.run, "benchmarks.counts", "ours", "speedups"),
        },
    )
    counted = {name: Counts(**found[0]) for name, found in results.items() if found}
    base, ours = counted[HANDWRITTEN], counted.get(OURS)
    return Measurement(
        name="counts",
        title="Counts",
        how=(
            f"One task, one connection, means of {_CALLS} calls after a warm-up. Function calls are those of Python "
            "functions, resumed coroutines and the event loop's own included; instructions are bytecode."
        ),
        columns=("client", "function calls", "instructions", f"blocks kept after {_CALLS}"),
        rows=[
            (
                name,
                number(found.python_calls),
                number(found.instructions, 0),
                number(found.blocks_kept, 0),
            )
            for name, found in counted.items()
        ],
        goals=_goals(base, ours),
        raw={"rounds": results},
    )


def assert_bounds() -> None:
    """Raises `AssertionError` with the figures unless the client stays within every bound; for a
    test suite.
    """
    base = Counts(**process.run("benchmarks.counts", "handwritten"))
    ours = Counts(**process.run("benchmarks.counts", "ours", "plain"))
    broken = [" ".join(goal.row) for goal in _goals(base, ours) if not goal.met]
    assert not broken, "; ".join(broken)


def _goals(base: Counts, ours: Counts | None) -> list[Goal]:
    return [
        Goal(
            text="function calls against aiohttp by hand",
            figure=None if ours is None else ours.python_calls / base.python_calls,
            bound=1.0,
            count=True,
        ),
        Goal(
            text="bytecode instructions against aiohttp by hand",
            figure=None if ours is None else ours.instructions / base.instructions,
            bound=1.0,
            count=True,
        ),
        Goal(
            # Not nought: the interpreter's own free lists and the budget's buckets come and go by a
            # few.
            text="memory blocks kept by a call that is over",
            figure=None if ours is None else ours.blocks_kept / _CALLS,
            bound=0.25,
            unit="blocks",
            count=True,
        ),
    ]


async def count(call: workload.Call) -> Counts:
    """Counts of `call`, made one at a time in this thread."""

    async def calls() -> None:
        for message_id in workload.message_ids(_CALLS):
            await call(message_id, sample.METADATA)

    for _ in range(3):
        await calls()

    # A collection in the middle would run finalizers that belong to no call.
    gc.collect()
    gc.disable()
    with _function_calls() as python_calls:
        await calls()
    with _instructions() as instructions:
        await calls()
    gc.enable()

    await calls()
    gc.collect()
    blocks = sys.getallocatedblocks()
    await calls()
    gc.collect()
    blocks_kept = sys.getallocatedblocks() - blocks

    return Counts(
        python_calls=next(python_calls) / _CALLS,
        instructions=next(instructions) / _CALLS,
        blocks_kept=blocks_kept,
    )


@contextlib.contextmanager
def _function_calls() -> Iterator[Iterator[int]]:
    """Yields a counter, whose next value is the number of Python functions called or resumed in
    this thread.
    """
    counter = itertools.count()

    def profiler(_frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            next(counter)

    sys.setprofile(profiler)
    try:
        yield counter
    finally:
        sys.setprofile(None)


@contextlib.contextmanager
def _instructions() -> Iterator[Iterator[int]]:
    """Yields a counter, whose next value is the number of bytecode instructions executed in this
    thread.
    """
    counter = itertools.count()
    # Python 3.12 lost the opcode events of settrace where they are asked for within a trace
    # function, and has sys.monitoring, which sees every thread.
    if sys.version_info >= (3, 12):
        here = threading.get_ident()

        def executed(_code: CodeType, _offset: int) -> None:
            if threading.get_ident() == here:
                next(counter)

        monitoring = sys.monitoring
        monitoring.use_tool_id(monitoring.PROFILER_ID, "benchmarks.counts")
        monitoring.register_callback(
            monitoring.PROFILER_ID, monitoring.events.INSTRUCTION, executed
        )
        monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION)
        try:
            yield counter
        finally:
            monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.NO_EVENTS)
            monitoring.free_tool_id(monitoring.PROFILER_ID)
    else:

        def tracer(frame: FrameType, event: str, _argument: object) -> Any:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            if event == "opcode":
                next(counter)
            return tracer

        sys.settrace(tracer)
        try:
            yield counter
        finally:
            sys.settrace(None)


@contextlib.contextmanager
def answering() -> Iterator[str]:
    """Yields the origin of a server that gives the recorded answer, one thread a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=_serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _serve(connection: socket.socket) -> None:
    token = _answer(sample.TOKEN_ANSWER)
    received = b""
    with connection:
        while data := connection.recv(65536):
            received += data
            head, found, body = received.partition(b"\r\n\r\n")
            if not found or len(body) < _content_length(head):
                continue
            target = head.split(b" ", 2)[1].decode()
            message_id = target.rpartition("/")[2]
            connection.sendall(
                token if target == "/oauth2/token" else _answer(sample.answer(message_id))
            )
            received = b""


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _answer(body: str) -> bytes:
    content = body.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def _counted(opened: Callable[[workload.Arguments], Any], variant: str) -> Counts:
    with answering() as origin:
        given = workload.Arguments(
            origin=origin, calls=_CALLS, concurrency=1, rate=None, variant=variant, latencies=False
        )
        async with opened(given) as call:
            return await count(call)


def main() -> None:
    """A client's process."""
    opened = {"handwritten": handwritten.opened, "ours": our_client.opened}[sys.argv[1]]
    variant = sys.argv[2] if len(sys.argv) > 2 else ""
    with workload.missing_is_reported():
        print(json.dumps(attrs.asdict(asyncio.run(_counted(opened, variant)))))


if __name__ == "__main__":
    main()
