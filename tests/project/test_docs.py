"""The pages keep up with the package: what is exported is documented, what is drawn is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sinch_conv_async
from sinch_conv_async import jobs, sandbox

ROOT = Path(__file__).parent.parent.parent
REFERENCE = "\n".join(
    path.read_text("utf-8") for path in sorted((ROOT / "docs/reference").glob("*.rst"))
)


@pytest.mark.parametrize(
    "name", [name for name in sinch_conv_async.__all__ if not name.startswith("__")]
)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    documented = rf"^\.\. (auto\w+:: sinch_conv_async\.|py:data:: ){name}\b"
    assert re.search(documented, REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("name", sandbox.__all__)
def test_every_public_name_of_the_sandbox_is_in_the_reference(name: str) -> None:
    documented = rf"^\.\. (auto\w+:: sinch_conv_async\.sandbox\.|py:data:: ){name}\b"
    assert re.search(documented, REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("name", jobs.__all__)
def test_every_public_name_of_jobs_is_in_the_reference(name: str) -> None:
    page = (ROOT / "docs/reference/jobs.rst").read_text("utf-8")
    assert re.search(rf"^\.\. auto\w+:: {name}\b", page, re.MULTILINE)


def test_the_drawing_of_the_house_has_every_group_and_no_other() -> None:
    drawing = (ROOT / "docs/explanation/house.svg").read_text("utf-8")
    drawn = " ".join(re.findall(r'class="names"[^>]*>([^<]*)<', drawing)).split()
    package = ROOT / "sinch_conv_async"
    groups = [path.parent.name for path in package.glob("*/__init__.py")]
    assert sorted(drawn) == sorted([path.stem for path in package.glob("*.py")] + groups)


def test_every_example_that_a_page_names_is_there() -> None:
    pages = [*ROOT.glob("docs/**/*.rst"), ROOT / "README.rst"]
    named = {
        name
        for page in pages
        for name in re.findall(r"examples/(\w+\.\w+)", page.read_text("utf-8"))
    }
    assert named
    assert [name for name in sorted(named) if not (ROOT / "examples" / name).is_file()] == []


def test_no_line_of_a_page_is_longer_than_a_hundred_characters() -> None:
    """Ruff holds the same for Python. A line of one word stays whole, and so does a directive."""
    pages = {*ROOT.glob("docs/**/*.rst"), *ROOT.glob("*.rst")}
    assert pages
    assert [
        f"{page.relative_to(ROOT)}:{number}"
        for page in sorted(pages)
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1)
        if len(line) > 100 and len(line.split()) > 1 and not line.startswith(".. ")
    ] == []
