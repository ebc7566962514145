"""The scripts of a test for coming requests: single, recurring and random faults, held answers.

A script waits in a queue: of all requests, of one message, of one method, or of both. A request
takes the oldest script at the heads of its queues, and only one.

This file knows no connection and no message: `serving.py` carries out a script.
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
"""The point of an answer at which the connection is closed."""


@attrs.frozen
class Unsolicited:
    """A second response without a request: these bytes, or a response of this status."""

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
        """Whether the response is scripted, so that credentials and rate limit do not matter."""
        return (
            self.response is not None
            or self.raw is not None
            or self.swap
            or self.drop not in (None, "after_answer")
        )


@attrs.define(eq=False, kw_only=True)
class TokenScript:
    """What happens to the next token requests. With `response` or `drop` they are not served."""

    remaining: int
    response: Response | None = None
    fields: Mapping[str, Any] | None = None
    drop: bool = False
    delay: float = 0.0

    @property
    def replaces(self) -> bool:
        """Whether the request takes nothing from the endpoint's token bucket."""
        return self.response is not None or self.drop


class Gate:
    """Holds requests while it is shut, and releases them in the order of arrival."""

    def __init__(self) -> None:
        self.is_shut = False
        self._held: dict[asyncio.Future[None], None] = {}

    def shut(self) -> None:
        """Hold requests from now on."""
        self.is_shut = True

    def open(self) -> None:
        """Release the held requests, and hold no more."""
        self.is_shut = False
        held, self._held = self._held, {}
        for future in held:
            # A future of a closed loop cannot be woken.
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

    In all scripts ``times`` is the number of requests that they hit. ``message_id`` and ``method``
    restrict them to requests for that message or of that method. ``applied`` changes the message,
    whatever the answer says.
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
        """How many requests the scripts will still hit, including those of the token endpoint."""
        # Copies, because another thread may call this while scripts are added and removed.
        scripts = [script for queue in list(self._scripts.values()) for script in list(queue)]
        tokens = list(self._token_scripts)
        return sum(each.remaining for each in scripts) + sum(each.remaining for each in tokens)

    @on_its_loop
    def clear_faults(self) -> None:
        """Forget all scripts and recurring faults, including those of the token endpoint."""
        self._recurring.clear()
        self._scripts.clear()
        self._token_scripts.clear()

    # Holding answers

    @on_its_loop
    def hold(self) -> None:
        """Let API requests arrive, but answer none until :meth:`release`."""
        self._gate.shut()

    @on_its_loop
    def release(self) -> None:
        """Answer the held requests in the order of arrival, and hold no more."""
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
        """Let token requests arrive, but answer none until :meth:`release_tokens`."""
        self._token_gate.shut()

    @on_its_loop
    def release_tokens(self) -> None:
        """Answer the held token requests, and hold no more."""
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
        """Answer the next requests with this status.

        Like every script, it hits ``times`` requests; with ``message_id`` only requests for that
        message, with ``method`` (``"GET"`` or ``"PATCH"``) only requests of that method. Raises
        ValueError if ``times`` is less than 1, if the status is not that of a final answer, or if
        ``body`` is not a known form.

        :param retry_after: the header's seconds, or its exact text (an HTTP date, garbage).
        :param body: one of the forms of :data:`ErrorBody`, or the bytes to send.
        :param content_type: instead of the usual type of the form; for bytes this is
            ``application/json``.
        :param headers: more headers.
        :param applied: change the message nevertheless, as if a gateway failed after the update.
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
        """Answer the next requests with a redirect to ``location``, which is sent unchanged."""
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

        :param when: before the first byte of the answer, in the middle of its headers or of its
            body (of a 200 for a valid request), or ``after_answer``: after a usual answer, whose
            headers keep the connection alive.
        :param reset: close with a TCP reset instead of an orderly close.
        :param applied: change the message nevertheless; ``after_answer`` changes it in any case.
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
        """Answer the next requests with exactly these bytes, including the status line.

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
        """Serve the next requests as usual, then write a second complete answer without a request.

        :param raw: the bytes of the second answer. Without them it has this ``status``; with 200 it
            is about the same message.
        :param after: seconds between the two answers, so that the connection is idle meanwhile;
            with 0 they are written together. :meth:`Sandbox.wait_for_unsolicited` waits for the
            second one. (It is lost if the connection is closed by then.)
        """
        check_seconds("after", after)
        scripted(status, "empty")  # refuses a status that is not possible
        second = Unsolicited(raw, status, after)
        self._script(Script(times, message_id, method, unsolicited=second))

    # Recurring faults

    @on_its_loop
    def every(self, number: int, fault: Callable[[], None]) -> None:
        """Call ``fault`` at every ``number``-th request to the API.

        It is called before that request is handled:
        ``sandbox.every(100, lambda: sandbox.fail_next(503))`` answers every hundredth request with
        503, and ``sandbox.every(1000, sandbox.expire_tokens)`` lets a token work for 999 requests.
        """
        if number < 1:
            raise ValueError("number must be 1 or more")
        self._recurring.append((lambda arrived: arrived % number == 0, fault))

    @on_its_loop
    def at_random(self, share: float, fault: Callable[[], None], *, seed: int = 0) -> None:
        """Call ``fault`` at this share of the requests to the API, chosen at random.

        It is called before such a request is handled:
        ``sandbox.at_random(0.01, lambda: sandbox.fail_next(429))`` answers 1 % of the requests
        with 429. The same ``seed`` chooses the same requests, by the order of their arrival.
        Raises ValueError unless ``share`` is between 0 and 1.
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
        :param retry_after: the header's seconds, or its exact text.
        :param body: the body to send instead. Without ``body`` and ``error`` the body is empty.
        """
        content: ErrorBody | bytes = "empty" if error is None else oauth_error(error)
        if body is not None:
            content = body.encode() if isinstance(body, str) else body
        response = scripted(status, content, content_type, retry_after_header(retry_after))
        self._token_script(TokenScript(remaining=times, response=response))

    def drop_next_token(self, *, times: int = 1) -> None:
        """Close the connection of the next token requests before the first byte of the answer."""
        self._token_script(TokenScript(remaining=times, drop=True))

    def delay_next_token(self, seconds: float, *, times: int = 1) -> None:
        """Serve the next token requests as usual, but only after so many seconds."""
        check_seconds("seconds", seconds)
        self._token_script(TokenScript(remaining=times, delay=seconds))

    def answer_next_token(self, fields: Mapping[str, Any], *, times: int = 1) -> None:
        """Answer the next valid token requests with 200 and exactly these fields.

        If ``access_token`` is text, it is accepted afterwards, for ``token_lifetime``, whatever
        ``expires_in`` says. Floats that JSON lacks are sent as Python writes them (``NaN``).
        """
        self._token_script(TokenScript(remaining=times, fields=dict(fields)))

    def redirect_next_token(self, status: int, location: str, *, times: int = 1) -> None:
        """Answer the next token requests with a redirect to ``location``, sent unchanged."""
        response = scripted(status, "empty", None, (("Location", location),))
        self._token_script(TokenScript(remaining=times, response=response))

    # For serving requests

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
        """Call the faults that are due at the n-th request."""
        for is_due, fault in tuple(self._recurring):
            if is_due(number):
                fault()

    def _take_script(self, message_id: str | None, method: str) -> Script | None:
        """The oldest script that fits, found without looking at scripts for other requests."""
        if not self._scripts:
            return None
        # A set, because without a message id two of the four keys are equal.
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
