"""One client for all threads of a synchronous program. It lives on one event loop, in a thread of
its own.

It is made at the first call, so that each worker process of a server makes its own, after the fork.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from sinch_conv_async import ConversationClient, ConversationMessage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Result = TypeVar("Result")


class SyncClient:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exits = contextlib.ExitStack()
        self._started: tuple[BlockingPortal, ConversationClient] | None = None

    def update_message_metadata(
        self, message_id: str, metadata: str, *, timeout: float = 10.0
    ) -> ConversationMessage:
        update = functools.partial(
            ConversationClient.update_message_metadata, timeout=timeout
        )
        return self.run(update, message_id, metadata)

    def run(
        self, function: Callable[..., Awaitable[Result]], *arguments: Any
    ) -> Result:
        """The result of a coroutine function, called with the client and these arguments."""
        portal, client = self._start()
        return portal.call(function, client, *arguments)

    def _start(self) -> tuple[BlockingPortal, ConversationClient]:
        with self._lock:
            if self._started is None:
                client = ConversationClient.from_env()
                portal = self._exits.enter_context(start_blocking_portal())
                self._exits.enter_context(portal.wrap_async_context_manager(client))
                self._started = portal, client
            return self._started

    def close(self) -> None:
        with self._lock:
            self._started = None
            self._exits.close()


sinch = SyncClient()
atexit.register(sinch.close)
