"""Error bodies: finds the fields of the documented error object in every known form of an error.

The documented form is ``{"error": {"code", "message", "status", "details"}}``. Other known forms:

- the same fields without ``error`` around them (the specification's own examples),
- RFC 9457 problem documents (``type``, ``title``, ``status``, ``detail``, ``errors``),
- ``{"error": "text"}``, and OAuth's ``error`` with ``error_description``,
- ``code`` and ``text``, or ``errorCode`` and ``message``, of other Sinch products,
- a bare text or a bare list.

So each of the four fields is searched under several names, first inside ``error`` and then beside
it. A field that is found is taken out. The remaining fields are ``extra``, so nothing is lost.

Credentials are cut out after that, and only from values and from unknown names: a secret with the
text ``"message"`` must not hide the error's own fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["error_fields", "token_error_fields"]

Scrub = Callable[[str], str]

_T = TypeVar("_T")

DETAILS_KEPT: Final = 100
"""The most details of an error. A body of a mebibyte may hold half a million details, which would
take a hundred times as much memory as objects.
"""

_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")

_LARGEST: Final = 2.0**53  # beyond it a float is not exact

_KNOWN_NAMES: Final = frozenset(
    [
        "@type",
        "code",
        "description",
        "detail",
        "details",
        "error",
        "errorCode",
        "error_description",
        "error_hint",
        "error_verbose",
        "errors",
        "extra",
        "field",
        "field_violations",
        "instance",
        "message",
        "metadata",
        "pointer",
        "reason",
        "reference",
        "status",
        "text",
        "title",
        "traceId",
        "type",
        "type_url",
        "value",
    ]
)

# A successful answer of the token endpoint has these fields; an error must not show them.
_TOKENS: Final = ("access_token", "id_token", "refresh_token")


def error_fields(said: Any, scrub: Scrub) -> dict[str, Any]:
    """The fields of an ApiError, ready to be structured.

    ``code``, ``message``, ``status``, ``details`` and ``extra``.
    """
    layers = _layers(said)
    code = _take(layers, _whole_number, "code", "status", "errorCode")
    message = _take(
        layers, _text, "message", "detail", "text", "error_description", "error", "title"
    )
    status = _take(layers, _text, "status", "code")
    details = _take(layers, _list, "details", "errors", "error")
    fields = {
        "code": code,
        "message": message or "",
        "status": status,
        "details": (details or [])[:DETAILS_KEPT],
        "extra": _left(layers),
    }
    return scrubbed(fields, scrub)  # type: ignore[no-any-return]  # a dict gives a dict


def token_error_fields(said: dict[str, Any], scrub: Scrub) -> dict[str, Any]:
    """The fields of an error of the token endpoint, without credentials and without tokens."""
    return scrubbed({name: value for name, value in said.items() if name not in _TOKENS}, scrub)  # type: ignore[no-any-return]  # the same as above


def scrubbed(value: Any, scrub: Scrub) -> Any:
    """A JSON value without the credentials in its texts."""
    if type(value) is str:
        return scrub(value)
    if type(value) is dict:
        return {
            name if name in _KNOWN_NAMES else scrub(name): scrubbed(field, scrub)
            for name, field in value.items()
        }
    if type(value) is list:
        return [scrubbed(item, scrub) for item in value]
    return value


def _layers(said: Any) -> list[dict[str, Any]]:
    """Where the fields may be, the likeliest place first: inside ``error``, and beside it."""
    outer = dict(said) if type(said) is dict else {"error": said}
    inner = outer.get("error")
    if type(inner) is not dict:
        return [outer]
    del outer["error"]
    return [dict(inner), outer]


def _take(layers: list[dict[str, Any]], read: Callable[[Any], _T | None], *names: str) -> _T | None:
    """The first field of these names that ``read`` can read. It is taken out of its layer."""
    for layer in layers:
        for name in names:
            value = read(layer.get(name))
            if value is not None:
                del layer[name]
                return value
    return None


def _whole_number(value: Any) -> int | None:
    """A number, also if it is written as ``"400"`` or ``400.0``. JSON's true is not a number."""
    if type(value) is str and _NUMBER.fullmatch(value):
        return int(value)
    if type(value) is float and value.is_integer() and abs(value) < _LARGEST:
        return int(value)
    return value if type(value) is int else None


def _text(value: Any) -> str | None:
    return value if type(value) is str and value else None


def _list(value: Any) -> list[Any] | None:
    return value if type(value) is list and value else None


def _left(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """All fields that were not taken.

    If two have one name, the inner one is kept under ``error``.
    """
    for layer in layers:
        for name in ("code", "message", "status", "details", "error"):
            # An attribute that is None or empty says the same.
            if layer.get(name, 0) in (None, "", []):
                del layer[name]
    if len(layers) == 1:
        return layers[0]
    inner, outer = layers
    twice = {name: inner.pop(name) for name in outer if name in inner}
    if twice:
        # No field of outer has this name, because the inner fields were in the field of this name.
        inner["error"] = {**twice, "error": inner["error"]} if "error" in inner else twice
    return {**outer, **inner}
