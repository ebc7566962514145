"""The house stands on its floors: imports point down, and the pure floors know no loop, no socket, no clock, no dice."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = "sinch_conv_async"
SOURCE = Path(__file__).parent.parent / PACKAGE

# A module imports from lower floors and from its own, never from above.
FLOORS = (
    {"enums", "errors", "models"},
    {"_convert", "_json", "_pace", "_retry", "_wire"},
    {"_calls", "_pacing", "_tokens"},
    {"_connector", "_session"},
    {"client", "bulk", "_journal", "_records", "_progress", "_job", "_run"},
    {"cli", "_demo", "__main__", "__init__"},
)
APART = {"sandbox"}
PURE = FLOORS[0] | FLOORS[1]
CALLS_HTTP = {"_connector", "_session"}

SERVERS_OWN = {"web", "http"}

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


def floor_of(module: str) -> int | None:
    return next((number for number, modules in enumerate(FLOORS) if module in modules), None)


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str, str | None]]:
    """Every import as (node, module, name): `import a.b` has no name, a relative import has the package spelled out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            prefix = PACKAGE if node.level else ""
            module = ".".join(part for part in (prefix, node.module) if part)
            for alias in node.names:
                yield node, module, alias.name


def ours(module: str, name: str | None) -> str | None:
    """Which module of the package an import reaches: `from . import x`, `from .x import y` and `import pkg.x` are x."""
    head, *rest = module.split(".")
    if head != PACKAGE:
        return None
    if rest:
        return rest[0]
    known = set().union(*FLOORS, APART)
    return name if name in known else "__init__"


def only_for_types(tree: ast.AST) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, which never runs."""
    return {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for child in ast.walk(statement)
    }


def impurities(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What a pure module may not know. A source of dice may be named as a type (`rng: Random`), and not made."""
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


