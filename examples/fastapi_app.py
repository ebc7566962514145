"""FastAPI: one client for the whole process, errors as answers, updates afterwards.

uvicorn --app-dir examples fastapi_app:app
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from sinch_conv_async import (
    CallTimeoutError,
    ConversationClient,
    InvalidArgumentError,
    NotFoundError,
    RateLimitedError,
    SessionManager,
    SinchError,
    UpdateQueue,
    to_dict,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger("tickets")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    # Callers wait at most five seconds for an answer, so the client need not wait longer.
    async with (
        SessionManager() as manager,
        ConversationClient.from_env(session_manager=manager, timeout=5.0) as client,
    ):
        await client.authenticate()  # a service with wrong credentials does not start
        async with UpdateQueue(client, stop_within=3.0) as queue:
            yield {"client": client, "manager": manager, "queue": queue}
        for update in queue.pending:
            log.warning("%s was not updated: the service ended", update.message_id)


app = FastAPI(lifespan=lifespan)


def get_client(request: Request) -> ConversationClient:
    return request.state.client


def get_queue(request: Request) -> UpdateQueue:
    return request.state.queue


Client = Annotated[ConversationClient, Depends(get_client)]
Queue = Annotated[UpdateQueue, Depends(get_queue)]


class Metadata(BaseModel):
    metadata: str


class Ticket(BaseModel):
    message_ids: list[str]


@app.put("/messages/{message_id}/metadata")
async def set_metadata(
    message_id: str, body: Metadata, client: Client
) -> dict[str, Any]:
    return to_dict(await client.update_message_metadata(message_id, body.metadata))


@app.post("/tickets/{ticket}/close", status_code=202)
async def close_ticket(ticket: str, body: Ticket, queue: Queue) -> dict[str, int]:
    """Answer at once. The updates follow; failed ones are logged."""
    metadata = json.dumps({"ticket": ticket, "state": "closed"})
    for message_id in body.message_ids:
        queue.put_nowait(message_id, metadata)
    return {"accepted": len(body.message_ids)}


@app.get("/stats")
async def stats(request: Request) -> dict[str, int]:
    now = request.state.manager.stats()
    names = ("calls", "attempts", "token_requests", "in_flight", "waiting")
    return {name: getattr(now, name) for name in names}


@app.exception_handler(InvalidArgumentError)
async def refused(request: Request, error: InvalidArgumentError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 422)


@app.exception_handler(NotFoundError)
async def not_found(request: Request, error: NotFoundError) -> JSONResponse:
    return JSONResponse({"error": "no such message"}, 404)


@app.exception_handler(CallTimeoutError)
@app.exception_handler(RateLimitedError)
@app.exception_handler(asyncio.QueueFull)
async def too_busy(request: Request, error: Exception) -> JSONResponse:
    log.warning("too busy: %s: %s", request.url.path, error)
    return JSONResponse({"error": "try again later"}, 503, headers={"Retry-After": "5"})


@app.exception_handler(SinchError)
async def bad_gateway(request: Request, error: SinchError) -> JSONResponse:
    log.error("update failed: %s: %s", request.url.path, error)
    return JSONResponse({"error": "the update was not confirmed"}, 502)
