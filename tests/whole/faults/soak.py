"""Ten minutes at 800 updates a second with faults mixed in: ``nox -s soak``, by hand.

One client in this process, a sandbox in another, nginx between them. Every so often something goes
wrong: nginx is reloaded or killed, the service answers 503 or 429 or drops connections, swaps
answers, revokes tokens, stalls; callers cancel. Resident memory, descriptors and tasks are sampled
each second and must be flat; every update must have its outcome, and what was reported as done must
have been applied. Draws ``soak.svg``.

``python -m tests.whole.faults.soak [--seconds 600] [--rate 800] [--plot docs/evidence/soak.svg]``
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sinch_conv_async import ConversationClient, SessionManager, SinchError
from tests.whole.faults.programs import Backend, Nginx, backend, nginx
from tests.whole.faults.test_connections import proxied

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# Until pools, caches and the allocator have found their size.
WARM_UP = 60.0

# Of the medians of the first and the last quarter after the warm-up.
MEMORY_MAY_GROW = 1.05

# Seconds between two faults, and of each that lasts.
BETWEEN = 5.0
LASTS = 0.2

PAGE = os.sysconf("SC_PAGE_SIZE")


@attrs.frozen
class Sample:
    at: float
    resident: float  # MiB
    descriptors: int
    tasks: int
    done: int


@attrs.define
class Tally:
    outcomes: Counter[str] = attrs.field(factory=Counter)
    taken: int = 0
    singles: Counter[str] = attrs.field(factory=Counter)
    wrong: int = 0
    faults: Counter[str] = attrs.field(factory=Counter)
    samples: list[Sample] = attrs.field(factory=list)
    broken: list[str] = attrs.field(factory=list)


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


async def sample(tally: Tally, began: float) -> None:
    while True:
        descriptors = len(os.listdir("/proc/self/fd"))
        tasks = len(asyncio.all_tasks())
        done = sum(tally.outcomes.values())
        tally.samples.append(Sample(time.monotonic() - began, resident(), descriptors, tasks, done))
        await asyncio.sleep(1)


def crossing(port: int, sign: Path) -> str:
    """nginx in front of the sandbox; while ``sign`` is there, its answers are about another
    message.

    Only on connections that have carried an answer. On a new one nothing can have been shifted, so
    such an answer ends the call, by contract.
    """
    crossed = f"""
        set $crossed $carried;
        if (!-f {sign}) {{ set $crossed ""; }}
        if ($crossed) {{ return 200 '{{"id":"01ANOTHER"}}'; }}
    """
    return f'map $connection_requests $carried {{ default 1; 1 ""; }} {proxied(port, crossed)}'


async def disturb(
    tally: Tally, began: float, sandbox: Backend, front: Nginx, sign: Path, rng: random.Random
) -> None:
    """One fault after another, at random, of all that is not too rough for a minute's average."""

    def tell(name: str, *arguments: object, **keywords: object) -> None:
        sandbox.do(name, *arguments, **keywords)

    def restart() -> None:
        front.kill()
        front.start()

    def scripted(name: str, *arguments: object, **keywords: object) -> Callable[[], None]:
        """All requests for a while, and then none: a probe must not be what uses a fault up."""

        def fault() -> None:
            tell(name, *arguments, times=1_000_000, **keywords)
            time.sleep(LASTS)
            tell("clear_faults")

        return fault

    def cross() -> None:
        sign.touch()
        time.sleep(LASTS)
        sign.unlink()

    faults = {
        "reload": front.reload,
        "restart": restart,
        "503": scripted("fail_next", 503),
        "429": scripted("fail_next", 429),
        "429 with Retry-After": scripted("fail_next", 429, retry_after=1),
        "dropped": scripted("drop_next"),
        "cut in the middle": scripted("drop_next", when="mid_body", applied=True),
        "swapped": cross,
        "slow": scripted("delay_next", 1.0),
        "revoked": lambda: tell("revoke_tokens"),
        "token endpoint 500": lambda: (
            tell("fail_next_token", 500, times=2),
            tell("expire_tokens"),
        ),
    }
    while True:
        await asyncio.sleep(BETWEEN)
        name = rng.choice(sorted(faults))
        tally.faults[name] += 1
        print(f"{time.monotonic() - began:6.1f} s  {name}", flush=True)
        await asyncio.to_thread(faults[name])


