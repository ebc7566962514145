"""Decides what follows from a failed update of a job: ``judge``, and the evidence for it.

A single call may give up after a few retries, because a caller waits for it. A job must not: an
outage of a minute would turn 48,000 updates into failures. So for each failed update a job asks: is
this update at fault, or is the API out?

1. If the API answered, and would give the same answer again, the update has failed, and that is its
   outcome. If every other update would fail in the same way (a refused key), the job ends.
2. An update that may be sent only once has failed too. After ten such failures in a row the API
   counts as out.
3. Other updates show which is at fault. An update is at fault if it used all its retries while
   others succeeded, or if it is the only one that the job holds. If almost no retries of the job
   succeed, it fails at once. If at least a tenth of them succeed, a part of the service is out, and
   the update gets up to four further rounds of retries.
4. Otherwise the API may be out. Updates wait, and one at a time probes; the first that succeeds
   ends the outage.
5. An outage longer than ``max_outage`` ends the job. But if the input is at its end, only failing
   updates are left, and others succeeded before, each of these updates fails instead.

Pure: ``now`` (monotonic seconds) is passed in. ``docs/explanation/bulk.rst`` has these rules for
users.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Final, NamedTuple

import attrs

from .._core.retry import RetryPolicy
from .._wire.failure import Failure
from ..errors import (
    ApiError,
    AuthenticationError,
    ClientStateError,
    RateLimitedError,
    ResponseFormatError,
    ServerError,
    SinchError,
    TokenError,
    TransportError,
)

__all__ = [
    "AnotherRound",
    "ApiState",
    "EndJob",
    "Evidence",
    "Failed",
    "Outage",
    "RetryYield",
    "Verdict",
    "WaitForApi",
    "judge",
    "may_pass",
    "probe_delays",
]

PROBE_DELAYS: Final = (0.5, 1.0, 2.0, 4.0, 5.0)
"""Seconds before each probe of an outage; the last one is repeated.

