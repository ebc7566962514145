"""What a test says about the requests to come: scripts, recurring and random faults, held answers.

A script waits in the queue of the requests that it is for: all, those for one message, those of one
method, or both. A request takes the oldest script at the head of its queues, and takes one at most.

Nothing here knows a connection or a message: `server.py` carries a script out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import attrs

from .responses import ErrorBody, Response, oauth_error, retry_after_header, scripted
from .thread import OwnThread, on_its_loop
from .tokens import check_word

__all__ = ["DropPoint", "Faults", "Gate", "Script", "TokenScript", "Unsolicited", "check_seconds"]

DropPoint = Literal["before_answer", "mid_headers", "mid_body", "after_answer"]
"""How far an answer gets before the connection is closed."""


@attrs.frozen
class Unsolicited:
    """A second response that nobody asked for: these bytes, or one of this status."""

    raw: bytes | None
    status: int
    after: float


@attrs.define(eq=False)
class Script:
    """What happens to the next requests.

    Without `response`, `raw`, `drop` or `swap` they are served as usual.
    """

    remaining: int
    message_id: str | None = None
    method: str | None = None
    applied: bool = False
    order: int = 0
    response: Response | None = None
    raw: bytes | None = None
    close: bool = False
    drop: DropPoint | None = None
    reset: bool = False
    swap: bool = False
    delay: float = 0.0
    seconds_per_byte: float | None = None
    unsolicited: Unsolicited | None = None

    @property
    def replaces(self) -> bool:
        """Whether the response is scripted, so that credentials and pace do not matter."""
        return (
            self.response is not None
            or self.raw is not None
            or self.swap
            or self.drop not in (None, "after_answer")
        )


@attrs.define(eq=False, kw_only=True)
class TokenScript:
    """What happens to the next token requests. With `response` or `drop` none is served."""

    remaining: int
    response: Response | None = None
    fields: Mapping[str, Any] | None = None
    drop: bool = False
    delay: float = 0.0

    @property
    def replaces(self) -> bool:
        """Whether the request costs the endpoint's token bucket nothing."""
        return self.response is not None or self.drop


class Gate:
    """Holds back those who come while it is shut, and lets them go in the order of arrival."""

    def __init__(self) -> None:
        self.is_shut = False
        self._held: dict[asyncio.Future[None], None] = {}

    def shut(self) -> None:
        """Hold those who come from now on."""
        self.is_shut = True

    def open(self) -> None:
        """Let those go who are held, and hold nobody."""
        self.is_shut = False
        held, self._held = self._held, {}
        for future in held:
            # One whose loop has ended is beyond help.
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(None)

    async def passed(self) -> None:
        """Return when it is opened."""
        future = asyncio.get_running_loop().create_future()
        self._held[future] = None
        try:
            await future
        finally:
            self._held.pop(future, None)


