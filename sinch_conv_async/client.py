"""The client: one project's access to the Conversation API.

A client owns a session manager, or shares one with other clients.
"""

from __future__ import annotations

import datetime
import math
import os
import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self, TypedDict, Unpack

from ._core.manager import SessionManager
from ._core.retry import RetryPolicy
from ._core.send import Call
from ._wire.arguments import checked_credentials, checked_id, checked_origin, regional_origin
from ._wire.operations import GetMessage, ListMessages
from .bulk import MAX_OUTAGE, BulkUpdate, Messages, Transform, Updates, transform_many, update_many
from .enums import (
    Channel,
    Direction,
    MessagesSource,
    MessagesSourceName,
    MessagesView,
    Region,
    RegionName,
)
from .errors import InvalidArgumentError
from .models import ConversationMessage
from .reading import MessageList

__all__ = ["ConversationClient"]

RATE_LIMIT: Final = 800.0
"""The API allows one project this many requests a second, for all apps and most endpoints
together."""

AUTH_ORIGIN: Final = "https://auth.sinch.com"
"""The token endpoint's host, which serves every region."""

_ENVIRONMENT: Final = {
    "project_id": "SINCH_PROJECT_ID",
    "key_id": "SINCH_KEY_ID",
    "key_secret": "SINCH_KEY_SECRET",
    "conversation_region": "SINCH_CONVERSATION_REGION",
    "conversation_origin": "SINCH_CONVERSATION_ORIGIN",
    "auth_origin": "SINCH_AUTH_ORIGIN",
}


class ClientOptions(TypedDict, total=False):
    """The keywords of :class:`ConversationClient`."""

    project_id: str
    key_id: str
    key_secret: str
    conversation_region: Region | RegionName | None
    auth: Literal["oauth2", "basic"]
    session_manager: SessionManager | None
    rate_limit: float | None
    retry: RetryPolicy | None
    timeout: float | None
    attempt_timeout: float
    conversation_origin: str | None
    auth_origin: str | None


