"""JSON values to models and errors, and back, through one cattrs converter.

The hooks live in :func:`_configure`. Strict about types (an ``id`` that is a number is not the API's), tolerant of words and fields that
came later. Knows nothing of HTTP beyond the status that an error is filed under.
"""

from __future__ import annotations

import copy
import datetime
import functools
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, TypeVar

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from ..enums import Channel, Direction, ProcessingMode
from ..errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    ErrorDetail,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    SinchError,
)
from ..models import (
    ChannelIdentity,
    ConversationMessage,
    MetadataUpdate,
    NotUpdated,
    Unchanged,
    Updated,
    UpdateOutcome,
)
from . import json as _json

__all__ = ["structure_error", "structure_message", "to_dict"]

_ERROR_CLASSES: Final = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitedError,
}

_DETAILS_KEPT: Final = 100
"""Details of an error. A mebibyte has room for half a million, which would take a hundred times as much as objects."""

_BODY_KEPT: Final = 2048  # characters; enough for any error envelope, too little to fill a log by accident

# What the API and problem documents call a detail's type when they do not call it type_url.
_TYPE_NAMES: Final = ("@type", "type")

_T = TypeVar("_T")

# A key that holds the leftovers while cattrs builds a model. A field of this name on the wire is one of the leftovers itself.
_EXTRA: Final = "extra"


def _text(value: Any, _: object = None) -> str | None:
    if value is None or type(value) is str:
        return value
    raise TypeError("expected a string")


def _flag(value: Any, _: object = None) -> bool | None:
    if value is None or type(value) is bool:
        return value
    raise TypeError("expected true or false")


def _timestamp(value: Any, _: object = None) -> datetime.datetime | None:
    """RFC 3339, whose ``t`` and ``z`` may be small; ``fromisoformat`` reads nanoseconds too, and cuts them to microseconds.

    A leap second is read as the second before it: Python has none.
    """
    if value is None:
        return None
    if type(value) is str:
        text = value.upper()
        if text[16:19] == ":60":
            text = f"{text[:17]}59{text[19:]}"
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            # CPython stops reading at a NUL, and takes no notice of what stands behind it.
            if moment.tzinfo is not None and "\0" not in value:
                return moment
    raise TypeError("expected an RFC 3339 timestamp")


def _word(known: type[Channel | Direction | ProcessingMode]) -> Callable[[Any, object], Any]:
    """A word of an enum, or the text itself where the enum does not know it."""
    members = {member.value: member for member in known}

    def structure(value: Any, _: object = None) -> Any:
        if value is None:
            return None
        if type(value) is str:
            return members.get(value, value)
        raise TypeError("expected a string")

    return structure


_CHANNELS: Final = {member.value: member for member in Channel}
_DIRECTIONS: Final = {member.value: member for member in Direction}
_PROCESSING_MODES: Final = {member.value: member for member in ProcessingMode}


def _identity(value: Any, _: object = None) -> ChannelIdentity | None:
    if value is None:
        return None
    if type(value) is not dict:
        raise TypeError
    take = value.pop
    identity, channel, app_id = take("identity", None), take("channel", None), take("app_id", None)
    for text in (identity, channel, app_id):
        if type(text) is not str and text is not None:
            raise TypeError
    return ChannelIdentity(identity, _CHANNELS.get(channel, channel), app_id, value)


def _message(value: Any, _: object = None) -> ConversationMessage:
    """A message, in straight lines: a third of the time of the hook that cattrs makes, for every answer of every call.

    Takes the object apart, and what is left of it is ``extra``. Says only that something is wrong: what and where, :func:`_explain` finds out
    with the other hook. That the two agree on every value is a property that is tested.
    """
    if type(value) is not dict:
        raise TypeError
    take = value.pop
    message_id, contact_id = take("id", None), take("contact_id", None)
    conversation_id = take("conversation_id", None)
    direction, metadata = take("direction", None), take("metadata", None)
    sender_id, processing_mode = take("sender_id", None), take("processing_mode", None)
    for text in (message_id, contact_id, conversation_id, direction, metadata, sender_id, processing_mode):
        if type(text) is not str and text is not None:
            raise TypeError
    return ConversationMessage(
        message_id,
        _timestamp(take("accept_time", None)),
        _identity(take("channel_identity", None)),
        contact_id,
        conversation_id,
        _DIRECTIONS.get(direction, direction),
        metadata,
        _flag(take("injected", None)),
        sender_id,
        _PROCESSING_MODES.get(processing_mode, processing_mode),
        value,
    )


