"""README's first example, run by an installed package against ``sinch-conv sandbox``:
``release_check.py README.rst``.

Not a test of pytest's: `nox -s release_check` runs it in an environment that has the wheel and
nothing of the tree.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

NEEDED = {
    "SINCH_PROJECT_ID",
    "SINCH_KEY_ID",
    "SINCH_KEY_SECRET",
    "SINCH_CONVERSATION_ORIGIN",
    "SINCH_AUTH_ORIGIN",
}
PATIENCE = 60  # seconds after which something hangs


def example(readme: str) -> str:
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:(?: {3}.*)?\n)+)", readme, re.MULTILINE)
    return next(code for block in blocks if "from_env()" in (code := textwrap.dedent(block)))


def main(readme: Path) -> None:
    command = Path(sys.executable).with_name("sinch-conv")
    sandbox = subprocess.Popen([command, "sandbox"], stdout=subprocess.PIPE, text=True)
    hangs = threading.Timer(PATIENCE, sandbox.kill)
    hangs.start()
    try:
        assert sandbox.stdout is not None
        told: dict[str, str] = {}
        for line in sandbox.stdout:
            told |= dict(re.findall(r"(SINCH_[A-Z_]+)=(\S+)", line))
            if told.keys() >= NEEDED:
                break
        assert told.keys() >= NEEDED, f"the sandbox did not tell {NEEDED - told.keys()}"
        run = subprocess.run(
            [sys.executable, "-I", "-W", "error", "-c", example(readme.read_text("utf-8"))],
            env={**os.environ, "SINCH_CONVERSATION_REGION": "us", **told},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip(), "the example printed nothing"
        print(run.stdout, end="")
        sandbox.send_signal(signal.SIGINT)
        assert sandbox.wait(PATIENCE) in {0, 130}
    finally:
        hangs.cancel()
        sandbox.kill()
        sandbox.wait()
        if sandbox.stdout:
            sandbox.stdout.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
