"""Under threads: gunicorn --chdir examples --threads 8 django_app:wsgi
Under ASGI: uvicorn --app-dir examples django_app:asgi
"""

from __future__ import annotations

import os

from asgiref.sync import async_to_sync
from django.conf import settings

settings.configure(
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "not secret"),
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
)

from django.core.asgi import get_asgi_application  # noqa: E402  # after the settings
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from sync_client import sinch  # noqa: E402

from sinch_conv_async import ConversationClient  # noqa: E402

# Bound to the server's event loop by its first call. For asynchronous views, and for
# `async_to_sync` under ASGI.
client = ConversationClient.from_env()


def put_from_a_thread(request: HttpRequest, message_id: str) -> JsonResponse:
    """A synchronous view under WSGI, in any thread: the call is made on the portal's loop."""
    message = sinch.update_message_metadata(message_id, request.body.decode())
    return JsonResponse({"id": message.id, "metadata": message.metadata})


async def put(request: HttpRequest, message_id: str) -> JsonResponse:
    """An asynchronous view under ASGI."""
    message = await client.update_message_metadata(
        message_id, request.body.decode(), timeout=10.0
    )
    return JsonResponse({"id": message.id, "metadata": message.metadata})


def put_under_asgi(request: HttpRequest, message_id: str) -> JsonResponse:
    """A synchronous view under ASGI: `async_to_sync` makes the call on the server's loop."""
    update = async_to_sync(client.update_message_metadata)
    message = update(message_id, request.body.decode(), timeout=10.0)
    return JsonResponse({"id": message.id, "metadata": message.metadata})


urlpatterns = [
    path("threads/<message_id>", put_from_a_thread),
    path("async/<message_id>", put),
    path("sync/<message_id>", put_under_asgi),
]

wsgi = get_wsgi_application()
django = get_asgi_application()


async def asgi(scope, receive, send) -> None:
    """Django has no shutdown hook; the server's lifespan closes the client."""
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await client.close()
    await send({"type": "lifespan.shutdown.complete"})