def aiohttps(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every name of aiohttp's that a module reaches, the server's left out: `web`, and the errors of `http`'s parser."""
    for node, module, name in imports(tree):
        head, *rest = module.split(".")
        if head == "aiohttp" and not SERVERS_OWN & {*rest[:1], *([] if rest else [name])}:
            yield node, f"{module}.{name}" if name else module


def findings(sources: Mapping[str, str]) -> list[str]:
    """What is wrong with the house that these modules (name to source) make, one sentence each; none if it stands."""
    found = []
    for module, source in sources.items():
        tree = ast.parse(source)
        here = floor_of(module)
        if here is None and module not in APART:
            found.append(f"{module} is on no floor")
            continue

        for node, imported, name in imports(tree):
            target = ours(imported, name)
            if target is None:
                continue
            if here is None:
                found.append(f"{module}:{node.lineno} imports {target}, and is to stand apart")
                continue
            there = floor_of(target)
            if target in APART:
                # The commands that show the sandbox, and the top level that offers it, stand above it.
                if here < len(FLOORS) - 1:
                    found.append(f"{module}:{node.lineno} imports {target}, which stands apart")
            elif there is None:
                found.append(f"{module}:{node.lineno} imports {target}, which is on no floor")
            elif there > here:
                found.append(f"{module}:{node.lineno} imports {target} from above ({here} to {there})")

        if module in PURE:
            found += [f"{module}:{node.lineno} {what}" for node, what in impurities(tree)]
        elif module not in CALLS_HTTP:
            typing_only = only_for_types(tree)
            found += [
                f"{module}:{node.lineno} reaches for aiohttp's client: {what}"
                for node, what in aiohttps(tree)
                if node not in typing_only
            ]
    return found


def test_the_house_stands_as_it_was_drawn() -> None:
    modules = {path.stem: path.read_text("utf-8") for path in SOURCE.rglob("*.py")}
    assert modules, f"no module in {SOURCE}"
    assert findings(modules) == []


def test_the_house_is_flat() -> None:
    assert [str(path) for path in SOURCE.rglob("*.py") if path.parent != SOURCE] == []


@pytest.mark.parametrize(
    ("module", "source", "finding"),
    [
        # Arrows that point up, in each way of writing one.
        ("enums", "from ._wire import build", "imports _wire from above (0 to 1)"),
        ("models", "from sinch_conv_async._wire import build", "imports _wire from above (0 to 1)"),
        ("_wire", "import sinch_conv_async._tokens", "imports _tokens from above (1 to 2)"),
        ("_wire", "from . import _tokens", "imports _tokens from above (1 to 2)"),
        ("_wire", "from sinch_conv_async import _tokens", "imports _tokens from above (1 to 2)"),
        ("_pacing", "from ._session import SessionManager", "imports _session from above (2 to 3)"),
        ("_session", "def f():\n    from .client import x", "_session:2 imports client from above (3 to 4)"),
        ("_session", "if TYPE_CHECKING:\n    from .client import x", "imports client from above (3 to 4)"),
        ("bulk", "from . import cli", "imports cli from above (4 to 5)"),
        ("client", "from sinch_conv_async import ConversationClient", "imports __init__ from above (4 to 5)"),
        ("client", "from . import __version__", "imports __init__ from above (4 to 5)"),
        ("client", "import sinch_conv_async", "imports __init__ from above (4 to 5)"),
        # A module that nobody gave a floor, and an arrow to one.
        ("helpers", "", "helpers is on no floor"),
        ("cli", "from .helpers import x", "imports helpers, which is on no floor"),
        # The pure floors.
        ("_wire", "import asyncio", "knows asyncio"),
        ("_wire", "from asyncio import timeout", "knows asyncio"),
        ("_wire", "import aiohttp", "knows aiohttp"),
        ("_wire", "if TYPE_CHECKING:\n    from aiohttp import ClientResponse", "knows aiohttp"),
        ("errors", "import socket", "knows socket"),
        ("_retry", "import time", "has a clock of its own: time"),
        ("_retry", "from time import monotonic", "has a clock of its own: time"),
        ("_retry", "if TYPE_CHECKING:\n    import time", "has a clock of its own: time"),
        ("_pace", "import random", "has randomness of its own: random"),
        ("_pace", "from random import uniform", "has randomness of its own: random"),
        ("_pace", "if TYPE_CHECKING:\n    from random import uniform", "has randomness of its own: random"),
        ("_pace", "from random import Random\nrng = Random()", "has randomness of its own: Random()"),
        ("_pace", "from random import Random as R\nrng = R(1)", "has randomness of its own: R()"),
        (
            "_pace",
            "if TYPE_CHECKING:\n    import random\nrng = random.Random()",
            "of its own: random.Random()",
        ),
        ("_pace", "import secrets", "has randomness of its own: secrets"),
        ("_pace", "import os\nx = os.urandom(8)", "has randomness of its own: os.urandom"),
        ("_pace", "from os import urandom", "has randomness of its own: os.urandom"),
        ("models", "from datetime import datetime, UTC\nx = datetime.now(UTC)", "has a clock of its own"),
        ("models", "import datetime\nx = datetime.datetime.utcnow()", "has a clock of its own"),
        ("models", "import datetime as dt\nx = dt.date.today", "has a clock of its own"),
        ("_wire", "async def send(): ...", "is asynchronous"),
        # aiohttp's client is called in one place.
        ("client", "import aiohttp", "reaches for aiohttp's client: aiohttp"),
        (
            "client",
            "from aiohttp import ClientSession",
            "reaches for aiohttp's client: aiohttp.ClientSession",
        ),
        ("_tokens", "import aiohttp.client", "reaches for aiohttp's client: aiohttp.client"),
        (
            "bulk",
            "from aiohttp.client_exceptions import ClientError",
            "aiohttp's client: aiohttp.client_exceptions",
        ),
        ("sandbox", "import aiohttp", "reaches for aiohttp's client: aiohttp"),
        ("sandbox", "from aiohttp import TCPConnector, web", "aiohttp's client: aiohttp.TCPConnector"),
        ("sandbox", "from aiohttp.client import http", "reaches for aiohttp's client: aiohttp.client.http"),
        # The sandbox stands apart: it shares none of our mistakes.
        ("sandbox", "from .enums import Channel", "imports enums, and is to stand apart"),
        ("sandbox", "from . import __version__", "imports __init__, and is to stand apart"),
        ("sandbox", "import sinch_conv_async.models", "imports models, and is to stand apart"),
        ("client", "from .sandbox import Sandbox", "imports sandbox, which stands apart"),
    ],
)
def test_a_house_that_is_wrong_is_found_out(module: str, source: str, finding: str) -> None:
    found = findings({module: source})
    assert len(found) == 1, found
    assert finding in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_wire", "from .models import ChannelIdentity\nfrom ._convert import structure"),
        (
            "_session",
            "import aiohttp\nfrom aiohttp import ClientSession, TCPConnector\nimport asyncio, time, random",
        ),
        ("_connector", "from aiohttp import TCPConnector"),
        ("client", "from ._session import SessionManager\nimport asyncio"),
        # A user may hand us aiohttp's things (`trace_configs`, a resolver): their types are named, nothing is called.
        (
            "client",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from aiohttp import TraceConfig",
        ),
        ("cli", "from .client import ConversationClient\nfrom .sandbox import Sandbox"),
        ("__init__", "from .client import ConversationClient"),
        ("sandbox", "import asyncio, time, random\nfrom aiohttp import web\nfrom aiohttp.web import Request"),
        ("sandbox", "from aiohttp.http import HttpProcessingError"),
        ("_retry", "from random import Random\ndef delay(rng: Random) -> float: return rng.random()"),
        ("_retry", "if TYPE_CHECKING:\n    import random\ndef f(rng: random.Random): ..."),
        ("models", "from datetime import datetime, UTC\nx = datetime.fromtimestamp(0, UTC)"),
    ],
)
def test_a_house_that_is_right_is_left_alone(module: str, source: str) -> None:
    assert findings({module: source}) == []
