"""An asyncio client that changes message metadata in the Sinch Conversation API. Unofficial.

::

    async with ConversationClient.from_env() as client:
        message = await client.update_message_metadata("01FC66621XXXXX119Z8PMV1QPA", '{"ticket":
        "closed"}')
"""

from ._core.manager import SessionManager
from ._core.retry import RetryPolicy
from ._core.stats import ProjectStats, SessionStats
from ._wire.merge import merge_json
from ._wire.requests import VERSION as __version__
from ._wire.structure import to_dict
from .bulk import BulkUpdate
from .client import ConversationClient
from .enums import Channel, Direction, MessagesSource, MessagesView, ProcessingMode, Region
from .errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    CallTimeoutError,
    ClientStateError,
    ErrorDetail,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ResponseFormatError,
    ServerError,
    SinchError,
    TokenError,
    TransportError,
)
from .models import (
    ChannelIdentity,
    ConversationMessage,
    MetadataUpdate,
    NotUpdated,
    Unchanged,
    Updated,
    UpdateOutcome,
)
from .reading import MessageList
from .update_queue import UpdateQueue

__all__ = [
    "ApiError",
    "AuthenticationError",
    "BadRequestError",
    "BulkUpdate",
    "CallTimeoutError",
    "Channel",
    "ChannelIdentity",
    "ClientStateError",
    "ConversationClient",
    "ConversationMessage",
    "Direction",
    "ErrorDetail",
    "InvalidArgumentError",
    "MessageList",
    "MessagesSource",
    "MessagesView",
    "MetadataUpdate",
    "NotFoundError",
    "NotUpdated",
    "PermissionDeniedError",
    "ProcessingMode",
    "ProjectStats",
    "RateLimitedError",
    "Region",
    "ResponseFormatError",
    "RetryPolicy",
    "ServerError",
    "SessionManager",
    "SessionStats",
    "SinchError",
    "TokenError",
    "TransportError",
    "Unchanged",
    "UpdateOutcome",
    "UpdateQueue",
    "Updated",
    "__version__",
    "merge_json",
    "to_dict",
]
