"""The errors are one tree, and none of them loses anything on the way through a copy, a pickle or
another process.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import traceback

import attrs
import pytest

from sinch_conv_async import errors
from sinch_conv_async.errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    CallTimeoutError,
    ClientStateError,
    ErrorDetail,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ResponseFormatError,
    ServerError,
    SinchError,
    TokenError,
    TransportError,
)

TREE = {
    SinchError: (Exception,),
    InvalidArgumentError: (SinchError, ValueError),
    ClientStateError: (SinchError, RuntimeError),
    TransportError: (SinchError,),
    CallTimeoutError: (TransportError, TimeoutError),
    TokenError: (SinchError,),
    ResponseFormatError: (SinchError,),
    ApiError: (SinchError,),
    BadRequestError: (ApiError,),
    AuthenticationError: (ApiError,),
    PermissionDeniedError: (ApiError,),
    NotFoundError: (ApiError,),
    RateLimitedError: (ApiError,),
    ServerError: (ApiError,),
}
# One value for every field that any of them has; `last` is compared by what is in it.
VALUES = {
    "message": "what went wrong",
    "attempts": 3,
    "sent": "no",
    "last": ServerError("before", 2, 503, "UNAVAILABLE", http_status=503),
    "error": "invalid_client",
    "http_status": 404,
    "code": 5,
    "status": "NOT_FOUND",
    "details": (ErrorDetail("type.example/Thing", "value", {"owner": ["nobody"]}),),
    "retry_after": 1.5,
    "request_id": "request-1",
    "body": "<html>",
    "extra": {"traceId": "trace-1", "errors": [{"pointer": "/x"}]},
}
AGAIN = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda error, protocol=protocol: pickle.loads(
            pickle.dumps(error, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


def names(cls):
    return [field.name for field in attrs.fields(cls)]


def made(cls):
    return cls(*(VALUES[name] for name in names(cls)))


def state(error):
    """Everything that an error holds, in a form that compares by value."""
    fields = {name: getattr(error, name) for name in names(type(error))}
    return type(error), {
        name: state(value) if isinstance(value, SinchError) else value
        for name, value in fields.items()
    }


def test_the_module_defines_the_tree_and_nothing_beside_it():
    classes = {
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if cls.__module__ == errors.__name__
    }
    assert classes == {*TREE, ErrorDetail}
    assert sorted(errors.__all__) == errors.__all__ == sorted(cls.__name__ for cls in classes)
    assert {cls: cls.__bases__ for cls in TREE} == TREE


def test_an_error_can_be_made_of_nothing():
    for cls in TREE:
        error = cls()
        assert (error.message, error.attempts) == ("", 0)


def test_every_field_has_a_place_and_is_read_back():
    for cls in TREE:
        error = made(cls)
        assert state(error) == (
            cls,
            {
                name: state(VALUES["last"]) if name == "last" else VALUES[name]
                for name in names(cls)
            },
        )


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
def test_an_error_keeps_what_it_was_made_with(again):
    for cls in TREE:
        error = made(cls)
        twin = again(error)
        assert twin is not error
        assert state(twin) == state(error)
        assert (str(twin), repr(twin)) == (str(error), repr(error))


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
def test_an_error_keeps_what_was_set_later(again):
    for cls in TREE:
        error = cls()
        for name in names(cls):
            setattr(error, name, VALUES[name])
        error.add_note("seen in passing")
        twin = again(error)
        assert state(twin) == state(error) == state(made(cls))
        assert twin.__notes__ == ["seen in passing"]


@pytest.mark.parametrize("count", range(5))
def test_a_timeout_keeps_its_fields_however_many_were_given(count):
    """OSError, which TimeoutError is, reads two to five arguments as an errno and file names."""
    given = [VALUES[name] for name in names(CallTimeoutError)[:count]]
    error = CallTimeoutError(*given)
    twin = pickle.loads(pickle.dumps(error))
    assert state(twin) == state(error)
    assert str(twin) == str(error)
    assert str(error).startswith(given[0] if given else "")
    assert error.errno is error.filename is None


def test_errors_compare_by_identity():
    for cls in TREE:
        error = made(cls)
        assert error == error  # that is the fact
        assert error != made(cls)
        assert len({error, error, made(cls)}) == 2


def test_an_error_can_be_raised_and_caught_as_each_of_its_parents():
    for cls in TREE:
        for parent in inspect.getmro(cls)[:-1]:
            with pytest.raises(parent):
                raise made(cls)


@pytest.mark.parametrize("cls", [cls for cls in TREE if not issubclass(cls, ApiError)])
def test_the_text_of_an_error_is_its_message(cls):
    assert str(cls("what went wrong")) == str(cls("what went wrong", 1)) == "what went wrong"


def test_the_text_of_an_error_says_how_often_its_call_was_tried():
    for cls in TREE:
        assert str(cls("what went wrong", 3)).endswith("what went wrong (after 3 attempts)")


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
def test_the_text_of_an_error_says_why_its_call_was_given_up(again):
    for cls in TREE:
        error = cls("what went wrong", 2)
        assert error.given_up is None
        error.give_up("the project's retry budget is used up")
        twin = again(error)
        assert twin.given_up == error.given_up == "the project's retry budget is used up"
        assert str(twin).endswith(
            "what went wrong (after 2 attempts); not tried again: the project's retry budget is used up"
        )
        assert cls("another").given_up is None


def test_the_text_of_a_timeout_ends_with_the_last_failure():
    server = ServerError("overloaded", 2, http_status=503, request_id="r-1")
    error = CallTimeoutError("timeout of 5 s passed", 2, "maybe", server)
    assert (
        str(error)
        == "timeout of 5 s passed (after 2 attempts); last failure: 503: overloaded (request id r-1)"
    )
    unresolved = TokenError("the host name auth.sinch.com could not be resolved")
    error = CallTimeoutError("timeout of 5 s passed", 0, "no", unresolved)
    assert str(error).endswith("; last failure: the host name auth.sinch.com could not be resolved")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"http_status": 500}, "500"),
        ({"http_status": 404, "status": "NOT_FOUND"}, "404 NOT_FOUND"),
        ({"http_status": 401, "message": "token expired"}, "401: token expired"),
        (
            {
                "http_status": 400,
                "status": "INVALID_ARGUMENT",
                "message": "too long",
                "request_id": "r-1",
            },
            "400 INVALID_ARGUMENT: too long (request id r-1)",
        ),
    ],
)
def test_the_text_of_an_api_error_has_what_the_server_gave(fields, text):
    assert str(ApiError(**fields)) == text


def test_the_text_of_an_api_error_is_short_whatever_the_server_says():
    error = ApiError("x" * 1_000_000, status="y" * 501, http_status=500)
    assert str(error) == f"500 {'y' * 500}...: {'x' * 500}..."
    assert len(error.message) == 1_000_000
    assert str(ApiError("x" * 500, http_status=500)) == f"500: {'x' * 500}"


@pytest.mark.parametrize(
    ("status", "refused"),
    [
        (None, False),
        (200, False),
        (302, False),
        (400, True),
        (401, True),
        (403, True),
        (408, False),
        (429, False),
        (503, False),
    ],
)
def test_a_key_is_refused_by_a_4xx_that_would_come_again(status, refused):
    assert TokenError("no", http_status=status).refused is refused


def test_the_repr_of_an_error_is_short_whatever_the_server_says():
    for cls in TREE:
        assert len(repr(cls("x" * 1_000_000))) < 1_000


def test_the_repr_of_a_detail_is_short_whatever_the_server_says():
    detail = ErrorDetail("t" * 1_000_000, "v" * 1_000_000)
    error = ApiError("m", status="s" * 1_000_000, details=(detail,), http_status=400)
    assert len(repr(error)) < 3_000
    assert repr(ErrorDetail("t")) == "ErrorDetail(type_url='t', value=None)"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("half \ud800 a pair", "half \\ud800 a pair"),
        ("bücher \N{GRINNING FACE}", "bücher \N{GRINNING FACE}"),
    ],
)
def test_the_text_of_an_error_is_one_line_that_can_be_printed(said, shown):
    assert str(TransportError(said)) == shown
    error = ApiError(said, status=said, request_id=said, http_status=400)
    assert str(error) == f"400 {shown}: {shown} (request id {shown})"
    assert error.message == said
    str(error).encode()


@pytest.mark.parametrize("cls", [cls for cls in TREE if issubclass(cls, ApiError)])
def test_a_body_shows_nowhere_but_in_its_field(cls):
    error = cls("said")
    error.body = "<p>canary</p>"
    error.details = (ErrorDetail("type", "value", {"owner": "canary"}),)
    try:
        raise error
    except ApiError as caught:
        shown = "".join(traceback.format_exception(caught))
    assert "said" in shown
    assert "canary" not in f"{shown} {error} {error!r} {error.args!r}"
    assert "canary" in error.body
