"""A stand-in for the Conversation API's messages and its OAuth2 token endpoint, on one port.

It is for tests and demonstrations: it answers as the API does, records the requests, and fails on
request. It imports nothing else of this package, so that it cannot share the client's mistakes. It
writes JSON and HTTP/1.1 by hand.

It does not know what a client should do with an answer.
"""

from __future__ import annotations

from .faults import DropPoint
from .messages import SandboxMessage
from .records import ClientOptions, SandboxRequest, SandboxTokenRequest
from .responses import ErrorBody
from .server import Sandbox
from .tokens import TokenRefusal

__all__ = [
    "ClientOptions",
    "DropPoint",
    "ErrorBody",
    "Sandbox",
    "SandboxMessage",
    "SandboxRequest",
    "SandboxTokenRequest",
    "TokenRefusal",
]
