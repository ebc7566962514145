"""The operations of the API: what is asked, how its answer is read, and whether it is safe to repeat.

Each class fulfils the protocol ``Operation`` of ``_core/seams.py``. Pure: sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs

from ..enums import MessagesSource
from ..models import ConversationMessage
from .failure import Failure
from .http import Request, Response, message_request, read_answer

__all__ = ["UpdateMetadata"]


@attrs.frozen
class UpdateMetadata:
    """Set the metadata of one message.

    Not safe to repeat whatever happened: a repeat can overwrite what another writer wrote in between.
    """

    request: Request
    safe: ClassVar[bool] = False

    @classmethod
    def of(
        cls,
        origin: str,
        path: str,
        message_id: str,
        metadata: str,
        messages_source: MessagesSource | str | None = None,
    ) -> UpdateMetadata:
        """The operation for a message under ``path`` (:func:`messages_path`), or InvalidArgumentError."""
        return cls(message_request(origin, path, message_id, metadata, messages_source))

    def read(
        self, response: Response, *, scrub: Callable[[str], str], reused: bool
    ) -> ConversationMessage | Failure:
        """The updated message, or the failure that the response tells of."""
        return read_answer(response, self.request, scrub=scrub, reused=reused)
