"""The input of a job: the items of an iterable or asynchronous iterable, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator

from ..errors import InvalidArgumentError

__all__ = ["Input"]


class Input:
    """An iterable or asynchronous iterable, and the number of items that it has ``given``.

    ``asks_again``: the input can be asked again after a SinchError, as a list of messages can.
    """

    def __init__(self, name: str, items: object) -> None:
        self._items: AsyncIterator[object] | Iterator[object]
        if isinstance(items, AsyncIterable):
            self._items = aiter(items)
        elif isinstance(items, Iterable):
            self._items = iter(items)
        else:
            raise InvalidArgumentError(
                f"{name} must be an iterable or asynchronous iterable, not {type(items).__name__}"
            )
        self.asks_again = bool(getattr(self._items, "asks_again", False))
        self.given = 0

    async def next(self) -> object:
        """The next item; StopAsyncIteration at the end."""
        if isinstance(self._items, AsyncIterator):
            item = await anext(self._items)
        else:
            # Let the task of the item before begin, because the input may block.
            await asyncio.sleep(0)
            try:
                item = next(self._items)
            except StopIteration:
                raise StopAsyncIteration from None
            except StopAsyncIteration as error:
                # This must not look like the end of the input. Python does the same for
                # StopIteration in a generator (PEP 479).
                raise RuntimeError("the input raised StopAsyncIteration") from error
        self.given += 1
        return item

    async def aclose(self) -> None:
        """Close a generator, or an asynchronous iterator that has ``aclose``; a file stays open."""
        items, self._items = self._items, iter(())
        if isinstance(items, Generator):
            items.close()
        elif (aclose := getattr(items, "aclose", None)) is not None:
            await aclose()
