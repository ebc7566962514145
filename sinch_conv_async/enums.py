"""The closed word lists of the API.

Members equal their wire text. A word that is not listed here is no error: models keep it as plain text,
because a server adds words long before its clients learn them.
"""

from enum import StrEnum

__all__ = ["Channel", "Direction", "MessagesSource", "ProcessingMode", "Region"]


class Channel(StrEnum):
    """A channel that a message travels on (``channel_identity.channel`` of the specification)."""

    WHATSAPP = "WHATSAPP"
    RCS = "RCS"
    SMS = "SMS"
    MESSENGER = "MESSENGER"
    VIBERBM = "VIBERBM"
    MMS = "MMS"
    INSTAGRAM = "INSTAGRAM"
    TELEGRAM = "TELEGRAM"
    KAKAOTALK = "KAKAOTALK"
    KAKAOTALKCHAT = "KAKAOTALKCHAT"
    LINE = "LINE"
    WECHAT = "WECHAT"
    APPLEBC = "APPLEBC"


class Direction(StrEnum):
    """Which way a message went, seen from the Conversation API app (``direction``)."""

    TO_APP = "TO_APP"
    TO_CONTACT = "TO_CONTACT"


class ProcessingMode(StrEnum):
    """Whether the API stores contacts and conversations for the app (``processing_mode``)."""

    CONVERSATION = "CONVERSATION"
    DISPATCH = "DISPATCH"


class MessagesSource(StrEnum):
    """Where the message to update is kept (query parameter ``messages_source``).

    The API assumes ``CONVERSATION_SOURCE`` when the parameter is left out.
    """

    CONVERSATION_SOURCE = "CONVERSATION_SOURCE"
    DISPATCH_SOURCE = "DISPATCH_SOURCE"


class Region(StrEnum):
    """Where the Conversation API app lives: ``https://{region}.conversation.api.sinch.com``.

    A message of one region does not exist in another: the wrong region answers 404.
    """

    US = "us"
    EU = "eu"
    BR = "br"
