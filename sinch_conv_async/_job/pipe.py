"""The records of a pipe, read in a thread.

The writer of the pipe may take hours, and outcomes must come meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final, Self

from .input import BadLine, Record

__all__ = ["FromPipe"]

READ_AHEAD: Final = 256
"""Records that are read ahead."""


class FromPipe:
    """An asynchronous iterator over the reader's records, made on a running event loop."""

    def __init__(self, reader: Iterable[Record | BadLine]) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._found: deque[Record | BadLine] = deque()
        self._room = threading.Semaphore(READ_AHEAD)
        self._news = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None  # the error that ended the reading
        # A daemon thread, because its read cannot be interrupted and the program must still end.
        threading.Thread(target=self._read, name="sinch-conv input", daemon=True).start()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record | BadLine:
        while not self._found:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._room.release()
        return self._found.popleft()

    def _read(self) -> None:
        try:
            for item in self._reader:
                self._room.acquire()
                self._tell(item)
        except Exception as error:  # noqa: BLE001  # raised in the task that asks for the records
            self._error = error
        finally:
            self._tell(None)

    def _tell(self, item: Record | BadLine | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the job has ended
            self._loop.call_soon_threadsafe(self._take, item)

    def _take(self, item: Record | BadLine | None) -> None:
        if item is None:
            self._ended = True
        else:
            self._found.append(item)
        self._news.set()
