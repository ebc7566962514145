"""Answers that are no answers: cut, slow, mislabelled, malformed, swollen. The server is a script
on a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers import Peer, Received, Server, http
from tests.whole.faults import naive
from tests.whole.faults.matrix import bulk, judge, judge_bulk, single, updates
from tests.whole.faults.programs import TOKEN_ANSWER, options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JSON = "Content-Type: application/json"
SWOLLEN = 32 * 1024 * 1024  # bytes that a bomb decompresses to


def body_of(received: Received) -> bytes:
    return json.dumps(
        {"id": received.message_id, "metadata": json.loads(received.body)["metadata"]}
    ).encode()


def good(received: Received) -> bytes:
    return http(200, body_of(received), JSON)


def bomb(encoding: str) -> bytes:
    zeros = b" " * SWOLLEN
    packed = {
        "gzip": lambda: gzip.compress(zeros, 9),
        "deflate": lambda: zlib.compress(zeros, 9),
        # RFC 7932: a stream of metablocks; this one is empty but for what a decoder must expand.
        "br": lambda: b"\x0b\x00\x80 \x03",
    }[encoding]()
    return http(200, packed, JSON, f"Content-Encoding: {encoding}")


def bad(what: str, received: Received) -> bytes:
    body = body_of(received)
    return {
        "truncated": lambda: http(200, body[: len(body) // 2], JSON, length=len(body)),
        "dribbled": lambda: http(200, body, JSON),
        "mislabelled": lambda: http(200, body, "Content-Type: text/html; charset=koi8-r"),
        "unlabelled": lambda: http(200, body),
        "malformed": lambda: b"ICMP/1.1 2x0 \x00\r\n\r\n",
        "two lengths": lambda: http(200, body, JSON, "Content-Length: 7"),
        "200 headers": lambda: http(
            200, body, JSON, *(f"X-Header-{n}: {'x' * 200}" for n in range(200))
        ),
        "gzip": lambda: BOMBS["gzip"],
        "deflate": lambda: BOMBS["deflate"],
        "br": lambda: BOMBS["br"],
    }[what]()


BOMBS: dict[str, bytes] = {}

# What the table calls it, and the errors in which a call may end where the service keeps answering
# like this; none where it is read all the same.
FAULTS: dict[str, tuple[str, set[str]]] = {
    "truncated": ("body cut in the middle", {"TransportError"}),
    "dribbled": ("one byte a second", {"CallTimeoutError"}),
    "mislabelled": ("JSON called text/html in koi8-r", set()),
    "unlabelled": ("no Content-Type", set()),
    "malformed": ("status line malformed", {"TransportError"}),
    "two lengths": ("two Content-Lengths", {"TransportError"}),
    "200 headers": ("200 headers, 40 KB", {"TransportError"}),
    "gzip": ("gzip bomb of 32 MB", {"ResponseFormatError"}),
    "deflate": ("deflate bomb of 32 MB", {"ResponseFormatError"}),
    "br": ("brotli, which nobody asked for", {"ResponseFormatError"}),
}


@contextlib.asynccontextmanager
async def serving(what: str, *, always: bool) -> AsyncIterator[Server]:
    """Gives every other message this answer: always, or when it is first asked."""
    asked: Counter[str] = Counter()

    async def script(peer: Peer) -> None:
        while True:
            received = await peer.receive()
            if received.target == "/oauth2/token":
                server.received.pop()
                await peer.send(http(200, TOKEN_ANSWER.encode(), JSON))
                continue
            asked[received.message_id] += 1
            if int(received.message_id[-1]) % 2 or (asked[received.message_id] > 1 and not always):
                await peer.send(good(received))
                continue
            answer = bad(what, received)
            if what == "dribbled":
                for byte in answer:
                    await peer.send(bytes([byte]))
                    await asyncio.sleep(1)
            await peer.send(answer)
            if what == "truncated":
                return

    async with Server(script) as server:
        yield server


def peak() -> int:
    """The most memory that was resident since the peak was last forgotten, in bytes (proc(5):
    VmHWM).
    """
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    """Starts the peak anew at what is resident now, and says how much that is (proc(5):
    clear_refs).
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


@pytest.mark.parametrize("what", FAULTS)
async def test_answers_that_are_no_answers(table, what):
    name, errors = FAULTS[what]
    bombs = what in ("gzip", "deflate", "br")
    calls = updates(20 if bombs else 100, family="ANSWER")
    if bombs:
        BOMBS[what] = bomb(what)
    readable = what in ("mislabelled", "unlabelled", "200 headers")

    def applied(server: Server) -> Counter[str]:
        return Counter(received.message_id for received in server.received)

    bitten = None
    if naive.RUN:
        async with serving(what, always=False) as server:
            plain = await naive.loop(options(server.origin), calls, patience=2, concurrency=100)
            bitten = plain.failures(applied(server))
        assert bitten or readable

    memory = forget_peak()  # which the naive side has set
    impatient = {"attempt_timeout": 0.3} if what == "dribbled" else {}
    async with serving(what, always=False) as server:
        job = await bulk({**options(server.origin), **impatient}, calls)
        if bombs:
            # Applied, by the look of its status, so there is no point in a repeat; but nobody can
            # tell what the answer says.
            judge(job, applied(server))
            assert set(job.errors) <= errors
        else:
            judge_bulk(job, applied(server))
        table.add(f"{name}, once", "bulk", job, naive=bitten)

    if errors:
        async with serving(what, always=True) as server:
            ours = await single({**options(server.origin), **impatient}, calls, concurrency=100)
            judge(ours, applied(server))
            assert set(ours.errors) <= errors
            table.add(f"{name}, always", "single", ours, naive=bitten)
    if bombs:
        grown = peak() - memory
        assert grown < SWOLLEN / 2, f"an answer of {SWOLLEN:,} bytes took {grown:,} of memory"
