"""What is written twice says the same: version, commands, dependencies, programs, Pythons."""

from __future__ import annotations

import ast
import re
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest

import sinch_conv_async
from tests import programs

ROOT = Path(__file__).parent.parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGE = ROOT / "sinch_conv_async"


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def commands(page: str) -> list[str]:
    """The lines that set up an environment and run this project's demo or its tests in it, whatever
    their indent.
    """
    lines = [line.strip() for line in page.splitlines()]
    return [
        line
        for line in lines
        if line.startswith("python3 -m venv") and line.endswith(("/sinch-conv demo", "/nox"))
    ]


def requirement_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found.group().lower()


def test_ci_runs_readmes_test_command() -> None:
    (in_ci,) = commands(text(".ci/run"))
    assert in_ci.endswith("nox")
    assert commands(text("README.rst")).count(in_ci) == 1


def test_readme_has_two_commands_the_first_for_the_demo() -> None:
    first, second = commands(text("README.rst"))
    assert first.endswith("sinch-conv demo")
    assert second.endswith("nox")


@pytest.mark.parametrize(
    "page",
    [
        "CONTRIBUTING.rst",
        *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.rst")),
    ],
)
def test_pages_that_repeat_a_command_repeat_it_word_for_word(page: str) -> None:
    known = commands(text("README.rst"))
    assert [command for command in commands(text(page)) if command not in known] == []


def test_the_version_is_written_alike_in_both_places() -> None:
    assert sinch_conv_async.__version__ == PROJECT["version"]


def test_the_changelog_knows_this_version() -> None:
    assert re.search(rf"^{re.escape(PROJECT['version'])}\b", text("CHANGELOG.rst"), re.MULTILINE)


def test_the_core_needs_four_packages() -> None:
    assert [requirement_name(entry) for entry in PROJECT["dependencies"]] == [
        "aiohttp",
        "attrs",
        "cattrs",
        "yarl",
    ]


def test_the_package_imports_nothing_that_it_does_not_declare() -> None:
    extras = {name for entries in PROJECT["optional-dependencies"].values() for name in entries}
    declared = {requirement_name(entry) for entry in (*PROJECT["dependencies"], *extras)}
    # The distribution attrs is imported as attrs and as attr. Modules for users' own tests need
    # what those run on.
    known = {name.replace("-", "_") for name in declared} | {
        "attr",
        "hypothesis",
        "pytest",
        "sinch_conv_async",
    }
    unknown = {
        f"{path.name}: {name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
        if name.partition(".")[0] not in known | sys.stdlib_module_names
    }
    assert unknown == set()


def test_the_wheel_takes_the_whole_package_with_its_type_marker() -> None:
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"] == {
        "packages": ["sinch_conv_async"]
    }
    assert (PACKAGE / "py.typed").is_file()


def test_the_sdist_takes_everything_that_the_tests_read() -> None:
    taken = set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    read = {
        "/.ci",
        "/.github",
        "/README.rst",
        "/CHANGELOG.rst",
        "/CONTRIBUTING.rst",
        "/conftest.py",
        "/docs",
        "/tests",
    }
    assert read <= taken
    top = {f"/{path.name}" for path in ROOT.iterdir() if path.suffix in {".py", ".rst"}}
    assert top <= taken


def test_ci_installs_every_program_that_a_test_needs() -> None:
    needed = {
        argument.value
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.needs_program"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    assert needed <= set(programs.listed())


def test_the_workflow_tests_the_pythons_that_the_classifiers_name() -> None:
    named = re.findall(
        r"Programming Language :: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"])
    )
    workflow = text(".github/workflows/tests.yml")
    matrix = re.search(r"python: \[(.*)\]", workflow)
    assert matrix
    assert re.findall(r"3\.\d+", matrix.group(1)) == named
    assert f">={named[0]}" == PROJECT["requires-python"]


def exceptions(path: Path) -> list[tuple[int, str]]:
    """Comments that silence a tool: line, text."""
    with tokenize.open(path) as lines:
        return [
            (token.start[0], token.string)
            for token in tokenize.generate_tokens(lines.readline)
            if token.type == tokenize.COMMENT
            and re.search(
                r"pragma: no (cover|branch)|type: ignore|pyright: ignore|noqa", token.string
            )
        ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_every_exception_from_a_rule_has_its_reason_beside_it(path: Path) -> None:
    """`# type: ignore[arg-type]  # why`: the rules are named, and words of a reason follow."""
    reasonless = []
    for line, comment in exceptions(path):
        rest = re.sub(
            r"pragma: no (cover|branch)|(type|pyright): ignore(\[[\w, -]+\])?|noqa(: [A-Z0-9, ]+)?",
            "",
            comment,
        )
        if len(re.findall(r"[A-Za-z']+", rest)) < 3:
            reasonless.append(f"{path.name}:{line} {comment}")
    assert reasonless == []


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of the machine it was written on, and no host of a package registry, in anything that
    is published.
    """
    places = re.compile(
        r"/(?:work|root|home)/|files\.pythonhosted|registry\.npmjs|deb\.debian\.org|pypi\.org/simple"
    )
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for folder in (
            "sinch_conv_async",
            "tests",
            "docs",
            "examples",
            "benchmarks",
            ".github",
            ".ci",
        )
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and path != Path(__file__)
        and path.suffix in {".py", ".rst", ".yml", ".toml", ".md", ""}
        if "_build" not in path.parts and "__pycache__" not in path.parts
        for match in places.finditer(path.read_text("utf-8"))
    ]
    assert found == []
