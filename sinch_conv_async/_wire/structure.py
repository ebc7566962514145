"""JSON values to models and errors, and back, all through one cattrs converter.

cattrs generates the function that structures each class; :func:`_converter` says how. The generated
functions record their place in the answer, so an error says where the answer does not fit
(``expected a string @ $.channel_identity.channel``).

It is strict about types: an ``id`` must not be a number. It is tolerant of new words and fields: a
field that a class does not name is kept in its ``extra``. Of HTTP it knows only the status that
decides the class of an error.
"""

from __future__ import annotations

import copy
import datetime
import functools
import re
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
    TokenError,
)
from ..models import (
    ChannelIdentity,
    ConversationMessage,
    MessagePage,
    MetadataUpdate,
    NotUpdated,
    Unchanged,
    Updated,
    UpdateOutcome,
)
from . import json as _json
from .arguments import encodes
from .envelope import error_fields

__all__ = ["structure_error", "structure_message", "structure_page", "to_dict"]

_ERROR_CLASSES: Final = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitedError,
}

_BODY_KEPT: Final = 2048
"""Characters of an error's body that are kept: enough for any error envelope, too few to fill a
log.
"""

_MARGIN: Final = 16 * 1024
"""Further characters of a body that are searched, so that no credential is cut in half before it is
found.
"""

_MAX_PAGE_TOKEN: Final = 4096
"""Characters. It becomes a part of the next request's target, and servers refuse heads of more than
8 KiB."""

# Other names of a detail's type_url, in the API and in problem documents.
_TYPE_NAMES: Final = ("@type", "type")

_MICROSECONDS: Final = len("2026-03-01T12:30:15.250000Z")
# More digits than microseconds, or a leap second.
_BEYOND_DATETIME: Final = re.compile(r"[.,][0-9]{7}|:60")

_EXTRA: Final = "extra"

_T = TypeVar("_T")

Hook = Callable[[Any, Any], Any]
"""A function that cattrs calls with a value and its target type."""


# Values


def _text(value: Any, _: object) -> str | None:
    if value is None or type(value) is str:
        return value
    raise TypeError("expected a string")


def _flag(value: Any, _: object) -> bool | None:
    if value is None or type(value) is bool:
        return value
    raise TypeError("expected true or false")


def _timestamp(value: Any, _: object) -> datetime.datetime | None:
    """The moment that an RFC 3339 text names; None for another text.

    ``fromisoformat`` reads nanoseconds too, and cuts them to microseconds.
    """
    if type(value) is not str:
        if value is None:
            return None
        raise TypeError("expected an RFC 3339 timestamp")
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError:
        # RFC 3339 allows a small "t" and "z". A leap second is read as the second before it: Python
        # has none.
        text = value.upper()
        other = f"{text[:17]}59{text[19:]}" if text[16:19] == ":60" else text
        return None if other == value else _timestamp(other, None)
    # CPython stops reading at a NUL, and ignores what follows it.
    return None if moment.tzinfo is None or "\0" in value else moment


def _word(known: type[StrEnum]) -> Hook:
    """Structure a word of an enum; a word that the enum does not list stays text."""
    members: dict[str, StrEnum] = {member.value: member for member in known}

    def structure(value: Any, _: object) -> str | None:
        if type(value) is str:
            return members.get(value, value)
        if value is None:
            return None
        raise TypeError("expected a string")

    return structure


def _page_token(value: Any, _: object) -> str | None:
    token = _text(value, None)
    if token is not None and not (len(token) <= _MAX_PAGE_TOKEN and encodes(token)):
        raise TypeError(f"expected at most {_MAX_PAGE_TOKEN:,} characters that encode to UTF-8")
    return token


# The converter


@functools.cache
def _converter() -> cattrs.Converter:
    """The converter of models and errors.

    Made when first needed, because importing the package must cost little.
    """
    converter = cattrs.Converter(detailed_validation=True)
    identity = _keeping_extra(
        ChannelIdentity, _generated(converter, ChannelIdentity, channel=_word(Channel))
    )
    converter.register_structure_hook(ChannelIdentity, identity)
    message = _generated(
        converter,
        ConversationMessage,
        accept_time=_timestamp,
        channel_identity=_optional(identity),
        direction=_word(Direction),
        injected=_flag,
        processing_mode=_word(ProcessingMode),
    )
    message = _keeping_accept_time(_keeping_extra(ConversationMessage, message))
    converter.register_structure_hook(ConversationMessage, message)
    every = converter.get_structure_hook(tuple[ConversationMessage, ...])

    def messages(value: Any, cls: Any) -> Any:
        if value is not None and type(value) is not list:
            raise TypeError("expected a list")
        return every(value or [], cls)

    page = _generated(converter, MessagePage, messages=messages, next_page_token=_page_token)

    def checked_page(value: Any, cls: object) -> Any:
        if type(value) is not dict:
            raise TypeError("expected an object")
        return page(value, cls)

    converter.register_structure_hook(MessagePage, checked_page)
    converter.register_structure_hook(ErrorDetail, _detail)

    def error_hook(cls: type[ApiError]) -> Hook:
        return _generated_error(converter, cls)

    converter.register_structure_hook_factory(_is_api_error, error_hook)
    _register_unstructuring(converter)
    return converter


