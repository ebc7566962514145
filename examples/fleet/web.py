"""A web process of a fleet: it tags a message after each request. Start several of them; together
they keep to one limit.

$ SINCH_CONV_FLEET=redis://127.0.0.1:6379/0 python examples/fleet/web.py
"""

import os
from collections.abc import AsyncIterator

from aiohttp import web

from sinch_conv_async import ConversationClient, SessionManager, SinchError
from sinch_conv_async.fleet.redis import RedisFleet

CLIENT = web.AppKey("client", ConversationClient)


async def client(app: web.Application) -> AsyncIterator[None]:
    fleet = RedisFleet(os.environ["SINCH_CONV_FLEET"])
    async with (
        SessionManager(fleet=fleet) as manager,  # the manager closes the fleet
        ConversationClient.from_env(session_manager=manager, timeout=5.0) as app[
            CLIENT
        ],
    ):
        yield


async def tag(request: web.Request) -> web.Response:
    try:
        message = await request.app[CLIENT].update_message_metadata(
            request.match_info["message_id"], await request.text()
        )
    except SinchError as error:
        return web.json_response({"error": type(error).__name__}, status=502)
    return web.json_response({"id": message.id})


def app() -> web.Application:
    application = web.Application()
    application.cleanup_ctx.append(client)
    application.router.add_put("/tags/{message_id}", tag)
    return application


if __name__ == "__main__":
    web.run_app(app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
