"""FastAPI: one client for the whole process, errors as answers, a background task.

uvicorn --app-dir examples fastapi_app:app
"""

from __future__ import annotations

import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, Request
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
    to_dict,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger("tickets")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    # Nobody waits longer than five seconds for an answer, so neither need the client.
    async with (
        SessionManager() as manager,
        ConversationClient.from_env(session_manager=manager, timeout=5.0) as client,
    ):
        await client.authenticate()  # a service with wrong credentials does not start
        yield {"client": client, "manager": manager}


app = FastAPI(lifespan=lifespan)


def get_client(request: Request) -> ConversationClient:
    return request.state.client


Client = Annotated[ConversationClient, Depends(get_client)]


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
async def close_ticket(
    ticket: str, body: Ticket, client: Client, background: BackgroundTasks
) -> dict[str, int]:
    background.add_task(mark_closed, client, ticket, body.message_ids)
    return {"accepted": len(body.message_ids)}


async def mark_closed(
    client: ConversationClient, ticket: str, message_ids: list[str]
) -> None:
    """Runs after the answer; uvicorn waits for it, and closes the client afterwards."""
    metadata = json.dumps({"ticket": ticket, "state": "closed"})
    updates = [(message_id, metadata) for message_id in message_ids]
    async with client.update_many(updates) as outcomes:
        async for outcome in outcomes:
            if not outcome.ok:
                failed = outcome.update.message_id
                log.warning("ticket %s: %s: %s", ticket, failed, outcome.error)


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
async def too_busy(request: Request, error: SinchError) -> JSONResponse:
    return JSONResponse({"error": "try again later"}, 503, headers={"Retry-After": "5"})


@app.exception_handler(SinchError)
async def bad_gateway(request: Request, error: SinchError) -> JSONResponse:
    log.error("update failed: %s", error)
    return JSONResponse({"error": "the update was not confirmed"}, 502)