@functools.cache
def _hook(cls: Any) -> Hook:
    return _converter().get_structure_hook(cls)


def _generated(converter: cattrs.Converter, cls: type[Any], **hooks: Hook) -> Hook:
    """The function that cattrs generates to structure ``cls``.

    A field without a hook is text; ``extra`` is left out.
    """
    overrides = {
        field.name: override(struct_hook=hooks.get(field.name, _text), omit=field.name == _EXTRA)
        for field in attrs.fields(cls)
    }
    return make_dict_structure_fn(cls, converter, **overrides)  # type: ignore[arg-type]  # cattrs types its overrides and its flags as one **kwargs


def _is_api_error(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, ApiError)


def _optional(base: Hook) -> Hook:
    def structure(value: Any, cls: object) -> Any:
        return None if value is None else base(value, cls)

    return structure


def _keeping_extra(cls: type[Any], base: Hook) -> Hook:
    """Wrap a structure function, so that ``extra`` keeps fields that the class does not name."""
    named = frozenset(field.name for field in attrs.fields(cls)) - {_EXTRA}

    def structure(value: Any, _: object) -> Any:
        if type(value) is not dict:
            raise TypeError("expected an object")
        model = base(value, cls)
        if not named.issuperset(value):
            extra = model.extra
            for name, field in value.items():
                if name not in named:
                    extra[name] = field
        return model

    return structure


def _keeping_accept_time(base: Hook) -> Hook:
    """Wrap the messages' structure function, so that the text of ``accept_time`` is kept."""
    set_attribute = object.__setattr__  # the class is frozen

    def structure(value: Any, cls: object) -> ConversationMessage:
        message: ConversationMessage = base(value, cls)
        text = value.get("accept_time")
        if text:
            set_attribute(message, "accept_time_text", text)
            beyond = len(text) > _MICROSECONDS or ":60" in text
            if message.accept_time is None or (beyond and _BEYOND_DATETIME.search(text)):
                message.extra["accept_time"] = text  # type: ignore[index]  # a dict, as the model made it
        return message

    return structure


def _generated_error(converter: cattrs.Converter, cls: type[ApiError]) -> Hook:
    """The function that structures an error.

    It cannot fail, because :func:`error_fields` has prepared the fields.
    """

    def as_it_is(value: Any, _: object) -> Any:
        return value

    return make_dict_structure_fn(
        cls,
        converter,
        **{name: override(struct_hook=as_it_is) for name in ("message", "code", "status", _EXTRA)},  # type: ignore[arg-type]  # the same as above
    )


def _detail(value: Any, _: object) -> ErrorDetail:
    """One entry of ``details``, of any form, so that nothing is lost."""
    extra = dict(value) if type(value) is dict else {"value": value}
    text = extra.pop("value") if type(extra.get("value")) is str else None
    implied = _type_name(extra)
    type_url = extra["type_url"] if type(extra.get("type_url")) is str else implied
    # It stays in extra if a second field says the same, because _unstructure_detail could not tell
    # that there were two.
    if type(extra.get("type_url")) is str and type_url != implied:
        del extra["type_url"]
    return ErrorDetail(type_url=type_url, value=text, extra=extra)


def _type_name(fields: Mapping[str, Any]) -> str | None:
    return next((fields[name] for name in _TYPE_NAMES if type(fields.get(name)) is str), None)


# Answers


def structure_message(body: bytes) -> ConversationMessage | str:
    """The message of a 200 answer, or what is wrong and where (``expected a string @ $.id``)."""
    return _structured(body, ConversationMessage)


def structure_page(body: bytes) -> MessagePage | str:
    """The page in a 200 answer of the list, or what is wrong and where."""
    return _structured(body, MessagePage)


def _structured(body: bytes, cls: Callable[..., _T]) -> _T | str:
    """The text names types and places, never values.

    It is returned, not raised, because a traceback would hold the body in its frames.
    """
    try:
        value = _json.loads(body)
    except ValueError:
        return "not readable as JSON @ $"
    try:
        return _hook(cls)(value, cls)  # type: ignore[no-any-return]  # the hook makes a `cls`
    except (TypeError, cattrs.BaseValidationError) as error:  # one hook's own, or a group of them
        return "; ".join(
            cattrs.transform_error(error, format_exception=lambda found, _: str(found))
        )


