"""Runs a module in a process of its own and reads the line of JSON that it prints.

Knows nothing of what is measured, only that measuring happens elsewhere, in turns, and that a
client may be missing.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# A whole measurement lasts seconds, the longest (a million updates) a few minutes: more is a hang.
_PATIENCE = 1_800

Result = dict[str, Any]


def run(module: str, *arguments: object, python: str = sys.executable) -> Result:
    """What ``python -m module`` printed last; raises `RuntimeError` with its stderr
    when it failed.
    """
    return run_python("-m", module, *arguments, python=python)


def run_python(
    *arguments: object, python: str = sys.executable, variables: Mapping[str, str] | None = None
) -> Result:
    """What that command line of Python printed last, in the project's directory,
    without proxies.
    """
    # requests and httpx believe the environment's proxies, and would measure those.
    environment = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    }
    done = subprocess.run(
        [python, *map(str, arguments)],
        cwd=ROOT,
        env=environment | dict(variables or {}),
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, arguments))} failed:\n{done.stderr.strip()[-2000:]}"
        )
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def interleaved(rounds: int, jobs: Mapping[str, Callable[[], Result]]) -> dict[str, list[Result]]:
    """Runs the jobs in turns (A B C A B C), so that a machine that slows down slows all of them.

    What is missing is not tried again, and has no results.
    """
    results: dict[str, list[Result]] = {name: [] for name in jobs}
    missing: set[str] = set()
    for number in range(rounds):
        for name, job in jobs.items():
            if name in missing:
                continue
            print(f"  round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            result = job()
            if "missing" in result:
                print(f"    missing: {result['missing']}", file=sys.stderr, flush=True)
                missing.add(name)
            else:
                results[name].append(result)
    return results


def median(results: list[Result], key: str) -> float | None:
    """The median of one figure over the rounds; None where there is none."""
    found: list[float] = [result[key] for result in results]
    return statistics.median(found) if found else None


def ratio(results: list[Result], base: list[Result], key: str) -> float | None:
    """The median over the rounds of each round's ratio.

    Neighbours in time are compared with each other, which a slow minute of the machine disturbs
    less than it would disturb a ratio of two medians.
    """
    if not results or not base:
        return None
    found: list[float] = [one[key] / other[key] for one, other in zip(results, base, strict=True)]
    return statistics.median(found)