def _keeping_extra(cls: type[Any], base: Callable[[dict[str, Any], Any], Any]) -> Callable[[Any, Any], Any]:
    """Wraps a structure function so that fields which the model does not name end up in ``extra``."""
    named = frozenset(field.name for field in attrs.fields(cls)) - {_EXTRA}

    def structure(value: Any, _: Any = cls) -> Any:
        if type(value) is not dict:
            raise TypeError("expected an object")
        extra = {name: field for name, field in value.items() if name not in named}
        return base({**value, _EXTRA: extra}, cls)

    return structure


@functools.cache
def _explaining() -> cattrs.Converter:
    """A converter that keeps track of where it is, at a price: it says what is wrong with an answer that has already failed."""
    converter = cattrs.Converter(detailed_validation=True)

    def register(cls: type[Any], **hooks: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        overrides = {
            field.name: override(struct_hook=hooks.get(field.name, _text)) for field in attrs.fields(cls)
        }
        overrides[_EXTRA] = override(struct_hook=lambda value, _: value)
        base = make_dict_structure_fn(cls, converter, **overrides)  # type: ignore[arg-type]  # cattrs types its overrides and its flags as one **kwargs
        structure = _keeping_extra(cls, base)
        converter.register_structure_hook(cls, structure)
        return structure

    identity = register(ChannelIdentity, channel=_word(Channel))
    register(
        ConversationMessage,
        accept_time=_timestamp,
        channel_identity=lambda value, cls: None if value is None else identity(value, cls),
        direction=_word(Direction),
        injected=_flag,
        processing_mode=_word(ProcessingMode),
    )
    return converter


@functools.cache
def _configure() -> cattrs.Converter:
    """The converter of models and errors; made when first needed, since importing the package must cost no more than it has to."""
    converter = cattrs.Converter(detailed_validation=False)
    converter.register_structure_hook(ConversationMessage, _message)
    converter.register_structure_hook(ChannelIdentity, _identity)
    # Errors are read from an envelope that _envelope has made tidy: what is left of it cannot fail.
    as_it_is = override(struct_hook=lambda value, _: value)

    def error_hook(cls: type[ApiError]) -> Callable[[Any, Any], Any]:
        return make_dict_structure_fn(
            cls,
            converter,
            code=as_it_is,
            message=as_it_is,
            status=as_it_is,
            details=override(struct_hook=_details),
        )

    converter.register_structure_hook_factory(
        lambda cls: isinstance(cls, type) and issubclass(cls, ApiError), error_hook
    )
    converter.register_unstructure_hook(datetime.datetime, _rfc3339)
    for model in (ConversationMessage, ChannelIdentity, MetadataUpdate):
        converter.register_unstructure_hook(model, lambda value: _named_fields(converter, value))
    converter.register_unstructure_hook(ErrorDetail, _unstructure_detail)
    converter.register_unstructure_hook_func(
        lambda cls: isinstance(cls, type) and issubclass(cls, SinchError), _unstructure_error
    )
    for outcome in (Updated, NotUpdated, Unchanged):
        converter.register_unstructure_hook(
            outcome, lambda value: {"ok": value.ok, **_named_fields(converter, value)}
        )
    return converter


def _detail(value: Any) -> ErrorDetail:
    """One entry of ``details``, whatever it is: nothing that the server says is lost."""
    extra = dict(value) if type(value) is dict else {"value": value}
    text = extra.pop("value") if type(extra.get("value")) is str else None
    type_url = _first(str, extra, "type_url", *_TYPE_NAMES)
    # It stays where it is when a sibling says the same: _unstructure_detail could not tell that there were two.
    if type(extra.get("type_url")) is str and type_url != _first(str, extra, *_TYPE_NAMES):
        del extra["type_url"]
    return ErrorDetail(type_url=type_url, value=text, extra=extra)


def _details(value: list[Any], _: object) -> tuple[ErrorDetail, ...]:
    return tuple(map(_detail, value[:_DETAILS_KEPT]))


def _first(kind: type[_T], value: Mapping[str, Any], *names: str) -> _T | None:
    """The first of these members that has the type asked for; JSON's true is no number."""
    return next((value[name] for name in names if type(value.get(name)) is kind), None)


def _envelope(value: Any) -> dict[str, Any]:
    """The documented error object of whatever a server sent in its place.

    Known beside the envelope: its fields without ``error`` around them (the specification's own examples), RFC 9457 problem documents,
    ``{"error": "text"}`` (OAuth's form too), ``code``/``text`` and ``errorCode``/``message`` of other Sinch products, a bare string.
    """
    inner = value.get("error") if type(value) is dict else value
    if type(inner) is dict:
        value = inner
    elif type(inner) is str:
        value = {**(value if type(value) is dict else {}), "title": inner}
    if type(value) is not dict:
        return {"details": value if type(value) is list else []}
    details = _first(list, value, "details", "errors")
    return {
        "code": _first(int, value, "code", "status", "errorCode"),
        "message": _first(str, value, "message", "detail", "text", "error_description", "title") or "",
        "status": _first(str, value, "status", "code"),
        "details": details or [],
    }


def _rfc3339(moment: datetime.datetime) -> str:
    text = moment.isoformat()
    return f"{text.removesuffix('+00:00')}Z" if text.endswith("+00:00") else text


def _named_fields(converter: cattrs.Converter, value: Any) -> dict[str, Any]:
    """The fields that are there, under the wire's names, and the ones that the model does not name beside them."""
    fields = {name: getattr(value, name) for name in (field.name for field in attrs.fields(type(value)))}
    extra = copy.deepcopy(fields.pop(_EXTRA, {}))  # the model keeps its own
    named = {name: _plain(converter, field) for name, field in fields.items() if field is not None}
    return {**extra, **named}


def _plain(converter: cattrs.Converter, value: Any) -> Any:
    # An enum member is a str already, but its repr is not: logs and templates print that.
    return value.value if isinstance(value, StrEnum) else converter.unstructure(value)


def _unstructure_detail(detail: ErrorDetail) -> dict[str, Any]:
    # type_url may have been read from "@type" or "type", which are in extra as they came.
    implied = _first(str, detail.extra, *_TYPE_NAMES)
    named = {"type_url": None if detail.type_url == implied else detail.type_url, "value": detail.value}
    return {**{name: text for name, text in named.items() if text is not None}, **copy.deepcopy(detail.extra)}


def _unstructure_error(error: SinchError) -> dict[str, Any]:
    if isinstance(error, ApiError):
        return {
            "code": error.code,
            "message": error.message,
            "status": error.status,
            "details": [_unstructure_detail(detail) for detail in error.details],
        }
    return {"status": type(error).__name__, "message": str(error)}


def structure_message(body: bytes) -> ConversationMessage | str:
    """The message that a 200 answer holds, or what is wrong with it and where (``expected a string @ $.id``).

    The words name types and places, never what was found there. Returned, not raised: a traceback would carry the body along in its frames.
    """
    try:
        value = _json.loads(body)
    except ValueError:
        return "not readable as JSON @ $"
    try:
        return _message(value)
    except TypeError:
        return _explain(body)


def _explain(body: bytes) -> str:
    """Structures once more, with a converter that keeps track of where it is."""
    try:
        _explaining().structure(_json.loads(body), ConversationMessage)
    except (TypeError, cattrs.BaseValidationError) as error:  # a hook's own, or a group of theirs
        return "; ".join(cattrs.transform_error(error, format_exception=lambda found, _: str(found)))
    raise AssertionError("both converters have the same hooks")  # pragma: no cover  # a proof, not a path


def structure_error(http_status: int, body: bytes, *, scrub: Callable[[str], str]) -> ApiError:
    """The error that an answer holds, whatever its form; never fails.

    ``scrub`` cuts credentials out of a text, should the server have echoed them.
    """
    text = body.decode("utf-8", "replace")
    try:
        said = _json.loads(body)
        value = _scrubbed(said, scrub)
        if value != said:
            # JSON can spell a credential in more ways than anyone can look for in its text.
            text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        value = None
    text = scrub(text)[:_BODY_KEPT]  # in this order: half a credential is not found
    default = ServerError if http_status >= 500 else ApiError
    error: ApiError = _configure().structure(_envelope(value), _ERROR_CLASSES.get(http_status, default))
    error.http_status = http_status
    error.body = text
    return error


def _scrubbed(value: Any, scrub: Callable[[str], str]) -> Any:
    if type(value) is str:
        return scrub(value)
    if type(value) is dict:
        return {scrub(name): _scrubbed(field, scrub) for name, field in value.items()}
    if type(value) is list:
        return [_scrubbed(item, scrub) for item in value]
    return value


def to_dict(
    model: ConversationMessage | ChannelIdentity | ErrorDetail | MetadataUpdate | UpdateOutcome | SinchError,
) -> dict[str, Any]:
    """Plain JSON-ready data of a model or an error, with the wire's names.

    Fields that are ``None`` are left out, those in ``extra`` stand beside the named ones, timestamps are RFC 3339 text. An
    :class:`ApiError` always gives its ``code``, ``message``, ``status`` and ``details``, any other error its class as ``status`` and its ``message``.
    """
    return _configure().unstructure(model)  # type: ignore[no-any-return]  # the hooks above all give dicts
