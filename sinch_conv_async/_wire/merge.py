"""Changes a part of metadata that is a JSON object, by a JSON merge patch (RFC 7396).

Pure. This file checks the result, so a change that does not fit is refused before anything is sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidArgumentError
from ..models import ConversationMessage
from . import json as _json
from .arguments import MAX_METADATA, encodes

__all__ = ["merge_json"]


def merge_json(message: ConversationMessage, changes: Mapping[str, Any]) -> str:
    """The message's metadata with ``changes`` merged into it: compact JSON.

    The result has at most 1,024 characters.

    ``changes`` is a JSON merge patch: a key with a value is set, a key with ``None`` is removed, an
    object within an object is merged in the same way, and anything else is replaced as a whole.
    Missing or empty metadata counts as ``{}``. Keys that are not changed keep their order; new keys
    come last. Nothing is sent, and ``message`` stays as it is.

    Raises :class:`InvalidArgumentError` if the metadata is not a JSON object, if ``changes`` is not
    an object that JSON can hold, or if the result is longer than 1,024 characters.

    Source: RFC 7396, JSON Merge Patch.
    """
    if not isinstance(message, ConversationMessage):
        raise InvalidArgumentError(
            f"message must be a ConversationMessage, not {type(message).__name__}"
        )
    if not isinstance(changes, Mapping):
        raise InvalidArgumentError(f"changes must be a mapping, not {type(changes).__name__}")
    metadata = _object(message.metadata)
    if metadata is None:
        raise InvalidArgumentError("the message's metadata must be a JSON object to be merged into")
    text = _compact(metadata, changes)
    if text is None:
        raise InvalidArgumentError("changes must be an object that JSON can hold")
    if len(text) > MAX_METADATA:
        raise InvalidArgumentError(
            f"the merged metadata must be at most {MAX_METADATA:,} characters, not {len(text):,}"
        )
    return text


def _object(metadata: str | None) -> dict[str, Any] | None:
    """The metadata's JSON object; None if the metadata is not a JSON object."""
    if not metadata:
        return {}
    try:
        found = _json.loads(metadata.encode())
        json.dumps(found, allow_nan=False)  # the reader also accepts NaN, which is not JSON
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _compact(metadata: dict[str, Any], changes: Mapping[str, Any]) -> str | None:
    """The merged object as JSON, None if JSON cannot hold it."""
    try:
        merged = _merged(metadata, changes)
        text = json.dumps(merged, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        # A lone surrogate can be sent only as an escape.
        return text if encodes(text) else json.dumps(merged, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None


def _merged(target: Any, change: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(change, Mapping):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if not isinstance(name, str):
            raise TypeError("a name of an object is a text")
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result