That makes some 180 requests in 900 s, where a working job sends 720,000."""

FURTHER_ROUNDS: Final = 4
"""Further rounds of retries for an update that has used up its retries, if retries help."""

WORTHWHILE: Final = 0.1
"""The least share of retries that must succeed for that."""

IN_A_ROW: Final = 10
"""The API counts as out after so many updates in a row that failed and cannot be sent again."""


# The verdicts


@attrs.frozen
class Failed:
    """The update has failed, and that is its outcome.

    ``api_answers``: the API is not out. ``api_is_out``: the failure is also a sign of an outage.
    """

    api_answers: bool = False
    api_is_out: bool = False


@attrs.frozen
class AnotherRound:
    """The update pauses, and then gets as many attempts again."""


@attrs.frozen
class WaitForApi:
    """The API counts as out.

    The update waits for the end of the outage, or for its turn to probe.
    """


@attrs.frozen
class EndJob:
    """The whole job ends with this error.

    ``after_outage``: because no update succeeded for too long. ``update_failed``: the update has a
    failed outcome as well, because it cannot be sent again.
    """

    after_outage: bool = False
    update_failed: bool = False


Verdict = Failed | AnotherRound | WaitForApi | EndJob


class Evidence(NamedTuple):
    """The facts when one update has failed.

    Of the update: ``error`` of its last round and the ``failure`` it comes from, if an attempt was
    made; ``attempts`` in all rounds and in the ``latest`` one; ``reached``: a request may have
    reached the API; ``rounds``: how many further rounds it has had; ``safe``: its request may
    always be repeated, as a read may.

    Of the job: ``alone``: it holds no other update, and no other has failed since the last success.
    ``others_succeed``: an update that was sent after the failure of this one was applied.
    ``only_failing_left``: the input is at its end, and every update that the job holds has failed
    since the last success.

    Of the API: ``ever_answered``; ``in_outage``; ``failed_in_a_row``: ids that failed since the
    last answer; ``retries_help``: the share of the latest retries that succeeded; ``out_for``:
    seconds since the first failure after the last answer; ``max_outage``: seconds.
    """

    error: SinchError
    failure: Failure | None
    policy: RetryPolicy
    attempts: int
    latest: int
    safe: bool = False
    reached: bool = True
    rounds: int = 0
    alone: bool = False
    others_succeed: bool = False
    only_failing_left: bool = False
    ever_answered: bool = True
    in_outage: bool = False
    failed_in_a_row: int = 1
    retries_help: float = 0.0
    out_for: float = 0.0
    max_outage: float = 900.0

    @property
    def answered(self) -> bool:
        """Whether the API answered, and would give the same answer again."""
        may_pass = self.failure is not None and self.failure.retryable
        return (
            not may_pass
            and not self.unsent
            and isinstance(self.error, ApiError | ResponseFormatError)
        )

    @property
    def unsent(self) -> bool:
        """Whether no attempt was made, because there was no token or no permission."""
        return self.latest == 0 or isinstance(self.error, TokenError)

    @property
    def spent(self) -> bool:
        """Whether the update was sent and may not be sent again."""
        failure = self.failure
        allowed = failure is not None and self.policy.allows(failure, safe=self.safe)
        return not self.unsent and not (allowed and self.policy.max_retries > 0)

    @property
    def lasts_too_long(self) -> bool:
        """Whether the job has waited for the API as long as it may."""
        return self.out_for >= self.max_outage


def judge(evidence: Evidence) -> Verdict:
    """What follows from a failed update."""
    if _fails_every_update(evidence.error):
        return EndJob()
    if evidence.answered:
        return Failed(api_answers=True)
    if evidence.spent:
        return _spent(evidence)
    if _at_fault(evidence):
        helps = evidence.retries_help >= WORTHWHILE and evidence.rounds < FURTHER_ROUNDS
        return AnotherRound() if helps and not _worn_out(evidence) else Failed()
    if not evidence.lasts_too_long:
        return WaitForApi()
    if evidence.only_failing_left and evidence.ever_answered:
        return Failed()
    return EndJob(after_outage=True)


def _fails_every_update(error: SinchError) -> bool:
    """A refused key, a final 401, a closed client: the next update would fail in the same way."""
    if isinstance(error, TokenError):
        return error.refused
    return isinstance(error, AuthenticationError | ClientStateError)


def may_pass(error: SinchError) -> bool:
    """Whether a request with this error may succeed later, after all its retries."""
    if isinstance(error, ServerError):
        return error.http_status != 501  # not implemented
    return not _fails_every_update(error) and isinstance(
        error, TransportError | TokenError | RateLimitedError
    )


def probe_delays() -> Iterator[float]:
    """Seconds before each probe of an outage."""
    yield from PROBE_DELAYS
    while True:
        yield PROBE_DELAYS[-1]


def _spent(evidence: Evidence) -> Verdict:
    """What follows from an update that may not be sent again. It has failed in any case."""
    if not evidence.in_outage and evidence.failed_in_a_row < IN_A_ROW:
        return Failed()
    if evidence.lasts_too_long:
        return EndJob(after_outage=True, update_failed=True)
    return Failed(api_is_out=True)


def _at_fault(evidence: Evidence) -> bool:
    """Whether this update is at fault, and not the API.

    It must have had its retries, because the project's retry budget may have refused them. It must
    have reached the API, if there are other updates to compare it with. In an outage no update is
    at fault, unless only failing updates are left, or unless this one has had all its rounds: then
    it takes the place of an update that could succeed.
    """
    had_its_retries = evidence.attempts > evidence.policy.max_retries and (
        evidence.reached or evidence.alone
    )
    may_be_given_up = not evidence.in_outage or evidence.only_failing_left or _worn_out(evidence)
    return had_its_retries and may_be_given_up and (evidence.alone or evidence.others_succeed)


def _worn_out(evidence: Evidence) -> bool:
    """Whether the update has had the attempts of all its rounds, in an outage or not."""
    return evidence.attempts > FURTHER_ROUNDS * (1 + evidence.policy.max_retries)


# What a job records about the API


class RetryYield:
    """The share of the latest retries that succeeded.

    It shows whether a failing update has bad luck, or cannot succeed. If every second backend is
    out, half of the retries succeed. If the updates are at fault, almost none do.
    """

    MEMORY = 100

    __slots__ = ("_seen", "share")

    def __init__(self) -> None:
        self.share = 0.0
        self._seen = 0

    def outage_over(self) -> None:
        """An update succeeded after an outage: forget the failures of the outage."""
        self.share = 1.0
        self._seen = 1

    def record(self, retries: int, *, succeeded: bool) -> None:
        """Record the retries that an update took; the last one of them succeeded, or none did."""
        for left in range(retries - 1, -1, -1):
            self._seen = min(self._seen + 1, self.MEMORY)
            self.share += ((succeeded and not left) - self.share) / self._seen


class Outage:
    """An outage: when it ``began``, and when it ``ends`` the job."""

    def __init__(self, began: float, ends: float) -> None:
        self.began = began
        self.ends = ends
        self.not_before = -math.inf
        self.delays = probe_delays()

    def asked_to_wait(self, until: float) -> None:
        """The API asked not to be called before this time."""
        self.not_before = until

    def next_probe_in(self, now: float) -> float:
        """Seconds until the next probe. The last one is made at ``ends``."""
        at = max(now + next(self.delays), self.not_before)
        return max(min(at, self.ends) - now, 0.0)


class ApiState:
    """What a job has observed of the API.

    ``answers`` so far, and the time of the last one. ``newest_success``: when the newest applied
    update was sent. ``failing``: ids that failed since the last answer. ``outage``: the present
    outage, or None.
    """

    def __init__(self, max_outage: float) -> None:
        self.max_outage = max_outage
        self.answers = 0
        self.answered_at = -math.inf
        self.newest_success = -math.inf
        self.failing: set[Hashable] = set()
        self.retries = RetryYield()
        self.outage: Outage | None = None

    def succeeded(self, *, sent_at: float, retries: int) -> None:
        """An update that was sent at ``sent_at`` was applied, after so many retries."""
        self.newest_success = max(self.newest_success, sent_at)
        self.retries.record(retries, succeeded=True)

    def answered(self, now: float) -> None:
        """The API answered: the outage is over, if there was one."""
        self.answers += 1
        self.answered_at = now
        self.failing.clear()
        if self.outage is not None:
            self.outage = None
            self.retries.outage_over()

    def out_for(self, now: float, *, failing_since: float) -> float:
        """Seconds since the first failure of an update, or since the last answer if later."""
        began = max(failing_since, self.answered_at) if self.outage is None else self.outage.began
        return now - began

    def out(
        self, error: SinchError, now: float, *, failing_since: float, max_retry_after: float
    ) -> Outage:
        """The API is out: return the present outage, which may be new.

        If the API asks for a longer pause, the next probe waits for it, but at most
        ``max_retry_after`` seconds, because the API may recover earlier.
        """
        if self.outage is None:
            began = now - self.out_for(now, failing_since=failing_since)
            self.outage = Outage(began, began + self.max_outage)
        if isinstance(error, ApiError) and error.retry_after is not None:
            self.outage.asked_to_wait(now + min(error.retry_after, max_retry_after))
        return self.outage
