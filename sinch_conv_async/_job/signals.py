"""SIGINT and SIGTERM for a command that may be asked to stop.

A signal that the process was started to ignore stays ignored: a shell without job control starts
background commands so, and ``nohup`` does the same for SIGHUP.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, Final

__all__ = ["STOPPING", "handled", "not_ignored", "terminated_as_interrupted"]

STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


def not_ignored() -> list[signal.Signals]:
    """Those of the two signals that this process does not ignore."""
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def handled(interrupt: Callable[[], object]) -> Generator[None]:
    """Ctrl-C and SIGTERM call this, and afterwards do what they did before.

    The loop's own ``add_signal_handler`` will not do: when the loop is closed, SIGTERM would kill
    the process without a word.
    """

    def arrived(number: int, frame: FrameType | None) -> None:
        interrupt()

    with _installed(dict.fromkeys(not_ignored(), arrived)):
        yield


@contextlib.contextmanager
def terminated_as_interrupted() -> Generator[None]:
    """SIGTERM does what Ctrl-C does, also outside an event loop."""
    numbers = {signal.SIGTERM} & set(not_ignored())
    with _installed(dict.fromkeys(numbers, signal.default_int_handler)):
        yield


@contextlib.contextmanager
def _installed(handlers: dict[signal.Signals, Any]) -> Generator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