async def nuisance(tally: Tally, client: ConversationClient, rng: random.Random) -> None:
    """Single calls beside the job, half of them cancelled or hurried."""
    number = 0
    while True:
        await asyncio.sleep(0.05)
        number += 1
        message_id = f"01SINGLE{number:09d}"
        timeout = rng.choice([None, None, 0.05, 0.5])
        call = asyncio.ensure_future(
            client.update_message_metadata(message_id, "single", timeout=timeout)
        )
        if rng.random() < 0.3:
            asyncio.get_running_loop().call_later(rng.uniform(0, 0.05), call.cancel)
        try:
            message = await call
        except SinchError as error:
            tally.singles[type(error).__name__] += 1
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if this is not None and this.cancelling():
                raise
            tally.singles["cancelled"] += 1
        else:
            tally.singles["ok"] += 1
            tally.wrong += (message.id, message.metadata) != (message_id, "single")


async def soak(seconds: float, rate: float) -> tuple[Tally, int]:
    """What came of it, and how many messages the sandbox says were updated by the job."""
    rng = random.Random(int(seconds))
    tally = Tally()
    # Few enough ids that neither side grows with the time, enough that none is updated twice at a
    # time.
    ids = [f"01SOAK{number:06d}" for number in range(20_000)]

    with (
        tempfile.TemporaryDirectory(prefix="soak-") as directory,
        backend(keep_requests=0) as sandbox,
        nginx(crossing(sandbox.port, sign := Path(directory, "cross"))) as front,
    ):
        options = {**sandbox.options, "conversation_origin": front.origin, "attempt_timeout": 2.0}
        async with SessionManager() as manager:
            async with ConversationClient(
                **options, rate_limit=rate, session_manager=manager
            ) as client:
                began = time.monotonic()

                async def updates() -> AsyncIterator[tuple[str, str]]:
                    while time.monotonic() - began < seconds:
                        number = tally.taken
                        tally.taken += 1
                        yield ids[number % len(ids)], f"soak-{number}"

                this = asyncio.current_task()
                assert this is not None

                def ended(other: asyncio.Task[None]) -> None:
                    if not other.cancelled():
                        tally.broken.append(repr(other.exception()))
                        # a soak without its faults, or without its samples, shows nothing
                        this.cancel()

                others = [
                    asyncio.create_task(sample(tally, began)),
                    asyncio.create_task(disturb(tally, began, sandbox, front, sign, rng)),
                    asyncio.create_task(nuisance(tally, client, rng)),
                ]
                for other in others:
                    other.add_done_callback(ended)
                latest: dict[str, str] = {}
                try:
                    async with client.update_many(updates()) as outcomes:
                        async for outcome in outcomes:
                            message, update = outcome.message, outcome.update
                            if message is None:
                                tally.outcomes[type(outcome.error).__name__] += 1
                            else:
                                tally.outcomes["ok"] += 1
                                tally.wrong += (message.id, message.metadata) != (
                                    update.message_id,
                                    update.metadata,
                                )
                                latest[update.message_id] = update.metadata
                except asyncio.CancelledError:
                    if tally.broken:
                        raise RuntimeError(tally.broken[0]) from None
                    raise
                finally:
                    for other in others:
                        other.cancel()
                    await asyncio.gather(*others, return_exceptions=True)
            stats = manager.stats()
            assert stats.in_flight == stats.waiting == 0, stats
        stored = sandbox.do("metadata")
    stale = sum(stored.get(message_id) != metadata for message_id, metadata in latest.items())
    return tally, stale


