"""A server that runs on the event loop that started it, or in a thread of its own.

``async with`` starts it on the running loop. A plain ``with`` makes a thread with a loop of its own
and starts it there. Then every method that changes the server runs on that loop
(:func:`on_its_loop`), and the caller waits until it is done. So a script of a test is in force for
the next request.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from typing import Self

__all__ = ["OwnThread", "on_its_loop"]

_T = TypeVar("_T")
_P = ParamSpec("_P")


class OwnThread(abc.ABC):
    """Start and close with ``async with``, or in a thread of its own with ``with``."""

    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None

    @abc.abstractmethod
    async def start(self) -> None:
        """Start the server on the running loop."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End the server."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    @abc.abstractmethod
    def is_running(self) -> bool:
        """Whether it has been started, and not closed."""

    def __enter__(self) -> Self:
        if self._thread is not None or self.is_running:
            raise RuntimeError("it runs already")
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name=type(self).__name__, daemon=True)
        thread.start()
        self._loop, self._thread = loop, thread
        try:
            self.run(self.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.run(self.close())
            self.run(_cancel_the_rest())
        finally:
            self._end()

    def _end(self) -> None:
        loop, self._loop = self._loop, None
        thread, self._thread = self._thread, None
        assert loop is not None
        assert thread is not None
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def run(self, coroutine: Coroutine[Any, Any, _T], *, timeout: float | None = None) -> _T:
        """The result of a coroutine of this object, for synchronous code.

        ``sandbox.run(sandbox.wait_for_requests(2))`` is an example. It blocks the calling thread.
        Raises TimeoutError after ``timeout`` seconds, and RuntimeError unless a plain ``with`` has
        started it.
        """
        if self._loop is None or threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("run() is for other threads, while a plain `with` is open")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout)
        finally:
            future.cancel()

    async def _there(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Await a coroutine on the server's loop, whichever loop this one is."""
        if self._loop is None or threading.current_thread() is self._thread:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def _call(self, function: Callable[[], _T]) -> _T:
        if self._loop is None or threading.current_thread() is self._thread:
            return function()

        async def call() -> _T:
            return function()

        return self.run(call())


async def _cancel_the_rest() -> None:
    """Cancel the tasks that other threads wait for, or these would wait forever."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


_Self = TypeVar("_Self", bound=OwnThread)


def on_its_loop(
    method: Callable[Concatenate[_Self, _P], _T],
) -> Callable[Concatenate[_Self, _P], _T]:
    """A method that other threads may call. The thread of the server runs it."""

    def call(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._call(functools.partial(method, self, *args, **kwargs))

    return functools.update_wrapper(call, method)
