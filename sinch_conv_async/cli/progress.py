"""Shows how far a job is: a bar on a terminal, lines elsewhere, or nothing.

If something cannot be shown (on a closed terminal), the job goes on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TextIO

from tqdm import tqdm

from .._job.progress import Progress

__all__ = ["Bar", "Lines", "Quiet", "Rate", "duration", "progress_on"]

LINE_EVERY: Final = 5.0
"""Seconds between two lines. A job of a whole night writes a few thousand lines."""

RATE_OVER: Final = 30.0
"""Seconds over which the rate is measured, and so the time left."""

WAITING: Final = "waiting for the API"
"""The text of a bar in an outage."""

_CLEAR_LINE: Final = "\r\x1b[K"
"""Carriage return and ECMA-48's EL, which erase the terminal's line."""

ERROR_SHOWN: Final = 60
"""Characters of an error that a bar shows."""


def duration(seconds: float) -> str:
    """``0:05``, ``12:30``, ``1:44:10``, ``2 d 3:00:00``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days} d {clock}" if days else clock


class Rate:
    """Records a second, over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, now: float, done: int) -> None:
        """Record that so many are done now."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_OVER:
            self._seen.popleft()

    def per_second(self) -> float:
        """The rate; 0 if it is unknown."""
        if len(self._seen) < 2:
            return 0.0
        (then, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - then) if now > then else 0.0


class Quiet:
    """Shows only sentences that the user must read."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def start(self, total: int | None, done: int) -> None:
        """Shows nothing."""

    def see(self, done: int, failed: int, *, outage: str | None) -> None:
        """Shows nothing."""

    def say(self, sentence: str) -> None:
        """Prints the sentence on a line of its own."""
        self._print(sentence)

    def stop(self) -> None:
        """Shows nothing."""

    def _print(self, text: str) -> None:
        if self._stream is None:
            return  # print() would use standard output for None
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            print(text, file=self._stream, flush=True)


class Lines(Quiet):
    """A line every few seconds, without control characters: for a log.

    With a ``unit``, such as ``messages``, it shows no failures. On a terminal such a line replaces
    the bar that the next command of the pipe draws there.
    """

    def __init__(
        self, stream: TextIO, *, unit: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream)
        self._unit = unit
        self._clear = _CLEAR_LINE if unit and stream.isatty() else ""
        self._clock = clock
        self._rate = Rate()
        self._total: int | None = None
        self._next = 0.0

    def start(self, total: int | None, done: int) -> None:
        """The run begins."""
        self._total = total
        now = self._clock()
        self._rate.see(now, done)
        self._next = now + LINE_EVERY

    def see(self, done: int, failed: int, *, outage: str | None) -> None:
        """Shows how far the run is."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + LINE_EVERY
        self._rate.see(now, done)
        rate = self._rate.per_second()
        if self._unit:
            line = _line(f"{done:,} {self._unit}", done, self._total, None, rate, outage=outage)
        else:
            line = _line(f"{done:,}", done, self._total, failed, rate, outage=outage)
        self._print(self._clear + line)


def _line(
    what: str,
    done: int,
    total: int | None,
    failed: int | None,
    rate: float,
    *,
    outage: str | None,
) -> str:
    of = "" if total is None else f" of {total:,} ({100 * done / max(total, 1):.1f} %)"
    parts = [f"{what}{of}", f"{rate:,.0f}/s"]
    if failed is not None:
        parts.append(f"{failed:,} failed")
    if outage is not None:
        why = f" ({outage})" if outage else ""
        parts.append(f"the API takes no updates at the moment, waiting for it{why}")
    elif total is not None and rate:
        parts.append(f"{duration((total - done) / rate)} left")
    return ", ".join(parts)


class Bar(Quiet):
    """A bar that moves: for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._bar: Any = None
        self._outage = False

    def start(self, total: int | None, done: int) -> None:
        """The run begins."""
        # tqdm's own thread redraws idle bars; a job redraws its bar by its own clock.
        tqdm.monitor_interval = 0
        self._bar = tqdm(
            total=total,
            initial=done,
            file=self._stream,
            unit=" updates",
            dynamic_ncols=True,
            mininterval=0.2,
            # tqdm's own estimate of when to draw would leave out an outage.
            miniters=0,
            smoothing=0.05,
        )

    def see(self, done: int, failed: int, *, outage: str | None) -> None:
        """Shows how far the run is."""
        bar = self._bar
        words = [f"{failed:,} failed"] if failed else []
        if outage is not None:
            words.insert(0, f"{WAITING} ({outage[:ERROR_SHOWN]})" if outage else WAITING)
        with contextlib.suppress(OSError, ValueError):
            bar.set_postfix_str(", ".join(words), refresh=False)
            # Drawn without a change too, as often as tqdm draws, so that an outage shows how long
            # it lasts.
            bar.update(done - bar.n)
            if (outage is not None) is not self._outage:
                self._outage = outage is not None
                # In an outage, the former rate says nothing about the time left.
                known = "{l_bar}{bar}| {n_fmt}/{total_fmt}" if bar.total else "{n_fmt}"
                bar.bar_format = known + " [{elapsed}{postfix}]" if self._outage else None
                bar.refresh()

    def say(self, sentence: str) -> None:
        """Prints the sentence on a line of its own."""
        if self._bar is None:
            self._print(sentence)
            return
        with contextlib.suppress(OSError, ValueError):
            self._bar.write(sentence, file=self._stream)

    def stop(self) -> None:
        """Shows that the run is over."""
        bar, self._bar = self._bar, None
        if bar is not None:
            with contextlib.suppress(OSError, ValueError):
                bar.close()


def progress_on(stream: TextIO | None, *, quiet: bool = False) -> Progress:
    """The display for this stream. None: standard error was closed before the program began."""
    if quiet or stream is None:
        return Quiet(stream)
    return Bar(stream) if stream.isatty() and _has_width(stream) else Lines(stream)


def _has_width(stream: TextIO) -> bool:
    """Whether the terminal has a size.

    A container's terminal may have none, and then no bar fits.
    """
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return True
