"""What import-linter cannot say of the package: its pure modules have no clock, no dice, no event
loop and no socket of their own.

Which group may import which stands in pyproject.toml (``[tool.importlinter]``), and ``nox -s lint``
holds it.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parent.parent.parent / "sinch_conv_async"

PURE = (
    "enums.py",
    "errors.py",
    "models.py",
    "_bulk/outage.py",
    "_core/noise.py",
    "_core/pace.py",
    "_core/retry.py",
    "_wire/*.py",
)

EVENT_LOOP_AND_NETWORK = {"aiohttp", "asyncio", "select", "selectors", "socket", "ssl", "threading"}
# Whole modules that are a clock or a die, whatever is taken from them.
CLOCKS = {"time"}
DICE = {"random", "secrets", "uuid"}
# Calls that read a clock or entropy, in modules that are otherwise pure.
READS = {
    ("datetime", "now"): "a clock",
    ("datetime", "utcnow"): "a clock",
    ("datetime", "today"): "a clock",
    ("date", "today"): "a clock",
    ("os", "urandom"): "randomness",
    ("os", "getrandom"): "randomness",
    ("os", "times"): "a clock",
}


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str, str | None]]:
    """Every import as (node, module, name): `import a.b` has no name. The package's own (relative)
    imports are import-linter's business.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, None
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield node, node.module or "", alias.name


def only_for_types(tree: ast.AST) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, which never runs."""
    return {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for child in ast.walk(statement)
    }


def impurities(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What a pure module may not know. A source of dice may be named as a type (`rng: Random`), and
    not made.
    """
    typing_only = only_for_types(tree)
    for node, module, name in imports(tree):
        head = module.partition(".")[0]
        if (module, name) == ("random", "Random") or (
            node in typing_only and (module, name) == ("random", None)
        ):
            continue
        if head in EVENT_LOOP_AND_NETWORK:
            yield node, f"knows {head}"
        elif head in CLOCKS:
            yield node, f"has a clock of its own: {head}"
        elif head in DICE:
            yield node, f"has randomness of its own: {head}"
        elif what := READS.get((head, name or "")):
            yield node, f"has {what} of its own: {head}.{name}"
    made_of = {"Random"} | {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == "Random" and alias.asname
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in made_of:
            yield node, f"has randomness of its own: {ast.unparse(node.func)}()"
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).rpartition(".")[2]
            if what := READS.get((owner, node.attr)):
                yield node, f"has {what} of its own: {owner}.{node.attr}"
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield node, "is asynchronous"


def test_the_pure_modules_are_pure() -> None:
    modules = sorted({path for pattern in PURE for path in SOURCE.glob(pattern)})
    assert len(modules) >= len(PURE), modules
    found = [
        f"{module.relative_to(SOURCE)}:{node.lineno} {what}"
        for module in modules
        for node, what in impurities(ast.parse(module.read_text("utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("import asyncio", "knows asyncio"),
        ("from asyncio import timeout", "knows asyncio"),
        ("import aiohttp", "knows aiohttp"),
        ("if TYPE_CHECKING:\n    from aiohttp import ClientResponse", "knows aiohttp"),
        ("import socket", "knows socket"),
        ("import time", "has a clock of its own: time"),
        ("from time import monotonic", "has a clock of its own: time"),
        ("if TYPE_CHECKING:\n    import time", "has a clock of its own: time"),
        ("import random", "has randomness of its own: random"),
        ("from random import uniform", "has randomness of its own: random"),
        ("if TYPE_CHECKING:\n    from random import uniform", "has randomness of its own: random"),
        ("from random import Random\nrng = Random()", "has randomness of its own: Random()"),
        ("from random import Random as R\nrng = R(1)", "has randomness of its own: R()"),
        ("import secrets", "has randomness of its own: secrets"),
        ("import os\nx = os.urandom(8)", "has randomness of its own: os.urandom"),
        ("from os import urandom", "has randomness of its own: os.urandom"),
        ("from datetime import datetime, UTC\nx = datetime.now(UTC)", "has a clock of its own"),
        ("import datetime\nx = datetime.datetime.utcnow()", "has a clock of its own"),
        ("import datetime as dt\nx = dt.date.today", "has a clock of its own"),
        ("async def send(): ...", "is asynchronous"),
    ],
)
def test_an_impure_module_is_found_out(source: str, finding: str) -> None:
    found = [what for _, what in impurities(ast.parse(source))]
    assert len(found) == 1, found
    assert finding in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "from random import Random\ndef delay(rng: Random) -> float: return rng.random()",
        "if TYPE_CHECKING:\n    import random\ndef f(rng: random.Random): ...",
        "from datetime import datetime, UTC\nx = datetime.fromtimestamp(0, UTC)",
    ],
)
def test_a_pure_module_is_left_alone(source: str) -> None:
    assert list(impurities(ast.parse(source))) == []
