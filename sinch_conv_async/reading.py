"""An iterator over the messages of a project, which fetches the pages of the list.

A task fetches the next page while the messages of this page are read, and no further page. The task
returns the page or the error, and the reader gets it when it comes to that page. If a page failed,
it is fetched again when the reader goes on.

The API names each next page by a token. If a token comes a second time, the pages would repeat for
ever, so the list ends with an error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from types import TracebackType
from typing import ClassVar, Self

from ._core.send import Call, Sender
from ._wire.operations import ListMessages
from .errors import ClientStateError, ResponseFormatError
from .models import ConversationMessage, MessagePage

__all__ = ["MessageList"]


class MessageList:
    """The messages that match some filters, the newest first.

    :meth:`ConversationClient.list_messages` makes it. It is an asynchronous iterator over the
    messages of all pages, and an asynchronous context manager that leaves nothing running. Nothing
    is sent before the first message is requested. While the messages of one page are read, the next
    page is fetched, and no further one. A list to which nothing refers stops fetching.

    A page is one call, which is paced, retried and bounded by the client's ``timeout`` like any
    other. Its error is raised in the place of its first message: :class:`ApiError` or a subclass,
    :class:`TransportError`, :class:`TokenError`, :class:`ClientStateError`. If you request another
    message after that, the same page is fetched again. :class:`ResponseFormatError` is also raised
    if the API's pages repeat.
    """

    asks_again: ClassVar[bool] = True
    """After an error the same page is fetched again, so a job that reads the list can wait out an
    outage."""

    def __init__(self, sender: Sender, operation: ListMessages, *, timeout: float | None) -> None:
        self._sender = sender
        self._timeout = timeout
        # The operation for the next page; None after the last page.
        self._next: ListMessages | None = operation
        self._fetching: asyncio.Task[MessagePage | Exception] | None = None
        self._messages: deque[ConversationMessage] = deque()
        self._seen: set[int] = set()  # hashes of the page tokens so far
        self._circle = False  # the last page named an earlier page as the next one
        self._turning = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        state = (
            "at its end" if self._next is None else "reading" if self._seen else "at its beginning"
        )
        pages = f"{len(self._messages)} messages at hand, {len(self._seen)} pages turned"
        return f"<MessageList {state}: {pages}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ConversationMessage:
        while not self._messages:
            async with self._turning:
                if not self._messages:
                    await self._turn()
        return self._messages.popleft()

    async def aclose(self) -> None:
        """End the list, and cancel the fetching. Closing twice is fine."""
        self._next = None
        self._messages.clear()
        task, self._fetching = self._fetching, None
        if task is not None and not task.done() and self._loop is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    def __del__(self) -> None:
        task, loop = getattr(self, "_fetching", None), getattr(self, "_loop", None)
        if task is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its task is gone
                loop.call_soon_threadsafe(task.cancel)

    async def _turn(self) -> None:
        """Take the next page and begin to fetch its successor; StopAsyncIteration at the end."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise ClientStateError("this list belongs to another event loop")
        self._loop = loop
        if self._circle:
            self._next, self._circle = None, False
            raise ResponseFormatError(
                "a page of the list names an earlier page as the next one", http_status=200
            )
        operation = self._next
        if operation is None:
            raise StopAsyncIteration
        task = self._fetch(loop, operation)
        # If this reader is cancelled here, the next reader gets the page.
        await asyncio.wait([task])
        if self._next is None:
            raise StopAsyncIteration  # the list was closed meanwhile
        self._fetching, page = None, task.result()
        if isinstance(page, Exception):
            raise page
        self._messages.extend(page.messages)
        token = page.next_page_token
        if not token:
            self._next = None
        elif hash(token) in self._seen:
            self._circle = True
        else:
            self._seen.add(hash(token))
            self._next = operation.next(token)
            self._fetch(loop, self._next)

    def _fetch(
        self, loop: asyncio.AbstractEventLoop, operation: ListMessages
    ) -> asyncio.Task[MessagePage | Exception]:
        if self._fetching is None:
            self._fetching = loop.create_task(
                _fetched(self._sender, operation, self._timeout), name="sinch_conv_async page"
            )
        return self._fetching


async def _fetched(
    sender: Sender, operation: ListMessages, timeout: float | None
) -> MessagePage | Exception:
    """One page, or the error. It is returned, not raised, because perhaps no reader asks for it."""
    try:
        return await sender.send(Call(operation), timeout=timeout)
    except Exception as error:  # noqa: BLE001  # a trace hook may raise anything; the reader gets it
        return error
