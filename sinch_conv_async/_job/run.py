"""One run of a job, from records to outcomes.

A run is given a client, the records and a ledger. It does not know where the records come from or
where the ledger keeps its entries. Each outcome is written into the ledger before it is shown or
counted. A run may end at any moment; another run with the same ledger goes on.

For each record, in the order of the input: skip it if its last outcome is final, else hand it to
the client's bulk update. For each outcome, in the order in which they come: write the entry, count
it, and stop reading if too many have failed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Final, Literal, TypedDict, cast

import attrs

from ..bulk import BulkUpdate
from ..client import ConversationClient
from ..errors import ApiError, InvalidArgumentError, SinchError, TokenError, TransportError
from ..models import ConversationMessage, Unchanged, UpdateOutcome
from .input import BadLine, InputError, InputReason, MergeRecord, Record
from .ledger import FINAL, Entry, Ledger, LedgerError, Outcome
from .progress import Progress

__all__ = ["SHARE_FROM", "Counts", "FailureLimit", "OtherRecordError", "Run"]

SHARE_FROM: Final = 100
"""Updates that must have ended before a share of failures counts."""

SHOW_EVERY: Final = 0.5
"""Seconds between two displays of a run in which nothing ends, so that an outage is shown."""


ERROR_SHOWN: Final = 200
"""Characters of the last error that are shown in an outage."""


@attrs.frozen
class FailureLimit:
    """A number of failed updates, or a share of those that have ended."""

    number: float
    percent: bool = False

    def exceeded(self, failed: int, ended: int) -> bool:
        if self.percent:
            return ended >= SHARE_FROM and 100 * failed > self.number * ended
        return failed > self.number

    def __str__(self) -> str:
        return f"{self.number:g}%" if self.percent else f"{self.number:.0f}"


@attrs.define
class Counts:
    """The counts of this run. The ledger has those of all runs."""

    updated: int = 0
    unchanged: int = 0
    failed: int = 0
    kinds: Counter[str] = attrs.field(factory=Counter[str])
    seconds: float = 0.0

    @property
    def sent(self) -> int:
        """Records that ended."""
        return self.updated + self.unchanged + self.failed

    @property
    def rate(self) -> float:
        """Records that ended, a second."""
        return self.sent / self.seconds if self.seconds else 0.0


class _Options(TypedDict):
    """Keywords of the client's two bulk updates."""

    concurrency: int | None
    max_outage: float | None
    may_send: Callable[[], bool] | None


class OtherRecordError(LedgerError):
    """A record differs from the one that the ledger has under its number."""


