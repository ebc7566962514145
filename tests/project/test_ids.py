"""The ids of the quick tests, by which mutmut, editors and shells name a test to pytest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LONGEST = 200  # bytes
PLAIN = re.compile(r"[\w/]+\.py(::\w+)+(\[[\w .,=+<>-]*\])?", re.ASCII)


def test_the_id_of_a_test_is_short_and_of_plain_characters() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/unit"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    ids = [line for line in run.stdout.splitlines() if "::" in line]
    assert ids
    assert [each for each in ids if len(each) > LONGEST or not PLAIN.fullmatch(each)] == []
