"""How long the package takes to import, beside the four packages it imports."""

import functools
import tempfile

from benchmarks import process
from benchmarks.figures import Goal, Measurement, Plot, number
from benchmarks.plan import Plan

# CPU rather than wall: reading from a cold disk would measure the disk, and the first, unmeasured
# round warms it.
_PROGRAM = """
import json, sys, time
if {plain!r}:
    sys.modules["orjson"] = None
began = time.process_time()
try:
    {statement}
except ImportError as error:
    print(json.dumps({{"missing": str(error)}}))
else:
    print(json.dumps({{"ms": 1e3 * (time.process_time() - began), "modules": len(sys.modules)}}))
"""

PACKAGES = "import aiohttp, attrs, cattrs, yarl"
PACKAGES_ORJSON = PACKAGES + ", orjson"
# A name as well: a package that put its imports off until a name is used would only move the cost.
OURS = "from sinch_conv_async import ConversationClient"
OURS_ORJSON = OURS + ", orjson installed"


def measure(plan: Plan) -> Measurement:
    """Fresh interpreters, in turns."""
    rounds = 2 if plan.short else max(15, plan.rounds)
    wanted = {
        PACKAGES: (PACKAGES, True),
        OURS: (OURS, True),
        PACKAGES_ORJSON: (PACKAGES_ORJSON, False),
        OURS_ORJSON: (OURS, False),
        "import httpx": ("import httpx", True),
    }
    with tempfile.TemporaryDirectory(prefix="sinch-bench-") as directory:
        # Installed packages come compiled and a source tree may not: here everything is, after the
        # first round.
        variables = {"PYTHONPYCACHEPREFIX": directory, "PYTHONDONTWRITEBYTECODE": ""}
        jobs = {
            name: functools.partial(
                process.run_python,
                "-c",
                _PROGRAM.format(statement=statement, plain=plain),
                variables=variables,
            )
            for name, (statement, plain) in wanted.items()
        }
        process.interleaved(1, jobs)
        results = process.interleaved(rounds, jobs)
    base = results[PACKAGES]
    # What else the machine does only ever adds to the time of one import.
    least = {name: min(run["ms"] for run in found) for name, found in results.items() if found}
    return Measurement(
        name="imports",
        title="Import",
        how=f"CPU ms in a fresh interpreter with compiled files in place; {rounds} interleaved rounds.",
        columns=("statement", "median ms", "least ms", "ratio of medians", "modules loaded"),
        rows=[
            (
                name,
                number(process.median(found, "ms")),
                number(least.get(name)),
                number(process.ratio(found, base, "ms"), 2),
                number(process.median(found, "modules"), 0),
            )
            for name, found in results.items()
        ],
        goals=[
            Goal(
                text="least CPU of an import against its four packages, orjson with both",
                figure=least[OURS_ORJSON] / least[PACKAGES_ORJSON]
                if {OURS_ORJSON, PACKAGES_ORJSON} <= set(least)
                else None,
                bound=1.10,
            )
        ],
        plot=Plot(
            label="import, ms of CPU",
            series={
                name: [(0.0, value)]
                for name, found in results.items()
                if (value := process.median(found, "ms")) is not None
            },
        ),
        raw={"rounds": results},
    )
