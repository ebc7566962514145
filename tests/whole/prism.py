"""The client against prism, a mock that is made of an OpenAPI document alone: ``nox -s prism``.

Prism refuses a request that does not fit the document, and answers with the document's examples. It
is a server that nobody of this project wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import aiohttp

from sinch_conv_async import ConversationClient, RetryPolicy

DOCUMENT = Path(__file__).with_name("openapi.yaml")
MESSAGE_ID = "01EXAMPLE"  # the document's example of an id


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


async def up(origin: str) -> None:
    """Returns once prism answers."""
    async with aiohttp.ClientSession(origin) as session:
        for _ in range(300):
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get("/nothing"):
                    return
            await asyncio.sleep(0.1)
    raise TimeoutError("prism does not answer")


async def calls(origin: str) -> None:
    options = {
        "project_id": "01PROJECT",
        "key_id": "key",
        "key_secret": "secret",
        "conversation_origin": origin,
        "auth_origin": origin,
        "retry": RetryPolicy(max_retries=0),
    }
    for auth in ("oauth2", "basic"):
        async with ConversationClient(**options, auth=auth) as client:
            for source in (None, "CONVERSATION_SOURCE", "DISPATCH_SOURCE"):
                message = await client.update_message_metadata(
                    MESSAGE_ID, '{"tag": "é"}', messages_source=source
                )
                assert message.id == MESSAGE_ID
                assert message.channel_identity is not None
                print(f"{auth}, {source}: {message!r}")
                read = await client.get_message(MESSAGE_ID, messages_source=source)
                assert read == message
            async with client.list_messages(page_size=10) as messages:
                listed = await anext(messages)
            assert listed == message


async def main(prism: str) -> None:
    port = free_port()
    command = (prism, "mock", "--errors", "--host", "127.0.0.1", "--port", str(port), str(DOCUMENT))
    process = await asyncio.create_subprocess_exec(*command)
    try:
        origin = f"http://127.0.0.1:{port}"
        await up(origin)
        await calls(origin)
    finally:
        process.terminate()
        await process.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
