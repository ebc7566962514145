"""How a job's reasons are put into words, and which exit code follows from them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest

from sinch_conv_async import (
    AuthenticationError,
    InvalidArgumentError,
    NotFoundError,
    ServerError,
    TokenError,
)
from sinch_conv_async._job.input import InputError, InputReason
from sinch_conv_async._job.journal import JournalError, JournalReason
from sinch_conv_async._job.report import FailuresProblem, Report
from sinch_conv_async._job.run import FailureLimit, OtherRecordError
from sinch_conv_async.bulk import TO_GO_ON
from sinch_conv_async.cli.words import error_of, exit_code_of, sentence, to_json, to_text

REPORT = Report(
    input="ids.csv",
    journal=None,
    records=20,
    updated=20,
    failed=0,
    invalid=0,
    superseded=0,
    unchanged=0,
    failures=None,
    failures_written=0,
    kinds=Counter(),
    sent=20,
    retried=0,
    throttled=0,
    token_requests=1,
    seconds=1.0,
    rate=20.0,
)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InvalidArgumentError("no"), 2, "InvalidArgumentError: no"),
        (AuthenticationError("no", http_status=401), 3, "AuthenticationError: 401: no"),
        (TokenError("no", http_status=400), 3, "TokenError: no"),
        (TokenError("no", http_status=503), 1, "TokenError: no"),
        (ServerError("no", http_status=503), 1, "ServerError: 503: no"),
        (InputError("no"), 2, "no"),
        (
            InputError("1 bad line", InputReason.BAD_LINE),
            2,
            "1 bad line; --on-bad-line skip leaves it out",
        ),
        (
            InputError("2 bad lines", InputReason.BAD_LINE, count=2),
            2,
            "2 bad lines; --on-bad-line skip leaves them out",
        ),
        (
            InputError("no column 'id'", InputReason.NO_COLUMN, column="message_id", columns="'a'"),
            2,
            "no column 'id'; it has 'a'; --id-column names another one",
        ),
        (
            InputError(
                "no column 'x'", InputReason.NO_COLUMN, column="metadata", columns="'a', 'b'"
            ),
            2,
            "no column 'x'; it has 'a', 'b'; --metadata-column names another one",
        ),
        (
            InputError("no column", InputReason.NO_COLUMN, column="metadata", delimiter=";"),
            2,
            "no column; --delimiter ';' would find it",
        ),
        (
            InputError("no column", InputReason.NO_COLUMN, column="metadata", delimiter="\t"),
            2,
            "no column; --delimiter 'tab' would find it",
        ),
        (
            InputError(
                *("no column", InputReason.NO_COLUMN),
                column="metadata",
                delimiter=";",
                split="'a', 'b'",
            ),
            2,
            "no column; with --delimiter ';' it has 'a', 'b'; --metadata-column names another one",
        ),
        (
            InputError("2 bad lines", InputReason.BAD_LINE, count=2, undecodable=True),
            2,
            "2 bad lines; --encoding names another encoding, such as cp1252, "
            "and --on-bad-line skip leaves them out",
        ),
        (JournalError("j", JournalReason.IN_USE), 3, "j"),
        (JournalError("j", JournalReason.OTHER_TARGET), 3, "j; name another with --journal"),
        (OtherRecordError("line 2"), 3, "line 2"),
    ],
)
def test_an_error_has_a_sentence_and_an_exit_code(error: Any, code: int, text: str) -> None:
    assert exit_code_of(error) == code
    assert sentence(error) == text


def test_what_only_callers_of_the_client_can_do_is_left_out() -> None:
    error = ServerError("no", http_status=503)
    error.add_note(f"It was out. {TO_GO_ON}")
    assert sentence(error) == "ServerError: 503: no\nIt was out."


UNFINISHED = {"unfinished": True, "updated": 5}


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({}, 0, None),
        ({"failed": 1}, 1, None),
        ({"invalid": 1}, 1, None),
        ({"unchanged": 20, "updated": 0}, 0, None),
        (UNFINISHED, 130, None),
        ({"unfinished": False, "interrupted": True}, 0, None),
        (
            {**UNFINISHED, "limit": FailureLimit(5, percent=True)},
            1,
            "more than 5% of the updates failed, so the rest was not tried",
        ),
        ({**UNFINISHED, "limit": FailureLimit(5), "interrupted": True}, 130, None),
        ({**UNFINISHED, "ended_by": InputError("gone")}, 2, "gone"),
        (
            {**UNFINISHED, "ended_by": NotFoundError("x", http_status=404)},
            1,
            "NotFoundError: 404: x",
        ),
        ({"failures_problem": FailuresProblem("f", None)}, 130, "f was not written: interrupted"),
        (
            {"failures_problem": FailuresProblem("f", OSError("full"))},
            1,
            "f could not be written: full",
        ),
        (
            {"failures_problem": FailuresProblem("f", InputError("gone"))},
            2,
            "f was not written: gone",
        ),
        (
            {
                "ended_by": InputError("lost"),
                "failures_problem": FailuresProblem("f", OSError("full")),
            },
            2,
            "lost",
        ),
    ],
)
def test_a_report_has_an_exit_code(changes: dict[str, Any], code: int, text: str | None) -> None:
    report = attrs.evolve(REPORT, **changes)
    assert error_of(report) == (code, text)
    document = to_json(report)
    assert (document["exit_code"], document["error"]) == (code, text)
    assert not {"ended_by", "limit", "unfinished", "failures_problem"} & document.keys()


def test_a_report_tells_what_there_is_to_tell() -> None:
    report = attrs.evolve(
        REPORT,
        records=None,
        journal="j",
        failures="f",
        failures_written=2,
        failed=2,
        kinds=Counter({"404 NotFoundError": 2}),
        invalid=3,
        superseded=4,
        unchanged=5,
        throttled=6,
    )
    assert report.remaining is None
    assert to_text(report).splitlines() == [
        "updated                   20",
        "failed                     2  this run: 2 404 NotFoundError",
        "unchanged                  5  had this metadata already",
        "bad lines                  3  never sent",
        "superseded                 4  failed, and a later record updated the message",
        "retried                    0  answers 429 (too fast): 6",
        "tokens fetched             1",
        "rate                    20/s  20 in 0:01",
        "journal         j",
        "failures        f  (2)",
    ]
    report = attrs.evolve(REPORT, updated=5, unchanged=5)
    assert report.remaining == 10
    assert "remaining                 10" in to_text(report).splitlines()
