"""The command ``sinch-conv``, also as ``python -m sinch_conv_async``. The client itself needs none of what this needs."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    try:
        from .cli import run
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "tqdm"):
            raise
        print(f"sinch-conv needs {missing.name}: pip install 'sinch-conv-async[cli]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(run())


if __name__ == "__main__":
    main()