class ConversationClient:
    """Updates message metadata in one Sinch project.

    ``project_id``, ``key_id``, ``key_secret``: from the Sinch dashboard. ``conversation_region``:
    the region of the Conversation API app (:class:`Region` or its text). In a wrong region the API
    answers 404, so there is no default. You may omit ``conversation_region`` if you give
    ``conversation_origin``.

    ``auth``: ``"oauth2"``, or ``"basic"`` for trials (the API allows only few requests with it).
    ``session_manager``: a :class:`SessionManager` to share; by default the client makes and owns
    one. ``rate_limit``: requests a second for this project; ``None`` turns pacing off, but a 429
    still pauses the project. ``retry``: a :class:`RetryPolicy`. ``timeout``: seconds that one call
    may take, including its waits and all attempts; ``None`` sets no bound. The timeout does not
    apply to the calls of a bulk job (:meth:`update_many`, :meth:`transform_many`).
    ``attempt_timeout``: seconds that one HTTP exchange may take. ``conversation_origin``,
    ``auth_origin``: they replace the regional host and the token host. They must begin with
    ``https``; ``http`` is allowed for this machine only.

    The constructor opens nothing and needs no event loop, so a client may be made at import time.
    At its first call, the client binds to the running event loop. After that loop is closed, the
    next call binds the client to the loop that runs then. Only one event loop, thread and process
    may use the client at a time: a call from anywhere else raises :class:`ClientStateError`.

    Raises :class:`InvalidArgumentError` for an invalid argument.
    """

    def __init__(
        self,
        *,
        project_id: str,
        key_id: str,
        key_secret: str,
        conversation_region: Region | RegionName | None = None,
        auth: Literal["oauth2", "basic"] = "oauth2",
        session_manager: SessionManager | None = None,
        rate_limit: float | None = RATE_LIMIT,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        attempt_timeout: float = 10.0,
        conversation_origin: str | None = None,
        auth_origin: str | None = None,
    ) -> None:
        credentials = checked_credentials(key_id, key_secret)
        # The errors below have this frame in their tracebacks. Crash reporters record the variables
        # of a frame, so the secret must not be among them.
        del key_secret
        if isinstance(credentials, str):
            raise InvalidArgumentError(credentials)
        project_id = checked_id("project_id", project_id)
        if conversation_origin is not None:
            origin = checked_origin("conversation_origin", conversation_origin)
        elif conversation_region is None:
            raise InvalidArgumentError(
                "conversation_region is missing: the region that the Conversation API app lives in"
            )
        else:
            origin = regional_origin(conversation_region)
        if conversation_region is not None:
            regional_origin(conversation_region)
        if auth not in ("oauth2", "basic"):
            raise InvalidArgumentError("auth must be 'oauth2' or 'basic'")
        if session_manager is not None and not isinstance(session_manager, SessionManager):
            raise InvalidArgumentError(
                "session_manager must be a SessionManager, not an aiohttp.ClientSession"
            )
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise InvalidArgumentError("retry must be a RetryPolicy")
        exchange_seconds = _positive("attempt_timeout", attempt_timeout)
        if exchange_seconds is None:
            raise InvalidArgumentError("attempt_timeout must be a positive, finite number")
        self._timeout = _positive("timeout", timeout)
        self._owns_manager = session_manager is None
        self._manager = SessionManager() if session_manager is None else session_manager
        self._sender = self._manager.sender(
            project_id=project_id,
            credentials=credentials,
            auth=auth,
            origin=origin,
            auth_origin=checked_origin(
                "auth_origin", AUTH_ORIGIN if auth_origin is None else auth_origin
            ),
            rate_limit=_positive("rate_limit", rate_limit),
            policy=retry or RetryPolicy(),
            attempt_timeout=exchange_seconds,
        )

    @classmethod
    def from_env(cls, **overrides: Unpack[ClientOptions]) -> Self:
        """A client with its options from environment variables.

        The variables are ``SINCH_PROJECT_ID``, ``SINCH_KEY_ID``, ``SINCH_KEY_SECRET`` and
        ``SINCH_CONVERSATION_REGION``. ``SINCH_CONVERSATION_ORIGIN`` and ``SINCH_AUTH_ORIGIN`` are
        optional. ``overrides`` are keywords of the constructor; a keyword replaces its variable. If
        a variable is missing, raises :class:`InvalidArgumentError` with its name.
        """
        options: dict[str, Any] = {
            name: os.environ[variable]
            for name, variable in _ENVIRONMENT.items()
            if os.environ.get(variable)
        }
        options.update(overrides)
        # Remove the secret from this frame before an error is raised, because the traceback of the
        # error contains the frame.
        del overrides
        required = ["project_id", "key_id", "key_secret"]
        if options.get("conversation_origin") is None:
            required.append("conversation_region")
        missing = [_ENVIRONMENT[name] for name in required if name not in options]
        if missing:
            options.clear()
            raise InvalidArgumentError(f"not set in the environment: {', '.join(missing)}")
        return cls(key_secret=options.pop("key_secret"), **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        sender = getattr(self, "_sender", None)
        if sender is None:
            # The constructor has raised an error. A crash reporter may still print this object,
            # which is a variable in the constructor's frame.
            return "<ConversationClient not constructed>"
        state = "closed" if self.closed else "open"
        where = f"project {sender.project_id} at {sender.origin}"
        return f"<ConversationClient {state}: {where}, {sender.project!r}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        # Warn only about a client that shares its manager and has running calls. A manager that the
        # client owns gives its own warning about its connections.
        sender = getattr(self, "_sender", None)
        if (
            sender is not None
            and not self._owns_manager
            and not self.closed
            and sender.lifetime.running
        ):
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)

    def __reduce__(self) -> NoReturn:
        # A copy would use the same queue, token and connections, and neither client would know the
        # changes that the other makes.
        raise TypeError("a ConversationClient cannot be copied or pickled: make another one")

    @property
    def closed(self) -> bool:
        """Whether the client or its manager has been closed."""
        return self._sender.lifetime.closed or self._manager.closed

    async def update_message_metadata(
        self,
        message_id: str,
        metadata: str,
        *,
        messages_source: MessagesSource | MessagesSourceName | None = None,
        timeout: float | None = None,
    ) -> ConversationMessage:
        """Set the metadata of a message, and return the message from the API's answer.

        ``message_id``: 1 to 256 letters, digits, ``-``, ``.``, ``_``, ``~``, and not ``.`` or
        ``..``. ``metadata``: at most 1,024 characters; it replaces the present metadata.
        ``messages_source``: where the API looks for the message; by default the API uses
        ``CONVERSATION_SOURCE``. ``timeout``: seconds for this call, including the wait for its
        turn; this value replaces the client's ``timeout``.

        Raises :class:`InvalidArgumentError` before anything is sent; :class:`ApiError`
        (:class:`NotFoundError`, :class:`RateLimitedError`, ...) for an error answer;
        :class:`TransportError` and :class:`CallTimeoutError` if no answer came; :class:`TokenError`
        if there is no access token; :class:`ResponseFormatError` if the answer cannot be read;
        :class:`ClientStateError` if the client cannot be used. An error is raised only when the
        client makes no further retry.

        Source: ``PATCH /v1/projects/{project_id}/messages/{message_id}``, *Update message
        metadata*.
        """
        sender = self._sender
        operation = sender.update(message_id, metadata, messages_source)
        timeout = self._timeout if timeout is None else _positive("timeout", timeout)
        return await sender.send(Call(operation), timeout=timeout)

    async def get_message(
        self,
        message_id: str,
        *,
        messages_source: MessagesSource | MessagesSourceName | None = None,
        timeout: float | None = None,
    ) -> ConversationMessage:
        """Read a message, and return it as the API has it now.

        A read waits for its turn, is retried and fails like an update: see
        :meth:`update_message_metadata` for the arguments and the errors. A read changes nothing, so
        it is retried even with ``retry_maybe_sent=False``.

        Source: ``GET /v1/projects/{project_id}/messages/{message_id}``, *Get a message*.
        """
        sender = self._sender
        operation = GetMessage.of(sender.origin, sender.path, message_id, messages_source)
        timeout = self._timeout if timeout is None else _positive("timeout", timeout)
        return await sender.send(Call(operation), timeout=timeout)

    def list_messages(
        self,
        *,
        conversation_id: str | None = None,
        contact_id: str | None = None,
        app_id: str | None = None,
        channel_identity: str | None = None,
        channel: Channel | str | None = None,
        direction: Direction | str | None = None,
        start_time: datetime.datetime | None = None,
        end_time: datetime.datetime | None = None,
        only_recipient_originated: bool | None = None,
        view: MessagesView | str | None = None,
        messages_source: MessagesSource | MessagesSourceName | None = None,
        page_size: int = 100,
    ) -> MessageList:
        """The messages that match all given filters, the newest first.

        Use it as ``async for message in client.list_messages(...)``. The first nine arguments are
        the filters of the API. ``start_time``, ``end_time``: aware datetimes, the first before the
        second. ``view``: with or without metadata (:class:`MessagesView`). ``page_size``: how many
        messages one answer of the API has, 1 to 1,000.

        While you read the messages of one page, the client fetches the next page, and no further
        page. Use ``async with client.list_messages(...) as messages`` if you may leave the loop
        early: at the end of the block no request continues. The client's ``timeout`` applies to
        each page. The result can be the input of :meth:`transform_many` and of :meth:`update_many`.

        This method raises :class:`InvalidArgumentError` for an invalid argument.
        :class:`MessageList` says which errors the reading raises.

        Source: ``GET /v1/projects/{project_id}/messages``, *List messages*.
        """
        sender = self._sender
        operation = ListMessages.of(
            sender.origin,
            sender.path,
            conversation_id=conversation_id,
            contact_id=contact_id,
            app_id=app_id,
            channel_identity=channel_identity,
            channel=channel,
            direction=direction,
            start_time=start_time,
            end_time=end_time,
            only_recipient_originated=only_recipient_originated,
            view=view,
            messages_source=messages_source,
            page_size=page_size,
        )
        return MessageList(sender, operation, timeout=self._timeout)

    def update_many(
        self,
        updates: Updates,
        *,
        concurrency: int | None = None,
        max_outage: float | None = MAX_OUTAGE,
        may_send: Callable[[], bool] | None = None,
    ) -> BulkUpdate:
        """Make many updates; give one outcome for each, in order of completion.

        Use it as ``async for outcome in client.update_many(...)``. ``updates``:
        :class:`MetadataUpdate` objects, ``(message_id, metadata)`` pairs, or
        :class:`ConversationMessage` objects, whose metadata is written as it is; from any iterable
        or asynchronous iterable of any length. ``concurrency``: how many updates the job holds at a
        time; by default the manager's ``max_connections``. ``max_outage``: while the API accepts no
        update, the job waits and probes it. After this many seconds the job ends with the API's
        last error; with ``None`` the job waits without a bound. ``may_send``: a function that is
        called right before each request. If it returns false, the request is not sent and the job
        ends with :class:`ClientStateError`. A program needs ``may_send`` if it may send only while
        it holds a lease.

        A failed update is an outcome with an ``error``. Use ``async with client.update_many(...) as
        outcomes`` if you may leave the loop early: at the end of the block the job ends.
        :class:`BulkUpdate` says which errors are raised.
        """
        places, seconds = self._job_options(concurrency, max_outage)
        return update_many(
            self._sender, updates, concurrency=places, max_outage=seconds, may_send=may_send
        )

    def transform_many(
        self,
        messages: Messages,
        transform: Transform,
        *,
        messages_source: MessagesSource | str | None = None,
        concurrency: int | None = None,
        max_outage: float | None = MAX_OUTAGE,
        may_send: Callable[[], bool] | None = None,
    ) -> BulkUpdate:
        """Give many messages new metadata, which a function makes from each message.

        ``messages``: message ids or :class:`ConversationMessage` objects, from any iterable or
        asynchronous iterable of any length. The job reads each message that is given by its id. It
        does not read a message that is given as an object. ``transform``: a plain or asynchronous
        function that is called with each message and returns its new metadata. If it returns
        ``None`` or the present metadata, the message is not updated, and the outcome is
        :class:`Unchanged`. ``messages_source``, ``concurrency``, ``max_outage``, ``may_send``: as
        for :meth:`update_message_metadata` and :meth:`update_many`.

        The outcome is :class:`NotUpdated` in three cases: the read fails; ``transform`` raises
        :class:`InvalidArgumentError`, as :func:`merge_json` may; or the new metadata has more than
        1,024 characters, so no update is sent. In the first two cases ``update.metadata`` is
        ``None``. Any other exception of ``transform`` ends the job. A result that is neither text
        nor ``None`` also ends it.

        The API has no ETag. If another writer changes the metadata between the read and the update,
        the update overwrites that change.

        Source: ``GET`` and ``PATCH /v1/projects/{project_id}/messages/{message_id}``.
        """
        places, seconds = self._job_options(concurrency, max_outage)
        return transform_many(
            self._sender,
            messages,
            transform,
            messages_source=messages_source,
            concurrency=places,
            max_outage=seconds,
            may_send=may_send,
        )

    def _job_options(self, concurrency: int | None, max_outage: float | None) -> tuple[int, float]:
        seconds = _positive("max_outage", max_outage)
        places = self._manager.max_connections if concurrency is None else concurrency
        if type(places) is not int or places < 1:
            raise InvalidArgumentError("concurrency must be a whole number, 1 or more")
        return places, math.inf if seconds is None else seconds

    async def authenticate(self) -> None:
        """Return as soon as there is a valid access token, so that a service can check its key.

        Sends nothing if there is a token already, or with ``auth="basic"``. If the token endpoint
        fails, the client asks it again for up to 60 seconds, or until the client's ``timeout`` has
        passed if that is shorter. Raises :class:`TokenError` (its ``error`` is ``invalid_client``
        for a wrong key), and :class:`ClientStateError`.
        """
        await self._sender.authenticate(timeout=self._timeout)

    async def close(self) -> None:
        """Close the client, and its own session manager if it has one. Closing twice is fine.

        Waiting calls fail now with :class:`ClientStateError`. HTTP exchanges that have begun may
        finish, which takes at most ``attempt_timeout`` seconds.
        """
        if self._owns_manager:
            await self._manager.close()
        else:
            await self._sender.leave()


def _positive(name: str, value: object) -> float | None:
    """The value if it is None or a positive, finite number; otherwise InvalidArgumentError."""
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= sys.float_info.max
    ):
        raise InvalidArgumentError(f"{name} must be a positive, finite number")
    return value