def flat(tally: Tally) -> list[str]:
    """What has grown that should not have."""
    warm = [entry for entry in tally.samples if entry.at >= min(WARM_UP, tally.samples[-1].at / 4)]
    quarter = max(1, len(warm) // 4)
    first, last = warm[:quarter], warm[-quarter:]
    grown = []
    for name in ("resident", "descriptors", "tasks"):
        before = statistics.median(getattr(entry, name) for entry in first)
        after = statistics.median(getattr(entry, name) for entry in last)
        print(f"{name}: median {before:.1f} in the first quarter, {after:.1f} in the last")
        # A pool of connections breathes with the faults; memory does not.
        allowed = before * MEMORY_MAY_GROW if name == "resident" else before * 1.5 + 20
        if after > allowed:
            grown.append(name)
    return grown


SERIES = (
    ("resident memory, MiB", "resident", "#2962a8"),
    ("descriptors", "descriptors", "#b3541e"),
    ("tasks", "tasks", "#2e7d4f"),
)
WIDTH, HEIGHT, MARGIN = 720, 130, 48


def draw(samples: list[Sample], path: Path) -> None:
    """Three curves one below the other, each from zero: what is flat looks flat."""
    span = max(samples[-1].at, 1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {len(SERIES) * (HEIGHT + 30) + 30}" '
        'font-family="sans-serif" font-size="12" fill="#777">'
    ]
    for row, (title, name, colour) in enumerate(SERIES):
        top = row * (HEIGHT + 30) + 24
        values = [float(getattr(entry, name)) for entry in samples]
        highest = max(values) * 1.1 or 1.0
        points = " ".join(
            f"{MARGIN + entry.at / span * (WIDTH - MARGIN - 8):.1f},{top + HEIGHT - value / highest * HEIGHT:.1f}"
            for entry, value in zip(samples, values, strict=True)
        )
        parts += [
            f'<text x="{MARGIN}" y="{top - 6}">{title}</text>',
            f'<path d="M{MARGIN} {top}V{top + HEIGHT}H{WIDTH - 8}" fill="none" stroke="#999"/>',
            f'<text x="{MARGIN - 6}" y="{top + 10}" text-anchor="end">{highest:.0f}</text>',
            f'<text x="{MARGIN - 6}" y="{top + HEIGHT}" text-anchor="end">0</text>',
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>',
        ]
    bottom = len(SERIES) * (HEIGHT + 30) + 22
    parts += [
        f'<text x="{WIDTH - 8}" y="{bottom}" text-anchor="end">{span:.0f} s</text>',
        f'<text x="{MARGIN}" y="{bottom}">0</text>',
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=800.0)
    parser.add_argument("--plot", type=Path, default=Path("docs/evidence/soak.svg"))
    arguments = parser.parse_args()

    # As Ctrl-C does, so that the servers end with it.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    tally, stale = asyncio.run(soak(arguments.seconds, arguments.rate))
    gc.collect()
    done = sum(tally.outcomes.values())
    elapsed = tally.samples[-1].at
    print(
        f"{done:,} updates in {elapsed:.0f} s, {done / elapsed:.0f} a second: {dict(tally.outcomes)}"
    )
    print(f"single calls beside them: {dict(tally.singles)}")
    print(f"faults: {dict(tally.faults)}")
    problems = [f"{name} has grown" for name in flat(tally)]
    if done != tally.taken:
        problems.append(f"{tally.taken - done} updates have no outcome")
    if tally.outcomes["ok"] != done:
        problems.append(f"{done - tally.outcomes['ok']} updates failed")
    if tally.wrong:
        problems.append(f"{tally.wrong} answers were given to the wrong call")
    if stale:
        problems.append(
            f"{stale} messages do not have the metadata that was last reported for them"
        )
    draw(tally.samples, arguments.plot)
    print(f"drawn: {arguments.plot}")
    for problem in problems:
        print(f"NOT MET: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
