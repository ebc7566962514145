"""The control API under ``/_sandbox/``, for tests in other processes and other languages.

Resources: the sandbox itself, ``requests``, ``token_requests``, ``messages``, ``faults``. Requests
and responses are JSON. It is no part of the API that the sandbox stands in for: what it answers is
not recorded, limited or scripted.

Changes need ``Content-Type: application/json``, so that no web page in a browser of this machine
can make them. An error is ``{"error": "<a sentence>"}`` with status 400, 404, 405 or 415.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qs, unquote

import attrs

from .messages import SandboxMessage, attributes_of
from .responses import JSON, Response, json_response, media_type

if TYPE_CHECKING:
    from .server import Sandbox

__all__ = ["CONTROL_PATH", "control"]

CONTROL_PATH: Final = "/_sandbox/"


class _RefusedError(Exception):
    def __init__(self, status: int, text: str, *headers: tuple[str, str]) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


def control(
    sandbox: Sandbox, method: str, path: str, query: str, content_type: str | None, body: bytes
) -> Response:
    """Do what a request to the control API asks. `path` comes without :data:`CONTROL_PATH`."""
    name, _, rest = path.partition("/")
    try:
        methods = _RESOURCES.get((name, bool(rest)))
        if methods is None:
            raise _RefusedError(404, "There is nothing at this path.")
        if method not in methods:
            words = ", ".join(methods)
            raise _RefusedError(405, f"Served here: {words}.", ("Allow", words))
        fields: Any = None
        if method in ("POST", "PUT", "PATCH"):
            fields = _read(content_type, body)
        return json_response(methods[method](sandbox, _Asked(unquote(rest), query, fields)))
    except _RefusedError as error:
        return _refusal(error.status, str(error), error.headers)
    except (ValueError, KeyError) as error:
        return _refusal(400, str(error.args[0]))


def _refusal(status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(status, json.dumps({"error": text}).encode(), headers=headers)


def _read(content_type: str | None, body: bytes) -> Any:
    if media_type(content_type) != JSON:
        raise _RefusedError(415, "Content-Type must be application/json.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _RefusedError(400, "The body is not JSON.") from None


@attrs.frozen
class _Asked:
    """What follows the resource's name, the query, and the body as JSON."""

    rest: str
    query: str
    fields: Any


# The sandbox itself.


def _describe(sandbox: Sandbox, _: _Asked) -> Any:
    return {
        "latency": sandbox.latency,
        "messages": len(sandbox.messages),
        "updates_applied": sandbox.updates_applied,
        "in_flight": sandbox.in_flight,
        "open_connections": sandbox.open_connections,
        "pending_faults": sandbox.pending_faults,
    }


def _change(sandbox: Sandbox, asked: _Asked) -> Any:
    latency = _arguments("the sandbox", asked.fields, {"latency": _NUMBER}, required=()).get(
        "latency"
    )
    if latency is not None:
        sandbox.latency = latency
    return _describe(sandbox, asked)


# What arrived.


def _requests(sandbox: Sandbox, asked: _Asked) -> Any:
    after = _after(asked.query)
    return {
        "requests": [
            {
                "number": each.number,
                "time": each.time,
                "method": each.method,
                "path": each.path,
                "query": each.query,
                "project_id": each.project_id,
                "message_id": each.message_id,
                "metadata": each.metadata,
                "headers": each.headers,
                "status": each.status,
                "applied": each.applied,
            }
            for each in sandbox.requests
            if each.number > after
        ]
    }


def _token_requests(sandbox: Sandbox, asked: _Asked) -> Any:
    after = _after(asked.query)
    return {
        "token_requests": [
            attrs.asdict(each) for each in sandbox.token_requests if each.number > after
        ]
    }


def _after(query: str) -> int:
    text = parse_qs(query).get("after", ["0"])[0]
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ValueError("after must be the number of a request")
    return int(text)


def _forget_requests(sandbox: Sandbox, _: _Asked) -> Any:
    sandbox.requests.clear()
    return {}


def _forget_token_requests(sandbox: Sandbox, _: _Asked) -> Any:
    sandbox.token_requests.clear()
    return {}


# Messages.


def _shown(message: SandboxMessage) -> dict[str, Any]:
    return attrs.asdict(message) | {"omit": list(message.omit)}


def _messages(sandbox: Sandbox, _: _Asked) -> Any:
    return {"messages": [_shown(each) for each in list(sandbox.messages.values())]}


def _message(sandbox: Sandbox, asked: _Asked) -> Any:
    message = sandbox.messages.get(asked.rest)
    if message is None:
        raise _RefusedError(404, "There is no such message.")
    return _shown(message)


def _add_messages(sandbox: Sandbox, asked: _Asked) -> Any:
    """Add one message or a list of them: all, or none if one is not valid."""
    given = asked.fields if isinstance(asked.fields, list) else [asked.fields]
    return {"added": sandbox.add_messages([attributes_of(each) for each in given])}


def _forget_messages(sandbox: Sandbox, _: _Asked) -> Any:
    sandbox.messages.clear()
    return {}


def _forget_message(sandbox: Sandbox, asked: _Asked) -> Any:
    if sandbox.messages.pop(asked.rest, None) is None:
        raise _RefusedError(404, "There is no such message.")
    return {}


# Faults.

_Check = tuple[str, Callable[[Any], bool]]

