"""What a row of the matrix is made of: calls under a fault, what became of each, and what it is
held to.

Knows no server: what was applied is handed in, as the server's own log has it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from sinch_conv_async import ConversationClient, SessionManager, SinchError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

# Of the last ten seconds 20 % of the calls, and ten a second more: what the client promises of its
# retries.
BUDGET_SHARE = 0.2
BUDGET_PER_SECOND = 10
BUDGET_WINDOW = 10


def updates(count: int, *, family: str) -> list[tuple[str, str]]:
    """So many updates, each of its own message, with metadata that tells which message
    it is for.
    """
    return [(f"01{family}{number:09d}", f"set-01{family}{number:09d}") for number in range(count)]


@attrs.frozen
class Ended:
    """One call that came to its end: the answer that was given as this message's, or the error."""

    message_id: str
    metadata: str
    at: float
    attempts: int = 1
    answer: tuple[str | None, str | None] | None = None
    error: BaseException | None = attrs.field(default=None, repr=False)

    @property
    def succeeded(self) -> bool:
        return self.error is None and self.answer == (self.message_id, self.metadata)

    @property
    def misattributed(self) -> bool:
        return self.answer is not None and self.answer != (self.message_id, self.metadata)


@attrs.define
class Side:
    """One client's calls under one fault. ``hung``: calls that had not ended when patience had."""

    calls: int
    began: float
    seconds: float = 0.0
    ended: list[Ended] = attrs.field(factory=list, repr=False)
    hung: int = 0
    attempts: int = 0
    throttled: int = 0

    @property
    def errors(self) -> Counter[str]:
        return Counter(type(end.error).__name__ for end in self.ended if end.error is not None)

    @property
    def succeeded(self) -> int:
        return sum(end.succeeded for end in self.ended)

    def failures(self, applied: Collection[str]) -> int:
        """Calls that raised, never ended, were told of somebody else's message, or were told of a
        success that the server knows nothing of.
        """
        fine = sum(end.succeeded and end.message_id in applied for end in self.ended)
        return self.calls - fine

    def recovered(self, restored: float) -> float:
        """Seconds from the moment at which the fault was over to the next call that got through."""
        return (
            min(
                (end.at for end in self.ended if end.succeeded and end.at >= restored),
                default=float("nan"),
            )
            - restored
        )

    @property
    def attempts_per_call(self) -> float:
        return self.attempts / self.calls


async def spread(
    calls: Iterable[tuple[str, str]],
    one: Callable[[str, str], Awaitable[tuple[str | None, str | None]]],
    side: Side,
    *,
    rate: float | None,
    concurrency: int,
    pause: Callable[[], float] | None = None,
    patience: float = 60.0,
) -> Side:
    """Makes single calls: so many a second where there is a ``rate``, and at most ``concurrency``
    at a time. ``pause``: seconds before each.
    """
    limit = asyncio.Semaphore(concurrency)

    async def run(number: int, message_id: str, metadata: str) -> None:
        if rate is not None:
            await asyncio.sleep(max(0.0, side.began + number / rate - time.monotonic()))
        async with limit:
            if pause is not None:
                await asyncio.sleep(pause())
            try:
                answer = await one(message_id, metadata)
            except Exception as error:  # whatever it is, it is what the caller would have got
                side.ended.append(
                    Ended(
                        message_id,
                        metadata,
                        time.monotonic(),
                        getattr(error, "attempts", 1),
                        error=error,
                    )
                )
            else:
                side.ended.append(Ended(message_id, metadata, time.monotonic(), answer=answer))

    tasks = [asyncio.create_task(run(number, *call)) for number, call in enumerate(calls)]
    _, left = await asyncio.wait(tasks, timeout=patience)
    side.hung = len(left)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    side.seconds = time.monotonic() - side.began
    return side


async def single(
    options: dict[str, Any],
    calls: Sequence[tuple[str, str]],
    *,
    manager: dict[str, Any] | None = None,
    rate: float | None = None,
    concurrency: int = 50,
    pause: Callable[[], float] | None = None,
    patience: float = 60.0,
) -> Side:
    """This client, one call at a time from many tasks, as a web service makes them."""
    async with SessionManager(**(manager or {})) as session_manager:
        async with ConversationClient(**options, session_manager=session_manager) as client:

            async def one(message_id: str, metadata: str) -> tuple[str | None, str | None]:
                message = await client.update_message_metadata(message_id, metadata)
                return message.id, message.metadata

            side = Side(len(calls), time.monotonic())
            await spread(
                calls, one, side, rate=rate, concurrency=concurrency, pause=pause, patience=patience
            )
        return count(session_manager, side)


