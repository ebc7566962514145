"""``judge`` decides what follows from a failed update of a job, by the :class:`Evidence`.

A single call may give up after a few retries, because a caller waits for it. A job must not: an
outage of a minute would turn 48,000 updates into failures. So for each failed update, ``judge``
asks: is this update at fault, or is the API out, so that no update can succeed now?

1. If every other update would fail in the same way (a refused key), the job ends. If the API
   answered, and would give the same answer again, the update has failed, and the failure is its
   outcome.
2. If the update was sent and may not be sent again, it has failed too. After ten such failures in a
   row, the job treats the API as out.
3. Otherwise, other updates show the cause. An update that has used all its retries is at fault if
   other updates succeeded, or if the job holds no other update. If at least a tenth of the job's
   latest retries succeeded, perhaps only a part of the service is out: then such an update gets up
   to four further rounds of retries. Otherwise it has failed.
4. If the update is not at fault, the API may be out. The updates wait, and one update at a time
   probes the API. The outage ends with the first probe that succeeds, or that fails by rule 1.
5. An outage longer than ``max_outage`` ends the job. There is one exception: the input is at its
   end, only failing updates are left, and the API has answered before in this job. Then each of
   these updates fails, and the job does not end with an error.

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

In 900 s these are about 180 requests; a working job sends 720,000 in that time."""

FURTHER_ROUNDS: Final = 4
"""An update that has used up its retries gets up to so many further rounds, if retries help."""

WORTHWHILE: Final = 0.1
"""Retries help if at least this share of the job's latest retries succeeds."""

IN_A_ROW: Final = 10
"""After so many updates in a row that failed and may not be sent again, the API counts as out."""


# The verdicts


@attrs.frozen
class Failed:
    """The update has failed, and the failure is its outcome.

    ``api_answers``: the failure shows that the API is not out. ``api_is_out``: the failure is a
    sign of an outage.
    """

    api_answers: bool = False
    api_is_out: bool = False


@attrs.frozen
class AnotherRound:
    """After a pause, the update gets another round, with as many attempts as before."""


@attrs.frozen
class WaitForApi:
    """The API counts as out.

    The update waits until the outage ends, or until it may probe.
    """


@attrs.frozen
class EndJob:
    """The whole job ends with the error of this update.

    ``after_outage``: the reason is an outage that lasted too long. ``update_failed``: the update
    also gets a failed outcome, because it may not be sent again.
    """

    after_outage: bool = False
    update_failed: bool = False


Verdict = Failed | AnotherRound | WaitForApi | EndJob


