"""Tells refusals (429) that the pace has caused from those that come at any pace. Pure.

One 429 says nothing about its cause. A fall of the pace is an experiment: refusals that the pace
has caused stop after the fall, and the others go on. So a ``Trial`` watches every fall.

1. The pace falls, and does not climb while the trial lasts: a climb would bring congestion back
   while it is measured.
2. *Around the fall*: the second before it and the second after it. Refusals of congestion are
   among these, also those of a server that remembers a second.
3. *After the fall*: at least one second more, up to four, until 400 requests have departed. Then
   the last answers come in.

``Noise`` adds up what the trials find. Refusals are noise if the share refused after the falls is
at least 64 % of the share refused around them, with at least 5 refusals in two trials or more.
Otherwise they are congestion, and the noise is 0. A trial with far fewer refusals than the
earlier ones replaces them: noise is the least that is seen, and a trial without a refusal forgets
it.

Random refusals vary like a Poisson variable. A number of refusals is explained by a share if it
is at most 2.5 standard deviations above that share. Above 5 % and three standard deviations
nothing is noise.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = ["Noise", "Sample", "Trial", "explains", "severe"]

# The values come out of benchmarks/pace_simulation.py.
DEVIATIONS: Final = 2.5
SEVERE_SHARE: Final = 0.05
SEVERE_DEVIATIONS: Final = 3.0
ENOUGH_SENT: Final = 400  # departures after a fall
LONGEST: Final = 4  # seconds after a fall in which they are counted, at most
ANSWERS: Final = 0.3  # seconds for the last answers to come in
LONGEST_TRIAL: Final = 1 + LONGEST + ANSWERS
LATE: Final = 0.25  # seconds; a later count would count other departures

ENOUGH_REFUSED: Final = 5
ENOUGH_TRIALS: Final = 2
LEAST_SENT: Final = 20  # a trial with fewer departures than this says nothing
RATIO: Final = 0.64  # of the share around the falls
MEMORY: Final = 1500  # departures; older ones count less and less


class Sample(NamedTuple):
    """How many requests departed, and how many of them were refused."""

    sent: float
    refused: float

    @property
    def share(self) -> float:
        return self.refused / self.sent if self.sent else 0.0


def explains(share: float, sample: Sample) -> bool:
    """Whether random refusals of this share explain so many refusals."""
    expected = share * sample.sent
    return sample.refused <= expected + DEVIATIONS * math.sqrt(expected)


def severe(sample: Sample) -> bool:
    """Whether so many requests are refused that it must be congestion."""
    expected = SEVERE_SHARE * sample.sent
    return sample.refused > expected + SEVERE_DEVIATIONS * math.sqrt(expected)


class Trial:
    """The refusals around one fall of the pace and after it.

    ``resumed``: when requests depart again after the fall to ``rate``. ``before``: the requests of
    the second before it. ``trigger``: when the request departed whose refusal made the pace fall.
    ``rate_before``: the pace to go back to.

    Call ``refused`` for each further refusal. At ``count_at``, call ``count`` with the number of
    departures in the last second. The trial is ``over`` when everything has been counted.
    """

    __slots__ = (
        "_after_refused",
        "_after_sent",
        "_around_refused",
        "_around_sent",
        "_began",
        "_ended",
        "_settling_refused",
        "_settling_sent",
        "_trigger",
        "count_at",
        "ends",
        "rate_before",
        "refused_since",
    )

    def __init__(
        self, *, resumed: float, rate: float, rate_before: float, before: Sample, trigger: float
    ) -> None:
        self.rate_before = rate_before
        self.refused_since = 0  # of the requests that departed after the fall
        self._trigger = trigger
        self._around_sent, self._around_refused = before
        self._settling_sent = self._settling_refused = 0
        self._after_sent = self._after_refused = 0
        self._began = resumed + 1.0
        seconds = min(LONGEST, max(1, math.ceil(ENOUGH_SENT / rate)))
        self._ended = self._began + seconds
        self.ends = self._ended + ANSWERS
        self.count_at = self._began

    def refused(self, departed: float) -> None:
        """A request that departed then was refused."""
        if departed < self._began:
            self._around_refused += 1
            self._settling_refused += departed > self._trigger
        elif departed < self._ended:
            self._after_refused += 1

    def count(self, now: float, sent: int) -> bool:
        """Record the departures of the last second; False if the call comes too late."""
        if now > self.count_at + LATE:
            return False
        if self.count_at == self._began:
            self._settling_sent = sent
            self._around_sent += sent
        else:
            self._after_sent += sent
        self.count_at = math.inf if self.count_at >= self._ended else self.count_at + 1.0
        return True

    def over(self, now: float) -> bool:
        """Whether everything has been counted."""
        return now >= self.ends and self.count_at == math.inf

    @property
    def around(self) -> Sample:
        """The second before the fall and the second after it."""
        return Sample(self._around_sent, self._around_refused)

    @property
    def settling(self) -> Sample:
        """The second after the fall, without the refusal that caused it."""
        return Sample(self._settling_sent, self._settling_refused)

    @property
    def after(self) -> Sample:
        """The requests that departed more than a second after the fall."""
        return Sample(self._after_sent, self._after_refused)


class Noise:
    """The share of requests that is refused at any pace; 0.0 while it is unknown."""

    __slots__ = ("_after", "_around", "_trials", "share")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget everything, because there is congestion now."""
        self.share = 0.0
        self._trials = 0
        self._around = self._after = Sample(0.0, 0.0)

    def learn(self, trial: Trial, *, may_be_noise: bool) -> None:
        """Add the result of a trial.

        ``may_be_noise``: False if this process cannot tell noise from refusals that its neighbours
        cause.
        """
        around, after = trial.around, trial.after
        expected = (self.share or self._after.share) * after.sent
        if after.refused < expected - DEVIATIONS * math.sqrt(expected):
            self.forget()
        self._trials += 1
        self._around = _added(self._around, around)
        self._after = _added(self._after, after)
        found = (
            may_be_noise
            and self._trials >= ENOUGH_TRIALS
            and self._after.refused >= ENOUGH_REFUSED
            and self._after.share >= RATIO * self._around.share
        )
        self.share = self._after.share if found else 0.0


def _added(sum_: Sample, more: Sample) -> Sample:
    sent, refused = sum_.sent + more.sent, sum_.refused + more.refused
    kept = min(1.0, MEMORY / sent) if sent else 1.0
    return Sample(sent * kept, refused * kept)
