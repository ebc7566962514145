"""The command ``sinch-conv``, also as ``python -m sinch_conv_async``."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["main"]


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    code = run()
    for stream in (sys.stdout, sys.stderr):
        # Closed from the beginning it is None.
        if stream is not None:
            empty(stream)
    sys.exit(code)


def run() -> int:
    """Runs the command line, and returns its exit code."""
    try:
        from .cli import run
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "tqdm"):
            raise
        with contextlib.suppress(OSError):
            print(
                f"sinch-conv needs {missing.name}: pip install 'sinch-conv-async[cli]'",
                file=sys.stderr,
            )
        return 2
    return run()


def empty(stream: TextIO) -> None:
    """Empty the stream's buffer, and discard it if it cannot be written.

    Otherwise Python does this when the process ends, and replaces the exit code by 120 if it fails.
    """
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


if __name__ == "__main__":
    main()
