"""Starlette: client and queue in the lifespan's state, one handler for all errors.

uvicorn --app-dir examples starlette_app:app
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

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

    from starlette.requests import Request


log = logging.getLogger("tickets")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    async with ConversationClient.from_env(timeout=5.0) as client:
        await client.authenticate()
        async with UpdateQueue(client, stop_within=3.0) as queue:
            yield {"client": client, "queue": queue}
        for update in queue.pending:
            log.warning("%s was not updated: the service ended", update.message_id)


async def set_metadata(request: Request) -> JSONResponse:
    client: ConversationClient = request.state.client
    metadata = (await request.body()).decode()
    message_id = request.path_params["message_id"]
    message = await client.update_message_metadata(message_id, metadata)
    return JSONResponse(to_dict(message))


async def close_ticket(request: Request) -> JSONResponse:
    """Answer at once. The updates follow; failed ones are logged."""
    queue: UpdateQueue = request.state.queue
    ticket = request.path_params["ticket"]
    metadata = json.dumps({"ticket": ticket, "state": "closed"})
    message_ids = (await request.json())["message_ids"]
    for message_id in message_ids:
        queue.put_nowait(message_id, metadata)
    return JSONResponse({"accepted": len(message_ids)}, 202)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    match error:
        case InvalidArgumentError():
            return JSONResponse({"error": str(error)}, 422)
        case NotFoundError():
            return JSONResponse({"error": "no such message"}, 404)
        case CallTimeoutError() | RateLimitedError() | asyncio.QueueFull():
            log.warning("too busy: %s: %s", request.url.path, error)
            later = {"Retry-After": "5"}
            return JSONResponse({"error": "try again later"}, 503, headers=later)
    log.error("update failed: %s: %s", request.url.path, error)
    return JSONResponse({"error": "the update was not confirmed"}, 502)


app = Starlette(
    routes=[
        Route("/messages/{message_id}/metadata", set_metadata, methods=["PUT"]),
        Route("/tickets/{ticket}/close", close_ticket, methods=["POST"]),
    ],
    exception_handlers={SinchError: answer_error, asyncio.QueueFull: answer_error},
    lifespan=lifespan,
)
