"""The words of the API.

Members equal their text on the wire. If an answer has a word that is not listed here, models keep
it as plain text, because a server adds words before its clients know them. An argument may also be
the text of a member, in upper or lower case; the ``...Name`` types list the texts for type
checkers.
"""

from enum import StrEnum
from typing import Literal

__all__ = [
    "Channel",
    "ChannelName",
    "Direction",
    "DirectionName",
    "MessagesSource",
    "MessagesSourceName",
    "MessagesView",
    "MessagesViewName",
    "ProcessingMode",
    "Region",
    "RegionName",
]

ChannelName = Literal[
    "WHATSAPP",
    "RCS",
    "SMS",
    "MESSENGER",
    "VIBERBM",
    "MMS",
    "INSTAGRAM",
    "TELEGRAM",
    "KAKAOTALK",
    "KAKAOTALKCHAT",
    "LINE",
    "WECHAT",
    "APPLEBC",
]
DirectionName = Literal["TO_APP", "TO_CONTACT"]
MessagesSourceName = Literal["CONVERSATION_SOURCE", "DISPATCH_SOURCE"]
MessagesViewName = Literal["WITH_METADATA", "WITHOUT_METADATA"]
RegionName = Literal["us", "eu", "br", "US", "EU", "BR"]


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
    """The direction of a message, seen from the Conversation API app (``direction``)."""

    TO_APP = "TO_APP"
    TO_CONTACT = "TO_CONTACT"


class ProcessingMode(StrEnum):
    """Whether the API stores contacts and conversations for the app (``processing_mode``)."""

    CONVERSATION = "CONVERSATION"
    DISPATCH = "DISPATCH"


class MessagesSource(StrEnum):
    """Where the message is kept (query parameter ``messages_source``).

    The API assumes ``CONVERSATION_SOURCE`` when the parameter is left out.
    """

    CONVERSATION_SOURCE = "CONVERSATION_SOURCE"
    DISPATCH_SOURCE = "DISPATCH_SOURCE"


class MessagesView(StrEnum):
    """Whether the messages of the list have their metadata (query parameter ``view``).

    The API assumes ``WITH_METADATA`` when the parameter is left out.
    """

    WITH_METADATA = "WITH_METADATA"
    WITHOUT_METADATA = "WITHOUT_METADATA"


class Region(StrEnum):
    """The region of the Conversation API app: ``https://{region}.conversation.api.sinch.com``.

    A message of one region does not exist in another: the wrong region answers 404.
    """

    US = "us"
    EU = "eu"
    BR = "br"
