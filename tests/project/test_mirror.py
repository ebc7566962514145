"""Where a module's tests stand: in the file of its name in tests/unit, or where this file says."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "sinch_conv_async"

# Modules without a file of their own in tests/unit, and the file that has their tests.
ELSEWHERE = {
    # They only import names.
    "*__init__.py": "tests/project/test_exported_members.py",
    # A command is tested as a process.
    "__main__.py": "tests/whole/test_cli.py",
    "cli/jobs.py": "tests/whole/jobs/test_command.py",
    "cli/read.py": "tests/whole/test_cli_read.py",
    "cli/sandbox.py": "tests/whole/test_sandbox_elsewhere.py",
    "cli/*.py": "tests/whole/test_cli.py",
    # They send, so that their tests need a server.
    "_bulk/*.py": "tests/whole/test_bulk.py",
    "_core/send.py": "tests/whole/test_send.py",
    "reading.py": "tests/whole/test_reading.py",
    # Parts of the manager that have no behaviour without it.
    "_core/binding.py": "tests/whole/test_calls.py",
    "_core/log.py": "tests/whole/test_secrets.py",
    "_core/stats.py": "tests/whole/load/test_long_life.py",
    # They hold no code that runs by itself: protocols, and values that others fill.
    "_core/seams.py": "tests/project/test_floors.py",
    "_job/ledger.py": "tests/unit/_job/test_journal.py",
    "_job/local.py": "tests/whole/test_cli.py",
    "_job/progress.py": "tests/unit/cli/test_progress.py",
    "_job/report.py": "tests/unit/_job/test_failures.py",
    "_wire/failure.py": "tests/unit/_core/test_retry.py",
    # What tokens and shares go through is a server, or the reference that all are compared with.
    "fleet/_seal.py": "tests/whole/fleet/test_stores.py",
    "fleet/conformance.py": "tests/whole/fleet/test_stores.py",
    "fleet/memory.py": "tests/unit/fleet/test_fleet.py",
    "fleet/postgres.py": "tests/whole/fleet/test_store_faults.py",
    "fleet/redis.py": "tests/whole/fleet/test_store_faults.py",
    # Jobs are tested with a real PostgreSQL, whichever of their files does the work.
    "jobs/*.py": "tests/whole/jobs/test_jobs.py",
    # The sandbox is tested by requests, whichever of its files answers.
    "sandbox/listing.py": "tests/unit/sandbox/test_reading.py",
    "sandbox/pytest.py": "tests/whole/test_sandbox_elsewhere.py",
    "sandbox/*.py": "tests/unit/sandbox/test_sandbox.py",
}


def test_each_module_has_its_tests_where_one_looks_for_them() -> None:
    modules = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    used, without = set(), []
    for module in modules:
        mirror = ROOT / "tests/unit" / module.parent / f"test_{module.name.lstrip('_')}"
        if mirror.exists():
            continue
        pattern = next((known for known in ELSEWHERE if fnmatch(str(module), known)), None)
        used.add(pattern)
        if pattern is None:
            without.append(str(module))
    assert without == []
    assert set(ELSEWHERE) - used == set(), "these have a file of their own by now"
    assert [tests for tests in ELSEWHERE.values() if not (ROOT / tests).exists()] == []
