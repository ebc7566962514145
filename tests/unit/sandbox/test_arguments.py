"""Arguments that make no sense are refused when the sandbox is made or told, not when a request
meets them.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from sinch_conv_async.sandbox import Sandbox
from sinch_conv_async.sandbox.limits import Bucket, Unlimited, Window


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"latency": -0.1}, "latency must be a number of seconds, 0 or more, not -0.1"),
        ({"latency": math.nan}, "latency must be a number of seconds"),
        ({"latency": math.inf}, "latency must be a number of seconds"),
        ({"token_lifetime": -1}, "token_lifetime must be a number of seconds, 0 or more, not -1"),
        ({"token_burst": 0}, "token_burst must be at least 1, not 0"),
        ({"token_rate": -1}, "token_rate must be a number, 0 or more, or None, not -1"),
        ({"rate_limit": 0}, "rate_limit must be at least 1, or None, not 0"),
        ({"rate_limit": 5, "rate_burst": 0}, "rate_burst must be at least 1, or None, not 0"),
        ({"rate_burst": 5}, "rate_burst needs a rate_limit"),
        ({"port": -1}, "port must be between 0 and 65535, not -1"),
        ({"port": 65_536}, "port must be between 0 and 65535, not 65536"),
        ({"keep_requests": -1}, "keep_requests must be 0 or more, or None, not -1"),
    ],
)
def test_the_sandbox_refuses(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sandbox(**arguments)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("delay_next", (-1,)),
        ("delay_next_token", (math.nan,)),
        ("trickle_next", (-0.1,)),
        ("at_random", (1.5, print)),
        ("at_random", (math.nan, print)),
        ("every", (0, print)),
    ],
)
def test_a_script_refuses(method: str, arguments: tuple[Any, ...]) -> None:
    sandbox = Sandbox()
    with pytest.raises(ValueError, match="must be"):
        getattr(sandbox, method)(*arguments)
    assert sandbox.pending_faults == 0


def test_an_unsolicited_answer_of_a_status_that_ends_no_exchange_is_refused() -> None:
    sandbox = Sandbox()
    with pytest.raises(ValueError, match="final answer"):
        sandbox.unsolicited_next(status=100)


def test_a_latency_that_makes_no_sense_leaves_the_old_one() -> None:
    sandbox = Sandbox(latency=0.5)
    with pytest.raises(ValueError, match="latency"):
        sandbox.latency = -1
    assert sandbox.latency == 0.5


def test_a_project_that_was_refused_leaves_no_key_behind() -> None:
    sandbox = Sandbox()
    with pytest.raises(ValueError, match="rate_limit"):
        sandbox.add_project("p", key_id="k", key_secret="one", rate_limit=0)
    sandbox.add_project("p", key_id="k", key_secret="another")


# How many are let through, told as the times of requests and whether each passed.


@pytest.mark.parametrize(
    ("limit", "requests"),
    [
        (Unlimited(), [(0, True), (0, True), (0, True)]),
        (Window(2), [(0, True), (0.5, True), (0.9, False), (1.0, True), (1.4, False), (1.5, True)]),
        (Bucket(2, 3, 0), [(0, True), (0, True), (0, True), (0, False), (0.5, True), (0.5, False)]),
        (Bucket(2, 3, 0), [(9, True), (9, True), (9, True), (9, False)]),
        (Bucket(0, 1, 0), [(0, True), (99, False)]),
    ],
)
def test_a_limit_lets_through(limit: Any, requests: list[tuple[float, bool]]) -> None:
    assert [limit.admits(now) for now, _ in requests] == [passed for _, passed in requests]
