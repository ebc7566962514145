"""aiohttp.web: client and queue in a cleanup context, errors as answers in a middleware.

python examples/aiohttp_app.py
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import TYPE_CHECKING

from aiohttp import web

from sinch_conv_async import (
    CallTimeoutError,
    ConversationClient,
    InvalidArgumentError,
    NotFoundError,
    RateLimitedError,
    SinchError,
    UpdateQueue,
    to_dict,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp.typedefs import Handler

log = logging.getLogger("tickets")

CLIENT = web.AppKey("client", ConversationClient)
QUEUE = web.AppKey("queue", UpdateQueue)


async def conversation_client(app: web.Application) -> AsyncIterator[None]:
    async with ConversationClient.from_env(timeout=5.0) as client:
        await client.authenticate()
        app[CLIENT] = client
        async with UpdateQueue(client, stop_within=3.0) as queue:
            app[QUEUE] = queue
            yield
        for update in queue.pending:
            log.warning("%s was not updated: the service ended", update.message_id)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except InvalidArgumentError as error:
        return web.json_response({"error": str(error)}, status=422)
    except NotFoundError:
        return web.json_response({"error": "no such message"}, status=404)
    except (CallTimeoutError, RateLimitedError, asyncio.QueueFull) as error:
        log.warning("too busy: %s: %s", request.path, error)
        later = {"Retry-After": "5"}
        answer = {"error": "try again later"}
        return web.json_response(answer, status=503, headers=later)
    except SinchError as error:
        log.error("update failed: %s: %s", request.path, error)
        return web.json_response({"error": "the update was not confirmed"}, status=502)


async def set_metadata(request: web.Request) -> web.Response:
    message = await request.app[CLIENT].update_message_metadata(
        request.match_info["message_id"], await request.text()
    )
    return web.json_response(to_dict(message))


async def close_ticket(request: web.Request) -> web.Response:
    """Answer at once. The updates follow; failed ones are logged."""
    ticket = request.match_info["ticket"]
    metadata = json.dumps({"ticket": ticket, "state": "closed"})
    message_ids = (await request.json())["message_ids"]
    for message_id in message_ids:
        request.app[QUEUE].put_nowait(message_id, metadata)
    return web.json_response({"accepted": len(message_ids)}, status=202)


def make_app() -> web.Application:
    app = web.Application(middlewares=[answer_errors])
    app.cleanup_ctx.append(conversation_client)
    app.router.add_put("/messages/{message_id}/metadata", set_metadata)
    app.router.add_post("/tickets/{ticket}/close", close_ticket)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
