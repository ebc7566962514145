"""Structured logging: a JSON object for each record, with the client's fields.

python examples/json_logging.py MESSAGE_ID
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

from sinch_conv_async import ConversationClient, SinchError


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        # The client's fields are one mapping, so that they cannot collide with other fields.
        line.update(getattr(record, "sinch_conv_async", {}))
        return json.dumps(line)


async def main(message_ids: list[str]) -> None:
    async with ConversationClient.from_env() as client:
        for message_id in message_ids:
            try:
                await client.update_message_metadata(message_id, "seen")
            except SinchError as error:
                logging.getLogger("app").error("%s: %s", message_id, error)


if __name__ == "__main__":
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # A record for each attempt.
    logging.getLogger("sinch_conv_async").setLevel(logging.DEBUG)
    asyncio.run(main(sys.argv[1:]))
