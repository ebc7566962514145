"""How a job sends a call: in several rounds, and with a wait during an outage.

A round is one call with all its retries (``_core/send.py``). When a round fails, ``judge``
(``outage.py``) decides: the call has failed, it gets another round, it waits for the API, or the
job ends.

While the API is out, calls wait in :class:`_Probes`. One call at a time makes a single attempt, a
*probe*. If the probe fails, the call that has waited longest makes the next probe. If the probe
succeeds, or fails with a final answer of the API, the outage is over and all calls continue.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

from .._core.log import INFO, WARNING, log
from .._core.send import Call, Sender
from ..errors import SinchError
from ..models import ConversationMessage
from .outage import (
    AnotherRound,
    ApiState,
    EndJob,
    Evidence,
    Failed,
    Outage,
    WaitForApi,
    judge,
)
from .state import JobState

__all__ = ["TO_GO_ON", "Rounds"]

TO_GO_ON: Final = "Updates that have no outcome can be given to a new job."
"""Advice after an outage that did not end."""


class Rounds:
    """Sends the calls of one job."""

    def __init__(
        self,
        sender: Sender,
        state: JobState,
        max_outage: float,
        may_send: Callable[[], bool] | None,
    ) -> None:
        self._permitted = may_send
        self._sender = sender
        self._state = state
        self._api = ApiState(max_outage)
        self._probes: _Probes | None = None

    @property
    def in_outage(self) -> bool:
        return self._probes is not None

    @property
    def outage_error(self) -> SinchError | None:
        return None if self._probes is None else self._probes.error

    @property
    def max_outage(self) -> float:
        return self._api.max_outage

    async def send(
        self, call: Call[ConversationMessage], key: Hashable
    ) -> ConversationMessage | SinchError:
        """The result of a call, or the error that is its outcome.

        Raises the error that ends the job.
        """
        trial = _Trial(call, key)
        while True:
            # 1. Wait until the outage is over, or until this call may probe the API.
            probes = await self._may_send()
            # 2. Send the call, with all its retries. A probe is a single attempt.
            trial.began, trial.attempts = self._sender.now(), call.attempts
            try:
                message = await self._sender.send_round(
                    call, single=probes is not None, may_send=self._permitted
                )
            except SinchError as caught:
                error = caught
            else:
                self._api_answers()
                self._api.succeeded(sent_at=trial.began, retries=trial.retries)
                return message
            # 3. The call failed. If it was a probe, let another update make the next probe.
            if probes is not None:
                probes.pass_on()
            # 4. Decide whether the update is at fault, or the API is out.
            evidence = self._evidence(trial, error)
            verdict = judge(evidence)
            if isinstance(verdict, AnotherRound):
                trial.rounds += 1
                with self._state.parking():
                    await asyncio.sleep(self._sender.long_delay())
            elif isinstance(verdict, WaitForApi):
                trial.answers_before = self._api.answers
                self._api_is_out(trial, error)
            else:
                self._sender.ended(call, error)
                return self._give_up(trial, error, verdict, evidence.out_for)

    async def _may_send(self) -> _Probes | None:
        """Wait during an outage. Return the ``_Probes`` if this call makes the next probe."""
        while (probes := self._probes) is not None:
            with self._state.parking():
                await probes.wait()
                if not probes.over:
                    await probes.wait(probes.outage.next_probe_in(self._sender.now()))
            if not probes.over:
                return probes
        return None

    def _evidence(self, trial: _Trial, error: SinchError) -> Evidence:
        """The facts about an update that has just failed."""
        api, call, state = self._api, trial.call, self._state
        api.failing.add(trial.key)
        evidence = Evidence(
            error=error,
            failure=call.failure,
            policy=self._sender.policy,
            safe=call.operation.safe,
            attempts=call.attempts,
            latest=call.attempts - trial.attempts,
            reached=call.maybe_sent,
            rounds=trial.rounds,
            alone=len(state.held) == 1 and len(api.failing) == 1,
            others_succeed=(
                call.failed_since is not None and api.newest_success > call.failed_since
            )
            or (trial.answers_before is not None and api.answers > trial.answers_before),
            only_failing_left=not state.reading
            and not state.stopped
            and api.failing.issuperset(state.held),
            ever_answered=api.answers > 0,
            in_outage=self.in_outage,
            failed_in_a_row=len(api.failing),
            out_for=api.out_for(self._sender.now(), failing_since=trial.failing_since),
            max_outage=api.max_outage,
        )
        if evidence.answered or evidence.spent:
            return evidence
        api.retries.record(trial.retries, succeeded=False)
        return evidence._replace(retries_help=api.retries.share)

    def _give_up(
        self, trial: _Trial, error: SinchError, verdict: Failed | EndJob, out_for: float
    ) -> SinchError:
        """Return the error for the outcome of an update, or raise the error that ends the job."""
        if isinstance(verdict, EndJob):
            ending = _after_outage(error, out_for) if verdict.after_outage else error
            if not verdict.update_failed:
                raise ending
            self._state.fail(ending)
        elif verdict.api_answers:
            self._api_answers()
        elif verdict.api_is_out:
            self._api_is_out(trial, error)
        return error

    # Outages

    def _api_answers(self) -> None:
        self._api.answered(self._sender.now())
        self.end_outage()

    def _api_is_out(self, trial: _Trial, error: SinchError) -> None:
        outage = self._api.out(
            error,
            self._sender.now(),
            failing_since=trial.failing_since,
            max_retry_after=self._sender.policy.max_retry_after,
        )
        if self._probes is None:
            self._probes = _Probes(outage, error)
            self._sender.project.outages += 1
            log(
                WARNING,
                "a job waits for the API: %s",
                str(error),  # as text: a stored log record would keep the error's frames
                project_id=self._sender.project_id,
                error=type(error).__name__,
            )
        self._probes.error = error

    def end_outage(self) -> None:
        """The API answers again, or the job ends. Let all waiting calls continue."""
        probes, self._probes = self._probes, None
        if probes is None:
            return
        probes.end()
        seconds = self._sender.now() - probes.outage.began
        self._sender.project.outages -= 1
        log(
            INFO,
            "a job no longer waits for the API, after %.0f s",
            seconds,
            project_id=self._sender.project_id,
            seconds=seconds,
        )


class _Probes:
    """The calls that wait for the end of an outage.

    One call at a time may probe. The end of the outage wakes all calls.
    """

    def __init__(self, outage: Outage, error: SinchError) -> None:
        self.outage = outage
        self.error = error
        self.over = False
        self._probing = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until this call may probe or the outage ends, for at most ``timeout`` seconds."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if not self._probing:
            self.pass_on()
        await asyncio.wait([future], timeout=timeout)
        future.cancel()  # so that pass_on() skips this future

    def pass_on(self) -> None:
        """Wake the call that has waited longest: it may probe."""
        self._probing = False
        while self._waiting and not self._probing:
            self._probing = _wake(self._waiting.popleft())

    def end(self) -> None:
        """The outage is over. Wake all waiting calls."""
        self.over = True
        while self._waiting:
            _wake(self._waiting.popleft())


def _wake(future: asyncio.Future[None]) -> bool:
    if future.done():
        return False
    future.set_result(None)
    return True


class _Trial:
    """One call of a job, and the progress of its rounds.

    ``rounds``: how many further rounds the call was given. ``answers_before``: how many answers the
    job had had when the call began to wait for the API. ``began``: when its latest round began.
    ``attempts``: the attempts before that round.
    """

    def __init__(self, call: Call[ConversationMessage], key: Hashable) -> None:
        self.call = call
        self.key = key
        self.rounds = 0
        self.answers_before: int | None = None
        self.began = 0.0
        self.attempts = 0

    @property
    def retries(self) -> int:
        """Attempts of the latest round, without the first attempt of the call."""
        return self.call.attempts - max(self.attempts, 1)

    @property
    def failing_since(self) -> float:
        """When the call first failed."""
        return self.began if self.call.failed_since is None else self.call.failed_since


def _after_outage(error: SinchError, seconds: float) -> SinchError:
    """The error that ends a job after an outage: a copy, because an outcome may have it too."""
    ending = copy.copy(error)
    ending.add_note(
        f"The API has taken no update for {seconds:.0f} s, so the job has ended. {TO_GO_ON}"
    )
    return ending
