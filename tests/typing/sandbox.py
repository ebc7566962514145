"""A user's code, read by mypy and pyright and never run: a test of one's own against
the sandbox.
"""

from __future__ import annotations

from typing import assert_type

from sinch_conv_async import ConversationClient
from sinch_conv_async.sandbox import Sandbox


async def test_the_ticket_is_closed() -> None:
    async with Sandbox(rate_limit=800) as sandbox:
        assert_type(sandbox, Sandbox)
        sandbox.add_message("01FC66621XXXXX119Z8PMV1QPA", metadata="old")
        sandbox.add_message("other", conversation_id="C", text="Hello")
        sandbox.fail_next(503, times=2, retry_after=1)
        async with ConversationClient(**sandbox.client_options()) as client:
            await client.update_message_metadata("01FC66621XXXXX119Z8PMV1QPA", "new")
        assert_type(sandbox.messages["01FC66621XXXXX119Z8PMV1QPA"].metadata, str)
        assert_type(len(sandbox.requests), int)
