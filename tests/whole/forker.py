"""Runs jobs without starting a Python for each: imports the command line once, and forks for every list of arguments.

``python -m tests.whole.forker``: reads such lists, as JSON, from standard input, a line each.
Writes the child's process id, and, when the child has ended, its wait status, a line each.
"""

from __future__ import annotations

import json
import os
import sys

import sinch_conv_async.cli  # noqa: F401  # every child finds it imported
from sinch_conv_async.__main__ import main

for line in sys.stdin:
    if (child := os.fork()) == 0:
        sys.argv[1:] = json.loads(line)
        main()
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
