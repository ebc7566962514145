"""Handles SIGINT and SIGTERM in a command.

If the process was started with a signal ignored, the signal stays ignored. A shell without job
control starts background commands in this way, and ``nohup`` does it for SIGHUP.
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
    """The signals of the two that this process does not ignore."""
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def handled(interrupt: Callable[[], object]) -> Generator[None]:
    """Call a function on Ctrl-C and SIGTERM; restore the former handlers at the end.

    The loop's ``add_signal_handler`` is not enough: when the loop is closed, SIGTERM would kill the
    process without a message.
    """

    def arrived(number: int, frame: FrameType | None) -> None:
        interrupt()

    with _installed(dict.fromkeys(not_ignored(), arrived)):
        yield


@contextlib.contextmanager
def terminated_as_interrupted() -> Generator[None]:
    """Let SIGTERM act like Ctrl-C, also outside an event loop."""
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
