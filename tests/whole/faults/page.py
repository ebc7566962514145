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

What a network and a service do to a client, done by programs that are not this project's where there are any: nginx, haproxy,
tinyproxy, nftables and network namespaces, libfaketime, prlimit; by scripted sockets where no program would do it. ``tests/whole/faults``
has a test for each row.

Each row first shows that the fault bites: *naive* is a plain aiohttp loop as people write it, with a token, a semaphore and
``gather``, and its failures are calls that raised, never ended, were given somebody else's answer, or were reported as done when the server's own log knows
nothing of it. Then this client is put through the same: *ours* counts the calls that did not succeed, with the typed errors in which they
ended. What was applied is taken from the log of the server, never from the client.

In every row, each call ended exactly once; no answer was given to another call; what was reported as done the server had done; what was
reported as not sent had not arrived; retries kept to their budget; and no task, thread, descriptor or slot was left behind. *single* are calls of
``update_message_metadata``, which end in success or a typed error; *bulk* is ``update_many``, which loses nothing: every update gets an outcome.

Attempts per call are HTTP exchanges that were begun, those that no server ever saw included. Seconds to recover are counted from the end of
the fault to the next update that got through.

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
