"""Tries the mutants that survived mutmut once more, each in a process of its own, and shows what is
left: ``python -m tests.project.survivors``.

Mutmut imports the package once and forks for each mutant. What runs while it is imported (the hooks
that are registered, the fields that are declared) is not run again in the fork, so a mutant of it
survives there whatever the tests say.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MUTANTS = ROOT / "mutants"
PATIENCE = 120  # seconds; the tests take six, and a mutant that never ends is found out


def survivors() -> list[str]:
    """The names of the mutants that no test has noticed."""
    results = subprocess.run(
        [sys.executable, "-m", "mutmut", "results"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return re.findall(r"^\s*(\S+): survived$", results.stdout, re.MULTILINE)


def killed(mutant: str, tests: list[str]) -> bool:
    """Whether a test fails with the mutant in place from the first line of the import on."""
    # The same examples each time: an example that one mutant failed with would be kept, and tried
    # with the next.
    variables = {
        "MUTANT_UNDER_TEST": mutant,
        "PYTHONPATH": str(MUTANTS),
        "HYPOTHESIS_PROFILE": "ci",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        run = subprocess.run(
            command, cwd=MUTANTS, env=os.environ | variables, capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return True
    return run.returncode != 0


def difference(mutant: str) -> str:
    """The lines that the mutant takes away and puts in."""
    shown = subprocess.run(
        [sys.executable, "-m", "mutmut", "show", mutant],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(re.findall(r"^[-+](?![-+]{2}).*$", shown.stdout, re.MULTILINE))


def main() -> int:
    """Exit code 0 when none is left, else 1; 2 when the tests fail with no mutant in place."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
    tests = options["pytest_add_cli_args_test_selection"]
    if killed("", tests):
        print("the tests fail without a mutant", file=sys.stderr)
        return 2
    found = survivors()
    left = 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for mutant, dead in zip(
            found, threads.map(lambda mutant: killed(mutant, tests), found), strict=True
        ):
            if not dead:
                left += 1
                print(mutant, difference(mutant), sep="\n", end="\n\n", flush=True)
    print(f"{len(found)} survived the fork, {left} of them a process of their own")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