class Run:
    """One run. :meth:`stop` may be called at any time, also before :meth:`go`.

    ``merge``: the records are changes (:class:`~.input.MergeRecord`), so each message is read
    first. ``total``: the number of records, if it is known. ``bad_lines``: whether a bad line ends
    the run or is left out. ``limit``: how many updates may fail before the run stops.
    ``on_failure`` is called with each failed record and each bad line.
    """

    def __init__(
        self,
        ledger: Ledger,
        progress: Progress,
        *,
        merge: bool = False,
        total: int | None = None,
        bad_lines: Literal["stop", "skip"] = "stop",
        limit: FailureLimit | None = None,
        on_failure: Callable[[Record | BadLine], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._progress = progress
        self._merge = merge
        self._total = total
        self._bad_lines = bad_lines
        self._limit = limit
        self._on_failure = on_failure
        self._superseded_before = ledger.counts[Outcome.SUPERSEDED]
        self._writing = asyncio.Lock()
        self._bulk: BulkUpdate | None = None
        self._stopping = False
        self._under_way = 0  # records that were handed over and have no outcome
        self.counts = Counts()
        self.read = 0
        """The number of the last record that was read."""
        self.exhausted = False
        """Whether the input was read to its end."""
        self.over_limit = False
        """Whether the run stopped because too many updates failed."""

    @property
    def done(self) -> int:
        """Records of all runs that are done."""
        counts = self._ledger.counts
        # A record that was superseded in this run failed in this run, because the records of one id
        # keep their order.
        superseded = counts[Outcome.SUPERSEDED] - self._superseded_before
        return sum(counts[outcome] for outcome in FINAL) + self.counts.failed - superseded

    @property
    def unfinished(self) -> bool:
        """Whether a record has neither an outcome of this run nor a final outcome."""
        if self._total is not None:
            return self.done < self._total
        return self._under_way > 0 or not self.exhausted

    def stop(self) -> None:
        """Read no further records. The updates under way are finished, and then the run ends."""
        self._stopping = True
        if self._bulk is not None:
            self._bulk.stop_reading()

    async def go(
        self,
        client: ConversationClient,
        records: Iterable[Record | BadLine] | AsyncIterable[Record | BadLine],
        *,
        concurrency: int | None,
        max_outage: float | None,
        may_send: Callable[[], bool] | None = None,
    ) -> None:
        """Run until the input ends or :meth:`stop` is called.

        ``may_send``: asked right before each request; its no ends the run with ClientStateError.
        Raises SinchError, InputError or LedgerError for what ends the run before.
        """
        updates = self._to_send(_each(records))
        options = _Options(concurrency=concurrency, max_outage=max_outage, may_send=may_send)
        self._progress.start(self._total, self.done)
        began = time.monotonic()
        try:
            async with self._outcomes(client, updates, options) as self._bulk:
                if self._stopping:
                    self._bulk.stop_reading()
                ticking = asyncio.create_task(self._tick())
                try:
                    async for outcome in self._bulk:
                        await self._ended(outcome)
                finally:
                    ticking.cancel()
        finally:
            self.counts.seconds = time.monotonic() - began
            self._show()
            self._progress.stop()

    def _outcomes(
        self,
        client: ConversationClient,
        records: AsyncIterator[Record],
        options: _Options,
    ) -> BulkUpdate:
        if self._merge:
            # Each record knows its own change.
            changes = cast("AsyncIterator[MergeRecord]", records)
            return client.transform_many(changes, _not_called, **options)
        return client.update_many(records, **options)

    async def _to_send(self, records: AsyncIterator[Record | BadLine]) -> AsyncIterator[Record]:
        """The records that have no final outcome yet."""
        async for item in records:
            self.read = item.number
            state = self._ledger.state(item.number)
            if state is not None and not self._ledger.agrees(item):
                raise OtherRecordError(
                    f"line {item.line}: this is not the record that an earlier run came to: "
                    "it is another input"
                )
            if isinstance(item, BadLine):
                await self._left_out(item, state)
            elif state is None or state is Outcome.FAILED:
                self._under_way += 1
                yield item
        if self.read < self._ledger.last:
            raise InputError(
                f"the input ended after record {self.read:,}, but an earlier run came to record "
                f"{self._ledger.last:,}; give the whole input again, from its first record on",
                InputReason.ENDED_EARLY,
            )
        self.exhausted = True

    async def _left_out(self, line: BadLine, state: Outcome | None) -> None:
        if self._bad_lines == "stop":
            raise InputError(
                f"line {line.line}: {line.reason}; nothing after it was sent",
                InputReason.BAD_LINE,
                undecodable=line.undecodable,
            )
        if self._total is None:
            self._progress.say(f"line {line.line}: {line.reason}")
        if self._on_failure is not None:
            self._on_failure(line)
        if state is not Outcome.INVALID:
            await self._write(
                Entry(
                    record=line.number,
                    outcome=Outcome.INVALID,
                    line=line.line,
                    digest=line.digest,
                    reason=line.reason,
                )
            )

    async def _ended(self, outcome: UpdateOutcome) -> None:
        record = outcome.update
        assert isinstance(record, Record)  # the job gives back its items
        await self._write(entry_of(record, outcome))
        self._under_way -= 1
        if outcome.error is not None:
            self._failed(record, outcome.error)
        elif isinstance(outcome, Unchanged):
            self.counts.unchanged += 1
        else:
            self.counts.updated += 1
        self._show()

    def _failed(self, record: Record, error: SinchError) -> None:
        counts = self.counts
        counts.failed += 1
        counts.kinds[_kind(error)] += 1
        if self._on_failure is not None:
            self._on_failure(record)
        if self._limit is not None and not self.over_limit:
            self.over_limit = self._limit.exceeded(counts.failed, counts.sent)
            if self.over_limit:
                self.stop()

    async def _write(self, entry: Entry) -> None:
        """Write the entry into the ledger, before it is counted and shown."""
        async with self._writing:  # two tasks write: one for bad lines, one for outcomes
            await self._ledger.write(entry)

    def _show(self) -> None:
        error = None if self._bulk is None else self._bulk.outage_error
        outage = None if error is None else f"{type(error).__name__}: {error}"[:ERROR_SHOWN]
        self._progress.see(self.done, self.counts.failed, outage=outage)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(SHOW_EVERY)
            self._show()


def _not_called(message: ConversationMessage) -> str | None:
    """The transform of a job whose items have a change of their own."""
    raise AssertionError(message.id)  # pragma: no cover  # each item has its own change


def entry_of(record: Record, outcome: UpdateOutcome) -> Entry:
    """The ledger's entry for an outcome."""
    error = outcome.error
    api = error if isinstance(error, ApiError) else None
    word = Outcome.UNCHANGED if isinstance(outcome, Unchanged) else Outcome.UPDATED
    told = isinstance(error, TransportError | InvalidArgumentError | TokenError)
    return Entry(
        record=record.number,
        outcome=word if error is None else Outcome.FAILED,
        line=record.line,
        message_id=record.message_id,
        digest=record.digest,
        attempts=outcome.attempts,
        error=None if error is None else type(error).__name__,
        http_status=None if api is None else api.http_status,
        # The server's message may quote the metadata. A status word or an id does not.
        status=None
        if api is None or api.status is None or not api.status.isidentifier()
        else api.status[:64],
        request_id=None if api is None else api.request_id,
        reason=str(error) if told else None,
    )


def _kind(error: SinchError) -> str:
    name = type(error).__name__
    return f"{error.http_status} {name}" if isinstance(error, ApiError) else name


async def _each(
    records: Iterable[Record | BadLine] | AsyncIterable[Record | BadLine],
) -> AsyncIterator[Record | BadLine]:
    if isinstance(records, AsyncIterable):
        async for item in records:
            yield item
    else:
        for item in records:
            yield item
