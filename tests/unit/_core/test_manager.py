"""The session manager before it has a connection: what it refuses, and how it is forgotten.
tests/whole has the rest.
"""

from __future__ import annotations

import warnings

import aiohttp
import pytest

from sinch_conv_async import ConversationClient, InvalidArgumentError, SessionManager


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_connections": 0}, "max_connections"),
        ({"max_connections": True}, "max_connections"),
        ({"max_connections": 1.5}, "max_connections"),
        ({"ssl": False}, "ssl"),
        ({"ssl": "cert.pem"}, "ssl"),
        ({"proxy": 7}, "proxy"),
        ({"proxy": "socks5://proxy"}, "proxy"),
        ({"proxy": "http://[::1"}, "proxy"),
        ({"resolver": 1}, "resolver must be"),
        ({"trace_configs": [1]}, "trace_configs must be"),
        ({"trace_configs": None}, "trace_configs must be"),
        ({"trace_configs": [aiohttp.TraceConfig]}, "trace_configs must be"),
    ],
)
def test_an_argument_that_cannot_be_right_is_refused(options, problem):
    with pytest.raises(InvalidArgumentError, match=problem):
        SessionManager(**options)


def test_a_manager_that_was_never_used_is_forgotten_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConversationClient(project_id="p", key_id="k", key_secret="s", conversation_region="us")
        SessionManager()


def test_a_manager_whose_constructor_failed_is_forgotten_in_silence():
    manager = SessionManager.__new__(SessionManager)
    manager.__del__()
