"""The promises of SECURITY.rst are shown by tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "SECURITY.rst").read_text("utf-8")
NAMED = sorted(set(re.findall(r"``(tests/[\w/]+\.py)::(\w+)``", PAGE)))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda value: value.rpartition("/")[2])
def test_a_test_that_the_page_names_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    assert name in {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_promise_names_a_test() -> None:
    promises = [item for item in re.split(r"^\* ", PAGE, flags=re.MULTILINE)[1:] if item.strip()]
    assert [promise for promise in promises if "::test_" not in promise] == []
