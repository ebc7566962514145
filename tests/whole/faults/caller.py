"""Calls made by a process of its own, so that what is done to it is done to nobody else:
``python -m tests.whole.faults.caller how JSON``.

Writes what became of them to standard output, pickled: a `Side`, an untyped error as the name of
its type.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import attrs

from sinch_conv_async import SinchError
from tests.commands import unmeasured
from tests.whole.faults import naive
from tests.whole.faults.matrix import Side, bulk, single, updates
from tests.whole.faults.programs import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class UntypedError(Exception):
    """In the place of an error of aiohttp's, which may not pickle."""


class Caller:
    """The other end of such a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def side(self) -> Side:
        """Waits for it to end."""
        output, _ = await self._process.communicate()
        assert self._process.returncode == 0, f"the caller ended with {self._process.returncode}"
        side = pickle.loads(output)
        assert isinstance(side, Side)
        return side


@contextlib.asynccontextmanager
async def caller(
    how: str,
    options: dict[str, Any],
    *,
    calls: int,
    family: str,
    environment: dict[str, str] | None = None,
    before: Sequence[str] = (),
    **keywords: Any,
) -> AsyncIterator[Caller]:
    """``how``: ``naive``, ``cached``, ``bulk`` or ``single``. ``keywords`` are theirs. ``before``:
    what the command is put behind.
    """
    given = json.dumps({"options": options, "calls": calls, "family": family, **keywords})
    process = await asyncio.create_subprocess_exec(
        *(*before, sys.executable, "-m", "tests.whole.faults.caller", how, given),
        cwd=ROOT,
        env={**unmeasured(os.environ), **(environment or {})},
        stdout=subprocess.PIPE,
    )
    try:
        yield Caller(process)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def main() -> None:
    how, given = sys.argv[1], json.loads(sys.argv[2])
    options, calls = given.pop("options"), updates(given.pop("calls"), family=given.pop("family"))
    run = {"naive": naive.loop, "cached": naive.cached, "bulk": bulk, "single": single}[how]
    side = await run(options, calls, **given)
    side.ended = [
        attrs.evolve(end, error=UntypedError(type(end.error).__name__))
        if end.error is not None and not isinstance(end.error, SinchError)
        else end
        for end in side.ended
    ]
    sys.stdout.buffer.write(pickle.dumps(side))


if __name__ == "__main__":
    # Pickled by the name that whoever reads it imports it by.
    from tests.whole.faults import caller as this

    asyncio.run(this.main())