def structure_error(http_status: int, body: bytes, *, scrub: Callable[[str], str]) -> ApiError:
    """The error in an answer of any form; never fails.

    ``scrub`` cuts credentials out of a text, in case the server has repeated one.
    """
    try:
        said = _json.loads(body)
    except (ValueError, RecursionError):
        said = {}
    default = ServerError if http_status >= 500 else ApiError
    cls = _ERROR_CLASSES.get(http_status, default)
    error: ApiError = _converter().structure(error_fields(said, scrub), cls)
    error.http_status = http_status
    error.body = _beginning(body.decode("utf-8", "replace"), scrub)
    return error


def _beginning(text: str, scrub: Callable[[str], str]) -> str:
    """The part of a body that an error keeps."""
    searched = scrub(text[: _BODY_KEPT + _MARGIN])
    if len(text) > _BODY_KEPT + _MARGIN:
        searched = searched[:-_MARGIN]  # half a credential at the end could not be found
    return searched[:_BODY_KEPT]


# Back to plain data


def _register_unstructuring(converter: cattrs.Converter) -> None:
    converter.register_unstructure_hook(datetime.datetime, _rfc3339)
    converter.register_unstructure_hook(
        ConversationMessage, lambda value: _message_fields(converter, value)
    )
    for model in (ChannelIdentity, MetadataUpdate):
        converter.register_unstructure_hook(model, lambda value: _named_fields(converter, value))
    for outcome in (Updated, NotUpdated, Unchanged):
        converter.register_unstructure_hook(
            outcome, lambda value: {"ok": value.ok, **_named_fields(converter, value)}
        )
    converter.register_unstructure_hook(ErrorDetail, _unstructure_detail)
    converter.register_unstructure_hook_func(
        lambda cls: isinstance(cls, type) and issubclass(cls, SinchError), _unstructure_error
    )


def _rfc3339(moment: datetime.datetime) -> str:
    text = moment.isoformat()
    return f"{text.removesuffix('+00:00')}Z" if text.endswith("+00:00") else text


def _message_fields(converter: cattrs.Converter, message: ConversationMessage) -> dict[str, Any]:
    """The message's fields, with ``accept_time`` as the text that the answer had."""
    fields = _named_fields(converter, message)
    text = getattr(message, "accept_time_text", None)
    if text is not None:
        fields["accept_time"] = text
    return fields


def _named_fields(converter: cattrs.Converter, value: Any) -> dict[str, Any]:
    """The fields that are not None, under the wire's names, and beside them those in ``extra``."""
    fields = {
        name: getattr(value, name) for name in (field.name for field in attrs.fields(type(value)))
    }
    extra = copy.deepcopy(fields.pop(_EXTRA, {}))  # the model keeps its own
    named = {name: _plain(converter, field) for name, field in fields.items() if field is not None}
    return {**extra, **named}


def _plain(converter: cattrs.Converter, value: Any) -> Any:
    # An enum member is a str already, but its repr is not: logs and templates print that.
    return value.value if isinstance(value, StrEnum) else converter.unstructure(value)


def _unstructure_detail(detail: ErrorDetail) -> dict[str, Any]:
    # type_url may have been read from "@type" or "type", which are in extra as they came.
    implied = _type_name(detail.extra)
    named = {
        "type_url": None if detail.type_url == implied else detail.type_url,
        "value": detail.value,
    }
    return {
        **{name: text for name, text in named.items() if text is not None},
        **copy.deepcopy(detail.extra),
    }


def _unstructure_error(error: SinchError) -> dict[str, Any]:
    extra = copy.deepcopy(error.extra) if isinstance(error, ApiError | TokenError) else {}
    if not isinstance(error, ApiError):
        return {**extra, "status": type(error).__name__, "message": error.summary()}
    named = {
        "code": error.code,
        "message": error.message,
        "status": error.status,
        "details": [_unstructure_detail(detail) for detail in error.details],
    }
    # A field of the wrong type has stayed in extra, and its attribute is empty. A second field of a
    # name has stayed there, too.
    found = {name: value for name, value in named.items() if value}
    twice = {name: extra[name] for name in found if name in extra}
    return {**named, **extra, **found, **({_EXTRA: twice} if twice else {})}


def to_dict(
    model: ConversationMessage
    | ChannelIdentity
    | ErrorDetail
    | MetadataUpdate
    | UpdateOutcome
    | SinchError,
) -> dict[str, Any]:
    """Plain JSON-ready data of a model or an error, with the wire's names.

    Fields that are ``None`` are left out. The fields of ``extra`` are beside the named ones.
    ``accept_time`` is the text of the answer; for a message that was not read from an answer, it is
    RFC 3339 text. An :class:`ApiError` always gives its ``code``, ``message``, ``status`` and
    ``details``; any other error gives its class as ``status`` and its ``message``.
    """
    return _converter().unstructure(model)  # type: ignore[no-any-return]  # the hooks above all give dicts
