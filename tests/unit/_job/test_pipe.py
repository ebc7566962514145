"""A pipe that is read in a thread of its own."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async._job.input import BadLine, InputError, Layout, Record, RecordReader
from sinch_conv_async._job.journal import Header
from sinch_conv_async._job.pipe import FromPipe

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = Header(
    project_id="sandbox-project", origin="http://127.0.0.1", input="-", fingerprint="", layout={}
)


def records(number: int) -> list[Record | BadLine]:
    rows = b"".join(b"ID%d,m\n" % row for row in range(number))
    return list(RecordReader(io.BytesIO(b"message_id,metadata\n" + rows), Layout()))


async def test_what_ends_the_reading_of_a_pipe_is_raised_whatever_it_is() -> None:
    def broken() -> Iterator[Record | BadLine]:
        yield from records(1)
        raise RecursionError("much too deep")

    pipe = FromPipe(broken())
    assert (await anext(pipe)).number == 1
    async with asyncio.timeout(30):  # it used to be waited for without end
        with pytest.raises(RecursionError, match="much too deep"):
            await anext(pipe)


async def test_a_pipe_hands_over_what_it_read_before_it_broke() -> None:
    def broken() -> Iterator[Record | BadLine]:
        yield from records(3)
        raise InputError("line 5: cannot be read")

    pipe = FromPipe(broken())
    assert [(await anext(pipe)).number for _ in range(3)] == [1, 2, 3]
    with pytest.raises(InputError, match="line 5"):
        await anext(pipe)
    with pytest.raises(InputError, match="line 5"):
        await anext(pipe)
