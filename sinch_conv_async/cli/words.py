"""The errors of a job in words, with the options that help, and the exit codes."""

from __future__ import annotations

from typing import Any, Final, assert_never

import attrs

from .._job.input import InputError, InputReason
from .._job.journal import JournalError, JournalReason
from .._job.ledger import LedgerError
from .._job.report import Report
from ..bulk import TO_GO_ON
from ..errors import AuthenticationError, InvalidArgumentError, SinchError, TokenError
from .output import INTERRUPTED, REFUSED, SOME_FAILED, USAGE
from .progress import duration

__all__ = ["OTHER_ENCODING", "error_of", "exit_code_of", "sentence", "to_json", "to_text"]

OTHER_ENCODING: Final = "--encoding names another encoding, such as cp1252"

_JOURNAL_ADVICE: Final = {
    JournalReason.OTHER_TARGET: "; name another with --journal",
    JournalReason.OTHER_OPTIONS: "; give the same options, or another --journal",
    JournalReason.OTHER_INPUT: (
        ". A journal belongs to one content of its input; for this one name another with --journal"
    ),
    JournalReason.NOT_A_JOURNAL: "; name another with --journal",
    JournalReason.DAMAGED: "; with another --journal the job begins anew",
    JournalReason.PLACE: "; name another place with --journal",
}


def exit_code_of(error: SinchError | InputError | LedgerError) -> int:
    """The exit code of a command that this error ended."""
    if isinstance(error, InputError | InvalidArgumentError):
        return USAGE
    if isinstance(error, LedgerError | AuthenticationError):
        return REFUSED
    if isinstance(error, TokenError):
        # An endpoint in an outage says nothing about the credentials.
        return REFUSED if error.refused else SOME_FAILED
    return SOME_FAILED


def sentence(error: SinchError | InputError | LedgerError) -> str:
    """The error as a sentence for the user, with the option that helps."""
    if isinstance(error, InputError):
        return f"{error}{_input_advice(error)}"
    if isinstance(error, JournalError):
        return f"{error}{_JOURNAL_ADVICE.get(error.reason, '')}"
    if isinstance(error, LedgerError):
        return str(error)
    if isinstance(error, SinchError):
        # That note is for callers of `update_many`. Here the same command goes on, and says so.
        notes = (note.removesuffix(f" {TO_GO_ON}") for note in getattr(error, "__notes__", []))
        return "\n".join([f"{type(error).__name__}: {error}", *notes])
    assert_never(error)


def _input_advice(error: InputError) -> str:
    if error.reason is InputReason.BAD_LINE:
        encoding = f"{OTHER_ENCODING}, and " if error.undecodable else ""
        return f"; {encoding}--on-bad-line skip leaves {'it' if error.count == 1 else 'them'} out"
    if error.reason is InputReason.NO_COLUMN:
        option = "--id-column" if error.column == "message_id" else "--metadata-column"
        if error.delimiter is None:
            return f"; it has {error.columns}; {option} names another one"
        delimiter = "tab" if error.delimiter == "\t" else error.delimiter
        if error.split:
            return (
                f"; with --delimiter '{delimiter}' it has {error.split}; {option} names another one"
            )
        return f"; --delimiter '{delimiter}' would find it"
    return ""


def error_of(report: Report) -> tuple[int, str | None]:
    """The exit code of a command with this report, and the sentence about what ended the run."""
    code, text = _ended(report)
    problem = report.failures_problem
    if problem is not None:
        if problem.error is None:
            code, why = INTERRUPTED, f"{problem.path} was not written: interrupted"
        elif isinstance(problem.error, InputError):
            code, why = code or USAGE, f"{problem.path} was not written: {problem.error}"
        else:
            code, why = code or SOME_FAILED, f"{problem.path} could not be written: {problem.error}"
        text = text or why
    if not code and (report.failed or report.invalid):
        code = SOME_FAILED
    return code, text


def _ended(report: Report) -> tuple[int, str | None]:
    if report.ended_by is not None:
        return exit_code_of(report.ended_by), sentence(report.ended_by)
    if not report.unfinished:
        return 0, None
    if report.limit is not None and not report.interrupted:
        return (
            SOME_FAILED,
            f"more than {report.limit} of the updates failed, so the rest was not tried",
        )
    return INTERRUPTED, None


def to_json(report: Report) -> dict[str, Any]:
    """The summary for machines."""
    code, error = error_of(report)
    hidden = ("unfinished", "ended_by", "limit", "failures_problem")
    fields = attrs.asdict(
        report, filter=lambda field, value: field.name not in hidden, recurse=False
    )
    return {
        "exit_code": code,
        "error": error,
        **fields,
        "kinds": dict(report.kinds),
        "seconds": round(report.seconds, 3),
        "rate": round(report.rate, 1),
        "remaining": report.remaining,
    }


def to_text(report: Report) -> str:
    """The summary for people: a line for each figure that is not zero."""
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in report.kinds.most_common(5))
    total = "" if report.records is None else f"of {report.records:,}"
    rows: list[tuple[str, str, str]] = [
        ("updated", f"{report.updated:,}", total),
        ("failed", f"{report.failed:,}", f"this run: {kinds}" if kinds else ""),
    ]
    if report.unchanged:
        rows.append(("unchanged", f"{report.unchanged:,}", "had this metadata already"))
    if report.invalid:
        rows.append(("bad lines", f"{report.invalid:,}", "never sent"))
    if report.superseded:
        why = "failed, and a later record updated the message"
        rows.append(("superseded", f"{report.superseded:,}", why))
    if report.remaining:
        rows.append(("remaining", f"{report.remaining:,}", ""))
    throttled = f"answers 429 (too fast): {report.throttled:,}" if report.throttled else ""
    rows.append(("retried", f"{report.retried:,}", throttled))
    rows.append(("tokens fetched", f"{report.token_requests:,}", ""))
    sent = f"{report.sent:,} in {duration(report.seconds)}"
    rows.append(("rate", f"{report.rate:,.0f}/s", sent))
    lines = [f"{name:<14}  {number:>12}  {more}".rstrip() for name, number, more in rows]
    if report.journal is not None:
        lines.append(f"journal         {report.journal}")
    if report.failures is not None:
        lines.append(f"failures        {report.failures}  ({report.failures_written:,})")
    return "\n".join(lines)
