"""A resolver with addresses from a table, and the system's addresses for all other hosts.

For asynchronous DNS, install aiodns and pass ``aiohttp.AsyncResolver`` in its place.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from sinch_conv_async import ConversationClient, SessionManager

if TYPE_CHECKING:
    from collections.abc import Mapping


class PinnedResolver(AbstractResolver):
    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self._addresses.get(host)
        if address is None:
            # Made for each look-up, because it belongs to the running event loop and this object
            # does not.
            return await ThreadedResolver().resolve(host, port, family)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""


async def main(
    message_id: str, addresses: Mapping[str, str], manager: SessionManager | None = None
) -> None:
    manager = manager or SessionManager(resolver=PinnedResolver(addresses))
    async with manager, ConversationClient.from_env(session_manager=manager) as client:
        message = await client.update_message_metadata(message_id, "seen")
        print(message.id, message.metadata)
