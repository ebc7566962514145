"""How long and how often to measure, and against which server."""

import sys

import attrs


@attrs.frozen(kw_only=True)
class Plan:
    """Rounds and calls of a run; `short` asks only whether everything works, and for counts."""

    origin: str
    rounds: int
    calls: int
    concurrency: int
    short: bool
    sinch_python: str = sys.executable