class Faults(OwnThread):
    """The part of the sandbox that a test scripts.

    In all scripts ``times`` is the number of requests that they hit, ``message_id`` and ``method``
    restrict them to requests for that message or of that method, and ``applied`` changes the
    message whatever the answer looks like.
    """

    def __init__(self) -> None:
        self._orders = itertools.count()
        self._recurring: list[tuple[Callable[[int], bool], Callable[[], None]]] = []
        self._scripts: dict[tuple[str | None, str | None], deque[Script]] = {}
        self._token_scripts: deque[TokenScript] = deque()
        self._gate = Gate()
        self._token_gate = Gate()

    @property
    def pending_faults(self) -> int:
        """How many requests the scripts will still hit, the token endpoint's included."""
        # Copies, made at one stroke: another thread may ask while scripts come and go.
        scripts = [script for queue in list(self._scripts.values()) for script in list(queue)]
        tokens = list(self._token_scripts)
        return sum(each.remaining for each in scripts) + sum(each.remaining for each in tokens)

    @on_its_loop
    def clear_faults(self) -> None:
        """Forget all scripts and recurring faults, the token endpoint's included."""
        self._recurring.clear()
        self._scripts.clear()
        self._token_scripts.clear()

    # Holding answers back.

    @on_its_loop
    def hold(self) -> None:
        """Let API requests arrive, and answer none of them until :meth:`release`."""
        self._gate.shut()

    @on_its_loop
    def release(self) -> None:
        """Answer what was held, in the order of arrival, and hold nothing more."""
        self._gate.open()

    @contextlib.asynccontextmanager
    async def holding(self) -> AsyncGenerator[None, None]:
        """:meth:`hold` on entry, :meth:`release` on exit."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    @on_its_loop
    def hold_tokens(self) -> None:
        """Let token requests arrive, and answer none of them until :meth:`release_tokens`."""
        self._token_gate.shut()

    @on_its_loop
    def release_tokens(self) -> None:
        """Answer the token requests that were held, and hold nothing more."""
        self._token_gate.open()

    # Scripts for the API.

    def fail_next(
        self,
        status: int,
        *,
        times: int = 1,
        retry_after: float | str | None = None,
        body: ErrorBody | bytes = "envelope",
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        method: str | None = None,
        applied: bool = False,
    ) -> None:
        """Answer the next requests with this status, whatever they ask.

        As in every script: it hits ``times`` requests. With ``message_id`` these are requests for
        that message, with ``method`` (``"GET"`` or ``"PATCH"``) requests of that method. Raises
        ValueError if ``times`` is less than 1, the status is not that of a final answer, or
        ``body`` names no shape.

        :param retry_after: the header's seconds, or its text as it is to be sent (an HTTP date,
            garbage).
        :param body: one of the shapes of :data:`ErrorBody`, or the bytes to send.
        :param content_type: instead of the shape's own; bytes are ``application/json`` otherwise.
        :param headers: more headers.
        :param applied: change the message all the same, as a gateway's error after the fact does.
        """
        more = () if headers is None else tuple(headers.items())
        response = scripted(status, body, content_type, more + retry_after_header(retry_after))
        self._script(Script(times, message_id, method, applied, response=response))

    def redirect_next(
        self,
        status: int,
        location: str,
        *,
        times: int = 1,
        message_id: str | None = None,
        method: str | None = None,
        applied: bool = False,
    ) -> None:
        """Answer the next requests with a redirect to ``location``, which is sent as it is."""
        response = scripted(status, "empty", None, (("Location", location),))
        self._script(Script(times, message_id, method, applied, response=response))

    def drop_next(
        self,
        *,
        times: int = 1,
        when: DropPoint = "before_answer",
        reset: bool = False,
        message_id: str | None = None,
        method: str | None = None,
        applied: bool = False,
    ) -> None:
        """Close the connection of the next requests.

        :param when: before a byte of the answer, halfway through its headers or its body (which
            promise a 200 for a valid request), or ``after_answer``: served as usual, with the
            headers of a connection that is kept alive.
        :param reset: with a TCP reset instead of an orderly close.
        :param applied: change the message all the same; ``after_answer`` does what the answer says.
        """
        check_word("when", when, get_args(DropPoint))
        self._script(Script(times, message_id, method, applied, drop=when, reset=reset))

    def delay_next(
        self,
        seconds: float,
        *,
        times: int = 1,
        message_id: str | None = None,
        method: str | None = None,
        applied: bool = False,
    ) -> None:
        """Serve the next requests as usual, but only after so many seconds.

        :param applied: change the message before the wait rather than after it.
        """
        check_seconds("seconds", seconds)
        self._script(Script(times, message_id, method, applied, delay=seconds))

    def trickle_next(
        self,
        seconds_per_byte: float,
        *,
        times: int = 1,
        message_id: str | None = None,
        method: str | None = None,
    ) -> None:
        """Serve the next requests as usual, but send the body byte by byte with this pause."""
        check_seconds("seconds_per_byte", seconds_per_byte)
        self._script(Script(times, message_id, method, seconds_per_byte=seconds_per_byte))

    def answer_next(
        self,
        raw: bytes,
        *,
        times: int = 1,
        close: bool = False,
        message_id: str | None = None,
        method: str | None = None,
        applied: bool = False,
    ) -> None:
        """Answer the next requests with exactly these bytes, status line and all.

        :param close: close the connection after them.
        """
        self._script(Script(times, message_id, method, applied, raw=raw, close=close))

    def swap_next(
        self,
        *,
        times: int = 1,
        message_id: str | None = None,
        method: str | None = None,
        applied: bool = False,
    ) -> None:
        """Answer the next requests with a 200 that belongs to another message."""
        self._script(Script(times, message_id, method, applied, swap=True))

    def unsolicited_next(
        self,
        raw: bytes | None = None,
        *,
        status: int = 200,
        times: int = 1,
        after: float = 0.01,
        message_id: str | None = None,
        method: str | None = None,
    ) -> None:
        """Serve the next requests as usual, then write a complete answer that nobody asked for.

        :param raw: the second answer's bytes; without them it has this ``status``, and for 200 it
            is one more answer for the same message.
        :param after: seconds between the two, so that the connection is idle by then; with 0 they
            leave together. :meth:`Sandbox.wait_for_unsolicited` tells when the second has been
            written. (If the connection is closed by then, it is lost.)
        """
        check_seconds("after", after)
        scripted(status, "empty")  # refuses a status that is not possible
        second = Unsolicited(raw, status, after)
        self._script(Script(times, message_id, method, unsolicited=second))

    # Faults that come again.

    @on_its_loop
    def every(self, number: int, fault: Callable[[], None]) -> None:
        """Call ``fault`` with every so many requests to the API.

        It is called before anything else is done with that request:
        ``sandbox.every(100, lambda: sandbox.fail_next(503))`` answers every hundredth request with
        503, ``sandbox.every(1000, sandbox.expire_tokens)`` lets a token serve for 999.
        """
        if number < 1:
            raise ValueError("number must be 1 or more")
        self._recurring.append((lambda arrived: arrived % number == 0, fault))

    @on_its_loop
    def at_random(self, share: float, fault: Callable[[], None], *, seed: int = 0) -> None:
        """Call ``fault`` with this share of the requests to the API, chosen at random.

        It is called before anything else is done with such a request:
        ``sandbox.at_random(0.01, lambda: sandbox.fail_next(429))`` answers 1 % of the requests with
        429, whatever the pace. The same ``seed`` chooses the same requests, by the order of their
        arrival. Raises ValueError unless ``share`` is between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, not {share}")
        chance = random.Random(seed)  # noqa: S311  # which requests fail is no secret
        self._recurring.append((lambda _: chance.random() < share, fault))

    # Scripts for the token endpoint.

    def fail_next_token(
        self,
        status: int,
        *,
        times: int = 1,
        error: str | None = None,
        retry_after: float | str | None = None,
        body: str | bytes | None = None,
        content_type: str | None = None,
    ) -> None:
        """Answer the next token requests with this status.

        :param error: an OAuth error code (RFC 6749, section 5.2), such as ``invalid_client``, in a
            JSON body.
        :param retry_after: the header's seconds, or its text as it is to be sent.
        :param body: the body to send instead; without it and ``error`` there is none.
        """
        content: ErrorBody | bytes = "empty" if error is None else oauth_error(error)
        if body is not None:
            content = body.encode() if isinstance(body, str) else body
        response = scripted(status, content, content_type, retry_after_header(retry_after))
        self._token_script(TokenScript(remaining=times, response=response))

    def drop_next_token(self, *, times: int = 1) -> None:
        """Close the connection of the next token requests before a byte of the answer."""
        self._token_script(TokenScript(remaining=times, drop=True))

    def delay_next_token(self, seconds: float, *, times: int = 1) -> None:
        """Serve the next token requests as usual, but only after so many seconds."""
        check_seconds("seconds", seconds)
        self._token_script(TokenScript(remaining=times, delay=seconds))

    def answer_next_token(self, fields: Mapping[str, Any], *, times: int = 1) -> None:
        """Answer the next good token requests with 200 and just these fields.

        An ``access_token`` among them that is text is accepted afterwards, for ``token_lifetime``,
        whatever ``expires_in`` says. Floats that JSON does not have are sent as Python writes them
        (``NaN``).
        """
        self._token_script(TokenScript(remaining=times, fields=dict(fields)))

    def redirect_next_token(self, status: int, location: str, *, times: int = 1) -> None:
        """Answer the next token requests with a redirect to ``location``, sent as it is."""
        response = scripted(status, "empty", None, (("Location", location),))
        self._token_script(TokenScript(remaining=times, response=response))

    # What follows serves requests.

    @on_its_loop
    def _script(self, script: Script) -> None:
        _check_times(script.remaining)
        script.order = next(self._orders)
        self._scripts.setdefault((script.message_id, script.method), deque()).append(script)

    @on_its_loop
    def _token_script(self, script: TokenScript) -> None:
        _check_times(script.remaining)
        self._token_scripts.append(script)

    def _recur(self, number: int) -> None:
        """Let the faults happen that are due with the n-th request."""
        for is_due, fault in tuple(self._recurring):
            if is_due(number):
                fault()

    def _take_script(self, message_id: str | None, method: str) -> Script | None:
        """The oldest script that fits, found without a look at those for other requests."""
        if not self._scripts:
            return None
        # A set: for a request without a message id two of the four are one.
        keys = {(None, None), (message_id, None), (None, method), (message_id, method)}
        fitting = [key for key in keys if key in self._scripts]
        if not fitting:
            return None
        key = min(fitting, key=lambda key: self._scripts[key][0].order)
        script = _take(self._scripts[key])
        if not self._scripts[key]:
            del self._scripts[key]
        return script

    def _take_token_script(self) -> TokenScript | None:
        return _take(self._token_scripts) if self._token_scripts else None


_AnyScript = TypeVar("_AnyScript", Script, TokenScript)


def _take(scripts: deque[_AnyScript]) -> _AnyScript:
    script = scripts[0]
    script.remaining -= 1
    if script.remaining == 0:
        scripts.popleft()
    return script


def _check_times(times: int) -> None:
    if times < 1:
        raise ValueError(f"times must be at least 1, not {times}")


def check_seconds(name: str, seconds: float) -> None:
    """Raise ValueError unless this is a finite number, 0 or more."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {seconds}")
