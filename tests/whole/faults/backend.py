"""The sandbox as a program: ``python -m tests.whole.faults.backend '{"latency": 0.01}'``.

Says on its first line how a client finds it, then does what standard input says: a JSON array of a
method's name, its arguments and its keywords a line, answered by a line of JSON.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from typing import Any

from sinch_conv_async.sandbox import Sandbox


async def obey(sandbox: Sandbox, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    if name == "requests":
        return [[r.time, r.message_id, r.status, r.applied] for r in sandbox.requests]
    if name == "token_requests":
        return [[r.time, r.status] for r in sandbox.token_requests]
    if name == "metadata":
        return {message_id: message.metadata for message_id, message in sandbox.messages.items()}
    if name == "forget":
        sandbox.requests.clear()
        sandbox.token_requests.clear()
        sandbox.messages.clear()
        return None
    if not callable(getattr(sandbox, name)):
        setattr(sandbox, name, arguments[0])
        return None
    result = getattr(sandbox, name)(*arguments, **keywords)
    if inspect.isawaitable(result):
        result = await result
    return result if isinstance(result, int | float | str | None) else None


async def main() -> None:
    async with Sandbox(**json.loads(sys.argv[1])) as sandbox:
        print(json.dumps(sandbox.client_options()), flush=True)
        reader = asyncio.StreamReader(limit=1 << 24)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            print(json.dumps(await obey(sandbox, *json.loads(line))), flush=True)
        transport.close()


if __name__ == "__main__":
    asyncio.run(main())
