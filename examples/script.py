"""A script that stops at the first failure, with a TaskGroup.

    python examples/script.py '{"campaign": "spring"}' MESSAGE_ID ...

The first update that fails cancels those that have not been sent yet.
"""

from __future__ import annotations

import asyncio
import sys

from sinch_conv_async import ConversationClient, SinchError


async def main(metadata: str, message_ids: list[str]) -> int:
    failed = False
    async with ConversationClient.from_env() as client:
        try:
            async with asyncio.TaskGroup() as updates:
                for message_id in message_ids:
                    update = client.update_message_metadata(message_id, metadata)
                    updates.create_task(update)
        except* SinchError as failures:
            failed = True
            for error in failures.exceptions:
                print(f"failed: {error}", file=sys.stderr)
    if not failed:
        print(f"{len(message_ids)} updated")
    return int(failed)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2:])))
