"""The table of a run, as text and as a page of the documentation."""

from __future__ import annotations

import datetime
import os
import platform
from typing import TYPE_CHECKING

from tests.whole.faults.matrix import COLUMNS

if TYPE_CHECKING:
    from tests.whole.faults.matrix import Table

_HEAD = """\
Faults
======

Each row is a fault of a network, a service or a caller. Where a program can cause it, that program
runs: nginx, haproxy, tinyproxy, nftables and network namespaces, libfaketime, prlimit. Otherwise a
scripted socket does it. ``tests/whole/faults`` has a test for each row.

Each row first shows that the fault does harm. *naive* is a plain aiohttp loop as people write it,
with a token, a semaphore and ``gather``. Its failures are calls that raised, that never ended, that
were given somebody else's answer, or that were reported as done although the server's log has no
trace of them. Then this client meets the same fault. *ours* counts the calls that did not succeed,
with the typed errors in which they ended. What was applied is read from the server's log, never
from the client.

In every row, each call ended exactly once, and no answer was given to another call. The server had
done what was reported as done, and had not received what was reported as not sent. Retries kept to
their budget. No task, thread, descriptor or slot was left behind. *single* are calls of
``update_message_metadata``, which end in success or a typed error. *bulk* is ``update_many``, which
loses nothing: every update gets an outcome.

Attempts per call are HTTP exchanges that were begun, including those that no server saw. Seconds to
recover are counted from the end of the fault to the next update that was applied.

"""


def text(table: Table) -> str:
    """For a terminal."""
    lines = [COLUMNS, *(row.cells for row in table.rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in (0, 1, 4) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def rest(table: Table) -> str:
    """For docs/."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    lines = [
        _HEAD + f"The run of {today} ({machine}):",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
    ]
    for cells in (COLUMNS, *(row.cells for row in table.rows)):
        for at, cell in enumerate(cells):
            lines.append(f"   {'* ' if at == 0 else '  '}- {cell}".rstrip())
    return "\n".join(lines) + "\n"
