"""A proxy that asks for credentials.

    export SINCH_PROXY=http://user:password@proxy.example:3128
    python examples/proxy.py MESSAGE_ID

The client does not read HTTP_PROXY and HTTPS_PROXY: the code decides where credentials go. Of https
requests the proxy sees only the host name.
"""

from __future__ import annotations

import asyncio
import os
import sys

from sinch_conv_async import ConversationClient, SessionManager


async def main(message_id: str, manager: SessionManager) -> None:
    async with manager, ConversationClient.from_env(session_manager=manager) as client:
        message = await client.update_message_metadata(message_id, "seen")
        print(message.id, message.metadata)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], SessionManager(proxy=os.environ["SINCH_PROXY"])))
