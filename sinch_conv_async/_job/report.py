"""How a run ended, as data."""

from __future__ import annotations

from collections import Counter

import attrs

from ..errors import SinchError
from .input import InputError
from .ledger import LedgerError
from .run import FailureLimit

__all__ = ["FailuresProblem", "Report"]


@attrs.frozen
class FailuresProblem:
    """Why the file of failures was not written: the error, or None if it was interrupted."""

    path: str
    error: OSError | InputError | None


@attrs.frozen
class Report:
    """How a run ended.

    ``updated`` to ``unchanged`` count the records of all runs so far, by the journal. ``kinds``
    and what follows are this run's. ``ended_by``: the error that ended the run before the input's
    end. ``limit``: the limit on failures that was exceeded, so that the rest was not tried.
    """

    input: str
    journal: str | None
    records: int | None
    updated: int
    failed: int
    invalid: int
    superseded: int
    unchanged: int
    failures: str | None
    failures_written: int
    kinds: Counter[str]
    sent: int
    retried: int
    throttled: int
    token_requests: int
    seconds: float
    rate: float
    unfinished: bool = False
    interrupted: bool = False
    ended_by: SinchError | InputError | LedgerError | None = None
    limit: FailureLimit | None = None
    failures_problem: FailuresProblem | None = None

    @property
    def remaining(self) -> int | None:
        """Records that no run has come to; None if the end of the input is not known."""
        if self.records is None:
            return None
        known = self.updated + self.failed + self.invalid + self.superseded + self.unchanged
        return max(self.records - known, 0)
