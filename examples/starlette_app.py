"""Starlette: the client in the lifespan's state, one handler that turns errors into answers.

uvicorn --app-dir examples starlette_app:app
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from sinch_conv_async import (
    ConversationClient,
    InvalidArgumentError,
    NotFoundError,
    SinchError,
    TransportError,
    to_dict,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    async with ConversationClient.from_env(timeout=5.0) as client:
        await client.authenticate()
        yield {"client": client}


async def set_metadata(request: Request) -> JSONResponse:
    client: ConversationClient = request.state.client
    metadata = (await request.body()).decode()
    message = await client.update_message_metadata(request.path_params["message_id"], metadata)
    return JSONResponse(to_dict(message))


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    match error:
        case InvalidArgumentError():
            return JSONResponse({"error": str(error)}, 422)
        case NotFoundError():
            return JSONResponse({"error": "no such message"}, 404)
        case TransportError(sent="no"):
            return JSONResponse({"error": "not applied"}, 503, headers={"Retry-After": "5"})
        case _:
            return JSONResponse({"error": "the update may not have been applied"}, 502)


app = Starlette(
    routes=[Route("/messages/{message_id}/metadata", set_metadata, methods=["PUT"])],
    exception_handlers={SinchError: answer_error},
    lifespan=lifespan,
)