class Evidence(NamedTuple):
    """The facts after one update has failed.

    In this class, an *answer* of the API is a success, or an error that a repeat would give again.

    About the update. ``error``: the error of its latest round. ``failure``: the failed attempt that
    the error comes from, if there was one. ``attempts``: how many attempts it has made in all
    rounds. ``latest``: how many in the latest round. ``reached``: a request may have reached the
    API. ``rounds``: how many further rounds it has had. ``safe``: its request may always be
    repeated, as a read may.

    About the job. ``alone``: the job holds no other update, and no other update has failed since
    the API's last answer. ``others_succeed``: another update was sent after the first failure of
    this one, and was applied; or the API has answered another update since this one began to wait.
    ``only_failing_left``: the input is at its end, and every update that the job holds has failed
    since the API's last answer.

    About the API. ``ever_answered``: it has answered in this job. ``in_outage``: the job waits for
    the end of an outage. ``failed_in_a_row``: how many ids failed since its last answer.
    ``retries_help``: the share of the latest retries that succeeded. ``out_for``: seconds since the
    outage began; if there is none, since this update first failed or since the last answer,
    whichever is later. ``max_outage``: seconds after which an outage ends the job.
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
        """Whether the outage has lasted for ``max_outage`` seconds."""
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
    """Whether every update would fail so: a refused key, a final 401, a closed client."""
    if isinstance(error, TokenError):
        return error.refused
    return isinstance(error, AuthenticationError | ClientStateError)


def may_pass(error: SinchError) -> bool:
    """Whether a request may succeed later, if it ended with this error after all its retries."""
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
    """What follows from an update that may not be sent again. The update has failed in any case."""
    if not evidence.in_outage and evidence.failed_in_a_row < IN_A_ROW:
        return Failed()
    if evidence.lasts_too_long:
        return EndJob(after_outage=True, update_failed=True)
    return Failed(api_is_out=True)


def _at_fault(evidence: Evidence) -> bool:
    """Whether this update is at fault, and not the API.

    The update must have used all its retries: the project's retry budget may have refused some. If
    the job has other updates, the update must also have reached the API. In an outage no update is
    at fault, with two exceptions: only failing updates are left, or this update has used the
    attempts of all its rounds. In the second case, an update that could succeed gets its place.
    """
    had_its_retries = evidence.attempts > evidence.policy.max_retries and (
        evidence.reached or evidence.alone
    )
    may_be_given_up = not evidence.in_outage or evidence.only_failing_left or _worn_out(evidence)
    return had_its_retries and may_be_given_up and (evidence.alone or evidence.others_succeed)


def _worn_out(evidence: Evidence) -> bool:
    """Whether the update has made more attempts than ``FURTHER_ROUNDS`` full rounds have."""
    return evidence.attempts > FURTHER_ROUNDS * (1 + evidence.policy.max_retries)


# What a job records about the API


class RetryYield:
    """The share of the latest retries that succeeded.

    The share shows whether a failing update may succeed later. If every second server of the API is
    out, half of the retries succeed. If the updates are at fault, almost no retry succeeds.
    """

    MEMORY = 100

    __slots__ = ("_seen", "share")

    def __init__(self) -> None:
        self.share = 0.0
        self._seen = 0

    def outage_over(self) -> None:
        """The API answered after an outage: forget the failures of the outage."""
        self.share = 1.0
        self._seen = 1

    def record(self, retries: int, *, succeeded: bool) -> None:
        """Record the retries of an update. Only the last retry may have ``succeeded``."""
        for left in range(retries - 1, -1, -1):
            self._seen = min(self._seen + 1, self.MEMORY)
            self.share += ((succeeded and not left) - self.share) / self._seen


class Outage:
    """An outage. ``began``: when it began. ``ends``: when it ends the job."""

    def __init__(self, began: float, ends: float) -> None:
        self.began = began
        self.ends = ends
        self.not_before = -math.inf
        self.delays = probe_delays()

    def asked_to_wait(self, until: float) -> None:
        """The API asked not to be called before this time."""
        self.not_before = until

    def next_probe_in(self, now: float) -> float:
        """Seconds until the next probe. The last probe is made at ``ends``."""
        at = max(now + next(self.delays), self.not_before)
        return max(min(at, self.ends) - now, 0.0)


class ApiState:
    """What a job has observed of the API.

    ``answers``: how many answers so far. ``answered_at``: when the last answer came.
    ``newest_success``: the latest time at which an applied update was sent. ``failing``: the ids
    that failed since the last answer. ``retries``: how many of the latest retries succeeded.
    ``outage``: the present outage, or None.
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
        """Seconds since the present outage began. Without an outage: see :class:`Evidence`."""
        began = max(failing_since, self.answered_at) if self.outage is None else self.outage.began
        return now - began

    def out(
        self, error: SinchError, now: float, *, failing_since: float, max_retry_after: float
    ) -> Outage:
        """The API is out: return the present outage, or begin one.

        If the API asks for a longer pause, the next probe waits for it, but at most
        ``max_retry_after`` seconds, because the API may recover earlier.
        """
        if self.outage is None:
            began = now - self.out_for(now, failing_since=failing_since)
            self.outage = Outage(began, began + self.max_outage)
        if isinstance(error, ApiError) and error.retry_after is not None:
            self.outage.asked_to_wait(now + min(error.retry_after, max_retry_after))
        return self.outage