async def bulk(
    options: dict[str, Any],
    calls: Sequence[tuple[str, str]],
    *,
    manager: dict[str, Any] | None = None,
    rate: float | None = None,
    concurrency: int = 50,
    max_outage: float = 900.0,
    patience: float = 120.0,
) -> Side:
    """This client, all calls as one job."""
    if rate is not None:
        options = {**options, "rate_limit": rate}
    async with SessionManager(**(manager or {})) as session_manager:
        async with ConversationClient(**options, session_manager=session_manager) as client:
            side = Side(len(calls), time.monotonic())
            async with asyncio.timeout(patience):
                async with client.update_many(
                    calls, concurrency=concurrency, max_outage=max_outage
                ) as outcomes:
                    async for outcome in outcomes:
                        message = outcome.message
                        side.ended.append(
                            Ended(
                                outcome.update.message_id,
                                outcome.update.metadata,
                                time.monotonic(),
                                outcome.attempts,
                                None if message is None else (message.id, message.metadata),
                                outcome.error,
                            )
                        )
            side.seconds = time.monotonic() - side.began
        return count(session_manager, side)


def count(manager: SessionManager, side: Side) -> Side:
    stats = manager.stats()
    assert stats.in_flight == stats.waiting == 0, f"calls left in {manager!r}"
    side.attempts, side.throttled = stats.attempts, stats.throttled
    return side


async def meanwhile(run: Awaitable[Side], fault: Awaitable[float]) -> tuple[Side, float]:
    """The calls, with a fault that comes and goes while they are made; and when it was over."""
    faults = asyncio.ensure_future(fault)
    try:
        side = await run
        return side, await faults
    finally:
        faults.cancel()
        await asyncio.gather(faults, return_exceptions=True)


def judge(side: Side, applied: Collection[str], *, exempt: int = 0) -> None:
    """What holds under every fault.

    Every call has ended, once, in the answer to itself or in a typed error; what was reported as
    done the server has done, what was reported as not sent it has not; and retries kept to their
    budget. ``exempt``: retries that the fault makes and the budget does not count, such as those on
    connections that were closed under the client's feet.
    """
    ends = Counter(end.message_id for end in side.ended)
    assert side.hung == 0, f"{side.hung} calls never ended"
    assert len(ends) == side.calls, f"{side.calls - len(ends)} calls were lost"
    assert set(ends.values()) == {1}, "calls ended more than once"
    assert not [end for end in side.ended if end.misattributed], (
        "answers were given to the wrong call"
    )
    untyped = [
        end.error
        for end in side.ended
        if end.error is not None and not isinstance(end.error, SinchError)
    ]
    assert not untyped, f"errors that are not the client's: {untyped[:3]!r}"
    invented = [
        end.message_id for end in side.ended if end.succeeded and end.message_id not in applied
    ]
    assert not invented, f"{len(invented)} updates were reported and not applied: {invented[:3]}"
    denied = [
        end.message_id
        for end in side.ended
        if getattr(end.error, "sent", None) == "no" and end.message_id in applied
    ]
    assert not denied, f"{len(denied)} updates were applied and reported as not sent: {denied[:3]}"
    budget = BUDGET_SHARE * side.calls + BUDGET_PER_SECOND * (side.seconds + BUDGET_WINDOW)
    retried = side.attempts - side.calls - side.throttled - exempt
    assert retried <= budget, f"{retried} retries, {budget:.0f} allowed"


def judge_bulk(side: Side, applied: Collection[str], *, exempt: int = 0) -> None:
    """A job loses nothing: what holds for every call, and each update succeeded."""
    judge(side, applied, exempt=exempt)
    assert not side.errors, f"updates failed: {dict(side.errors)}"


@attrs.frozen(kw_only=True)
class Row:
    """One line of the table."""

    fault: str
    how: str
    calls: int
    naive: str
    ours: str
    attempts: float
    recovery: float | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        recovery = "" if self.recovery is None else f"{self.recovery:.2f}"
        return (
            self.fault,
            self.how,
            f"{self.calls:,}",
            self.naive,
            self.ours,
            f"{self.attempts:.2f}",
            recovery,
        )


COLUMNS = (
    "fault",
    "as",
    "calls",
    "naive failures",
    "ours",
    "attempts per call",
    "seconds to recover",
)


@attrs.define
class Table:
    """The rows of this run."""

    rows: list[Row] = attrs.field(factory=list)

    def add(
        self,
        fault: str,
        how: str,
        side: Side,
        *,
        naive: int | str | None,
        recovery: float | None = None,
        calls: int | None = None,
        ours: str | None = None,
    ) -> None:
        """``naive``: None where that half of the row did not run. ``ours`` is, unless it is said
        otherwise, the number of calls that did not succeed and by which typed error they ended.
        """
        if ours is None:
            errors = ", ".join(f"{name} {number:,}" for name, number in sorted(side.errors.items()))
            ours = f"{side.calls - side.succeeded:,}" + (f" ({errors})" if errors else "")
        self.rows.append(
            Row(
                fault=fault,
                how=how,
                calls=side.calls if calls is None else calls,
                naive=f"{naive:,}" if isinstance(naive, int) else naive or "not run",
                ours=ours,
                attempts=side.attempts_per_call,
                recovery=recovery,
            )
        )
