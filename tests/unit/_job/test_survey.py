"""What a first look at an input finds, and what it tells of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinch_conv_async._job.input import Layout, Source
from sinch_conv_async._job.survey import survey

if TYPE_CHECKING:
    from pathlib import Path


def test_a_survey_counts(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv"
    path.write_text("message_id,metadata\nA,one\nB,\na,two\nbad\nA,\nC,three\n")
    said: list[str] = []
    found = survey(Source(path, Layout()), said.append, ids=True)
    assert (found.records, found.invalid, found.emptied, found.repeated) == (6, 1, 2, 2)
    assert said == ["line 5: 1 field, where the header has 2"]
    found = survey(Source(path, Layout()), said.append)
    assert (found.records, found.invalid, found.emptied, found.repeated) == (6, 1, 0, 0)
    assert found.layout["format"] == "csv"
    assert found.beginning.startswith("first-record:")


def test_a_survey_tells_of_ten_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text("[]\n" * 12)
    said: list[str] = []
    assert survey(Source(path, Layout("jsonl")), said.append).invalid == 12
    assert said == [
        *(f"line {number}: not a JSON object with fields" for number in range(1, 11)),
        "and 2 more bad lines",
    ]
