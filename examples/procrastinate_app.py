"""procrastinate --app procrastinate_app.app worker"""

from __future__ import annotations

from procrastinate import App, PsycopgConnector
from sync_client import sinch

from sinch_conv_async import ConversationClient

app = App(connector=PsycopgConnector())

# Bound to the worker's event loop by its first call.
client = ConversationClient.from_env()


@app.task
async def tag(message_id: str, metadata: str) -> None:
    """An asynchronous task runs on the worker's loop."""
    await client.update_message_metadata(message_id, metadata, timeout=60.0)


@app.task
def tag_in_a_thread(message_id: str, metadata: str) -> None:
    """A synchronous task runs in a thread, so it asks the portal."""
    sinch.update_message_metadata(message_id, metadata, timeout=60.0)