_TEXT: Final[_Check] = ("text", lambda value: isinstance(value, str))
_FLAG: Final[_Check] = ("true or false", lambda value: isinstance(value, bool))
_WHOLE: Final[_Check] = ("a whole number", lambda value: type(value) is int)
_NUMBER: Final[_Check] = ("a number", lambda value: type(value) in (int, float))
_NUMBER_OR_TEXT: Final[_Check] = (
    "a number or text",
    lambda value: type(value) in (int, float, str),
)
_OBJECT: Final[_Check] = ("an object", lambda value: isinstance(value, dict))
_TEXTS: Final[_Check] = (
    "an object of texts",
    lambda value: isinstance(value, dict) and all(isinstance(each, str) for each in value.values()),
)

_HITS: Final = {"times": _WHOLE, "message_id": _TEXT, "method": _TEXT}
# A method of the sandbox, and its arguments. The text of `raw` is sent as UTF-8. A * marks what
# must be given.
_FAULTS: Final[Mapping[str, Mapping[str, _Check]]] = {
    "fail_next": {
        "*status": _WHOLE,
        "retry_after": _NUMBER_OR_TEXT,
        "body": _TEXT,
        "content_type": _TEXT,
        "headers": _TEXTS,
        "applied": _FLAG,
        **_HITS,
    },
    "redirect_next": {"*status": _WHOLE, "*location": _TEXT, "applied": _FLAG, **_HITS},
    "drop_next": {"when": _TEXT, "reset": _FLAG, "applied": _FLAG, **_HITS},
    "delay_next": {"*seconds": _NUMBER, "applied": _FLAG, **_HITS},
    "trickle_next": {"*seconds_per_byte": _NUMBER, **_HITS},
    "answer_next": {"*raw": _TEXT, "close": _FLAG, "applied": _FLAG, **_HITS},
    "swap_next": {"applied": _FLAG, **_HITS},
    "unsolicited_next": {"raw": _TEXT, "status": _WHOLE, "after": _NUMBER, **_HITS},
    "fail_next_token": {
        "*status": _WHOLE,
        "times": _WHOLE,
        "error": _TEXT,
        "retry_after": _NUMBER_OR_TEXT,
        "body": _TEXT,
        "content_type": _TEXT,
    },
    "redirect_next_token": {"*status": _WHOLE, "*location": _TEXT, "times": _WHOLE},
    "drop_next_token": {"times": _WHOLE},
    "delay_next_token": {"*seconds": _NUMBER, "times": _WHOLE},
    "answer_next_token": {"*fields": _OBJECT, "times": _WHOLE},
    "expire_tokens": {},
    "revoke_tokens": {},
    "refuse_tokens": {"form": _TEXT},
    "close_idle": {},
    "hold": {},
    "release": {},
    "hold_tokens": {},
    "release_tokens": {},
}
_AGAIN: Final = {"every": _WHOLE, "share": _NUMBER, "seed": _WHOLE}


def _pending(sandbox: Sandbox, _: _Asked) -> Any:
    return {"pending": sandbox.pending_faults}


def _add_fault(sandbox: Sandbox, asked: _Asked) -> Any:
    """Let a fault happen: now, with every so many requests, or at random."""
    fields: Any = asked.fields
    name = fields.get("fault") if isinstance(fields, dict) else None
    if not isinstance(name, str) or name not in _FAULTS:
        raise ValueError(f"fault must be one of {', '.join(_FAULTS)}")
    given = {key: value for key, value in fields.items() if key != "fault"}
    required = [key[1:] for key in _FAULTS[name] if key.startswith("*")]
    known = {key.removeprefix("*"): check for key, check in _FAULTS[name].items()}
    arguments = _arguments(name, given, known | _AGAIN, required=required)
    again = {key: arguments.pop(key) for key in _AGAIN if key in arguments}
    if "raw" in arguments:
        arguments["raw"] = arguments["raw"].encode()
    fault = functools.partial(getattr(sandbox, name), **arguments)
    if not again:
        fault()
        return _pending(sandbox, asked)
    if ("every" in again) == ("share" in again):
        raise ValueError("a fault comes again with every so many requests or with a share of them")
    getattr(type(sandbox)(), name)(
        **arguments
    )  # on another sandbox: what is not valid is refused now
    if "every" in again:
        sandbox.every(again["every"], fault)
    else:
        sandbox.at_random(again["share"], fault, seed=again.get("seed", 0))
    return _pending(sandbox, asked)


def _forget_faults(sandbox: Sandbox, asked: _Asked) -> Any:
    sandbox.clear_faults()
    return _pending(sandbox, asked)


def _arguments(
    what: str, fields: object, known: Mapping[str, _Check], *, required: object
) -> dict[str, Any]:
    """The fields of a JSON object: all known, all of their type. Raises ValueError otherwise."""
    if not isinstance(fields, dict):
        raise _RefusedError(400, "the body must be a JSON object")
    given = cast("dict[str, Any]", fields)
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{what} knows no {name!r}, only {', '.join(known)}")
        words, fits = known[name]
        if not fits(value):
            raise ValueError(f"{name} must be {words}")
    for name in cast("list[str]", required):
        if name not in given:
            raise ValueError(f"{what} needs {name}")
    return given


_Handler = Callable[["Sandbox", _Asked], Any]

# By the resource's name, and whether something follows it.
_RESOURCES: Final[Mapping[tuple[str, bool], Mapping[str, _Handler]]] = {
    ("", False): {"GET": _describe, "PATCH": _change},
    ("requests", False): {"GET": _requests, "DELETE": _forget_requests},
    ("token_requests", False): {"GET": _token_requests, "DELETE": _forget_token_requests},
    ("messages", False): {"GET": _messages, "POST": _add_messages, "DELETE": _forget_messages},
    ("messages", True): {"GET": _message, "DELETE": _forget_message},
    ("faults", False): {"GET": _pending, "POST": _add_fault, "DELETE": _forget_faults},
}
