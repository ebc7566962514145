"""Programs of others that tests run: where they are, and which are missing on this machine.

The list stands in ``.ci/run``, which installs them. ``python -m tests.programs`` prints the missing
ones, one a line.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from pathlib import Path

_LIST = Path(__file__).parent.parent / ".ci" / "run"

# Folders of servers on Debian, which are not on a plain user's PATH. `.ci/run` makes it empty to
# test a machine without servers.
PLACES = os.environ.get("PROGRAMS_ALSO_IN", "/usr/sbin:/sbin:/usr/lib/postgresql/*/bin")


def listed() -> dict[str, str]:
    """Each program, and the Debian package that brings it."""
    found = re.search(r"^programs='\n(.*?)^'", _LIST.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"{_LIST} has no list of programs"
    lines = (line.split() for line in found.group(1).splitlines())
    return {words[0]: words[1] for words in lines if words}


def path() -> str:
    """PATH, followed by the folders of servers."""
    places = (place for pattern in PLACES.split(os.pathsep) for place in sorted(glob.glob(pattern)))
    return os.pathsep.join([os.environ.get("PATH", ""), *places])


def missing(*names: str) -> list[str]:
    """Those of the names that are not on this machine."""
    return [name for name in names if shutil.which(name, path=path()) is None]


if __name__ == "__main__":
    print(*missing(*listed()), sep="\n")
