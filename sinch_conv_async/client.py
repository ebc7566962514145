"""The client: one project's access to the Conversation API.

It has a session manager of its own, or shares one.
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
"""Requests a second that the API allows a project, over all its apps and most endpoints."""

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
    the region of the Conversation API app (:class:`Region` or its text). A wrong region answers
    404, so there is no default. It may be left out if ``conversation_origin`` is given.

    ``auth``: ``"oauth2"``, or ``"basic"`` for trials (the API limits it heavily).
    ``session_manager``: a manager to share; without one the client makes and owns its own.
    ``rate_limit``: requests a second for this project; ``None`` turns pacing off, but a 429 still
    pauses the project. ``retry``: a :class:`RetryPolicy`. ``timeout``: seconds that one call may
    take, including its wait and all attempts; ``None`` sets no bound. It does not apply to
    :meth:`update_many`. ``attempt_timeout``: seconds that one HTTP exchange may take.
    ``conversation_origin``, ``auth_origin``: replace the regional host and the token host; https
    only, except to this machine.

    The constructor opens nothing and needs no event loop, so a client may be made at import time.
    The client binds to the running loop at its first call, and to another loop after that one was
    closed. Only one event loop, thread and process may use it at a time: another one gets
    :class:`ClientStateError`.

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
        # The tracebacks of the errors below contain this frame, and crash reporters collect its
        # variables.
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

        They are ``SINCH_PROJECT_ID``, ``SINCH_KEY_ID``, ``SINCH_KEY_SECRET`` and
        ``SINCH_CONVERSATION_REGION``. ``SINCH_CONVERSATION_ORIGIN`` and ``SINCH_AUTH_ORIGIN`` are
        optional. ``overrides`` are keywords of the constructor and override the variables. Raises
        :class:`InvalidArgumentError`, which names the missing variables.
        """
        options: dict[str, Any] = {
            name: os.environ[variable]
            for name, variable in _ENVIRONMENT.items()
            if os.environ.get(variable)
        }
        options.update(overrides)
        # An error's traceback contains this frame, so remove the secret from it before anything is
        # raised.
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
            # Its constructor refused an argument, and crash reporters print that frame's variables.
            return "<ConversationClient not constructed>"
        state = "closed" if self.closed else "open"
        where = f"project {sender.project_id} at {sender.origin}"
        return f"<ConversationClient {state}: {where}, {sender.project!r}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        # An unused client has nothing to close. A manager that the client owns warns about its
        # connections.
        sender = getattr(self, "_sender", None)
        if (
            sender is not None
            and not self._owns_manager
            and not self.closed
            and sender.lifetime.running
        ):
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)

    def __reduce__(self) -> NoReturn:
        # A copy would share the queue, the token and the connections without knowing their state.
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
        """Set the metadata of a message, and return the message as the API answers it.

        ``message_id``: 1 to 256 letters, digits, ``-``, ``.``, ``_``, ``~``, and not ``.`` or
        ``..``. ``metadata``: at most 1,024 characters; it replaces what was there.
        ``messages_source``: where to look for the message; without it the API uses
        ``CONVERSATION_SOURCE``. ``timeout``: seconds for this call, including the wait for its
        turn; it replaces the client's ``timeout``.

        Raises :class:`InvalidArgumentError` before anything is sent; :class:`ApiError`
        (:class:`NotFoundError`, :class:`RateLimitedError`, ...) for an error answer;
        :class:`TransportError` and :class:`CallTimeoutError` if no answer came;
        :class:`TokenError`, :class:`ResponseFormatError`, :class:`ClientStateError`. The retries
        are over by then.

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

        ``async for message in client.list_messages(...)``. The first nine arguments are the filters
        of the API. ``start_time``, ``end_time``: aware datetimes, the first before the second.
        ``view``: with or without metadata (:class:`MessagesView`). ``page_size``: messages in one
        answer, 1 to 1,000.

        While you read the messages of one page, the next page is fetched, and no further one. Use
        ``async with client.list_messages(...) as messages`` so that nothing goes on if you leave
        the loop early. The client's ``timeout`` is for each page. The result can be the input of
        :meth:`transform_many` and of :meth:`update_many`.

        Raises :class:`InvalidArgumentError` at once; :class:`MessageList` names the errors of
        reading.

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
        """The outcomes of many updates, one for each, in order of completion.

        ``async for outcome in client.update_many(...)``.
        ``updates``: :class:`MetadataUpdate` objects, ``(message_id, metadata)`` pairs, or
        :class:`ConversationMessage` objects, whose metadata is written as it is; from any iterable
        or asynchronous iterable of any length. ``concurrency``: updates held at a time;
        the manager's ``max_connections`` when not given. ``max_outage``: seconds to wait for an API
        that takes no update, probing, before the job ends with its error; ``None``: for ever.
        ``may_send``: called right before each request, for a job that is sent under a lease; when
        it returns false, nothing is sent and the job ends with :class:`ClientStateError`.

        A failed update is an outcome with its ``error``. Use ``async with client.update_many(...)
        as outcomes`` to leave nothing running when the loop is left early. See :class:`BulkUpdate`
        for what is raised.
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
        """The outcomes of changing the metadata of many messages, depending on what is there.

        ``messages``: message ids or :class:`ConversationMessage` objects, from any iterable or
        asynchronous iterable of any length; such an object is not read again. ``transform``: a
        plain or asynchronous function that is called with each message and returns its new
        metadata. ``None``, or the text that the message has, leaves the message alone:
        :class:`Unchanged`. ``messages_source``, ``concurrency``, ``max_outage``, ``may_send``: as
        for :meth:`update_message_metadata` and :meth:`update_many`.

        A read that failed is a :class:`NotUpdated` outcome, and its ``update.metadata`` is
        ``None``. So is a text of more than 1,024 characters, of which nothing is sent, and an
        :class:`InvalidArgumentError` that ``transform`` raises, as :func:`merge_json` may. Any
        other exception of ``transform`` ends the job, and so does a result that is no text.

        The API has no ETag: what another writer writes between the read and the update is lost.

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
        """Return when there is a valid access token; for a service's check at start-up.

        Sends nothing if there is a token already, or with ``auth="basic"``. A failing token
        endpoint is asked again for the client's ``timeout`` or 60 seconds. Raises
        :class:`TokenError` (its ``error`` is ``invalid_client`` for a wrong key), and
        :class:`ClientStateError`.
        """
        await self._sender.authenticate(timeout=self._timeout)

    async def close(self) -> None:
        """Close the client, and its session manager unless that is shared; closing twice is fine.

        Calls that wait fail now with :class:`ClientStateError`. Exchanges under way finish, within
        ``attempt_timeout``.
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
