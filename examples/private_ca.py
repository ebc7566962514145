"""A private CA, for your own gateway in front of the API.

    python examples/private_ca.py company-ca.pem MESSAGE_ID

Certificates are always verified; this adds a trusted CA.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

from sinch_conv_async import ConversationClient, SessionManager


async def main(ca_file: str, message_id: str) -> None:
    context = ssl.create_default_context(cafile=ca_file)
    # For a client certificate: context.load_cert_chain("client.pem", "client.key")
    async with (
        SessionManager(ssl=context) as manager,
        ConversationClient.from_env(session_manager=manager) as client,
    ):
        message = await client.update_message_metadata(message_id, "seen")
        print(message.id, message.metadata)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
