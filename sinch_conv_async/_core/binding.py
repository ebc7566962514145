"""Binds a manager to one event loop of one process, and holds what belongs to that loop.

A manager is made without an event loop. It binds to the running one at its first call, and anew
when that loop has been closed. While the loop lives, another loop, thread or forked process gets
:class:`ClientStateError`. Connections and the queues of waiting calls belong to a loop; tokens,
paces and counters do not, and outlive it.

Time is the event loop's time. Under a test's frozen clock that keeps asyncio running (freezegun
with ``real_asyncio=True``), or on a loop with a clock of its own, timers and the pace thus agree.
If the next loop's clock shows another time than the last one's, the difference is subtracted, so
that times recorded by the last clock stay right.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import time
from collections.abc import Callable
from typing import Final

from ..errors import ClientStateError
from .admission import Admission
from .exchange import ConnectionOptions, Connections
from .lifetime import closed_error

__all__ = ["Binder", "Binding", "Clock"]

SAME_CLOCK: Final = 1.0
"""Two loops' clocks that differ by at most so many seconds are taken for one clock, read twice."""


class Binding:
    """What belongs to one event loop of one process. ``clock`` gives the loop's time in seconds."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pid: int,
        clock: Callable[[], float],
        connections: Connections,
        admission: Admission,
    ) -> None:
        self.loop = loop
        self.pid = pid
        self.clock = clock
        self.connections = connections
        self.admission = admission
        self.closing: asyncio.Task[None] | None = None


class Clock:
    """Monotonic seconds, by the clock of the event loop that is bound now or was last."""

    __slots__ = ("read",)

    def __init__(self) -> None:
        self.read: Callable[[], float] = time.monotonic

    def now(self) -> float:
        """The time now."""
        return self.read()


class Binder:
    """Binds a manager to the running event loop, one at a time.

    ``forget_loop`` is called when a bound loop has been closed: whatever waited on it is gone.
    ``on_bind`` is called with each new binding. ``rng`` spreads retries; it is seeded anew at each
    binding, because forked processes would otherwise all draw the same delays.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        *,
        max_connections: int,
        forget_loop: Callable[[], None],
        on_bind: Callable[[Binding], None] | None = None,
    ) -> None:
        self.options = options
        self._max_connections = max_connections
        self._forget_loop = forget_loop
        self._on_bind = on_bind
        self._bound_before = False
        self.clock = Clock()
        self.rng = random.Random()  # noqa: S311  # spreads retries; no secret
        self.current: Binding | None = None
        self.closed = False

    def bind(self) -> Binding:
        """What the manager has on the running event loop, made if it is new.

        Raises ClientStateError if the manager is closed, or another loop or process has it.
        """
        if self.closed:
            raise closed_error()
        binding = self.current
        if (
            binding is not None
            and binding.loop is asyncio.get_running_loop()
            and binding.pid == os.getpid()
        ):
            return binding
        self.living()  # raises, or discards what is on a closed loop
        return self._bind()

    def living(self) -> Binding | None:
        """What the manager has on the running event loop, if anything.

        What it had on a closed loop is discarded.
        """
        binding = self.current
        if binding is None:
            return None
        if binding.loop.is_closed():
            self.current = None
            self._forget_loop()
            binding.connections.discard()
            return None
        if binding.pid != os.getpid():
            raise ClientStateError(
                "this client was in use when the process was forked; "
                "make a new one in the child process"
            )
        if binding.loop is not asyncio.get_running_loop():
            raise ClientStateError(
                "this client belongs to another event loop that is still open; "
                "let all threads share one "
                "client on one loop, as docs/how-to/synchronous-hosts shows"
            )
        return binding

    def _bind(self) -> Binding:
        """Make new connections and queues on the running loop."""
        loop = asyncio.get_running_loop()
        clock = clock_of(loop)
        if self._bound_before:
            ahead = clock() - self.clock.now()
            if abs(ahead) > SAME_CLOCK:
                clock = functools.partial(_shifted, clock, ahead)
        self._bound_before = True
        self.clock.read = clock
        self.rng.seed()
        admission = Admission(
            self._max_connections,
            clock=clock,
            call_later=loop.call_later,
            loop_is_closed=loop.is_closed,
        )
        binding = Binding(loop, os.getpid(), clock, Connections(self.options), admission)
        self.current = binding
        if self._on_bind is not None:
            self._on_bind(binding)
        return binding


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's time as a function.

    uvloop's ``time()`` is the time at which the current round of the loop began, so it hides a
    stall within the round. There, read the system's monotonic clock instead.
    """
    if type(loop).__module__.partition(".")[0] == "uvloop":
        return functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    return loop.time


def _shifted(clock: Callable[[], float], ahead: float) -> float:
    return clock() - ahead
