"""Put on PYTHONPATH, it gives every event loop of a process and of its children the kind that
EVENT_LOOP names.

``asyncio.run``, ``asyncio.Runner`` and pytest-asyncio all make their loops by
``asyncio.events.new_event_loop``. Event loop policies, the other way, are deprecated from Python
3.14 on.
"""

from __future__ import annotations

import asyncio
import os

if os.environ.get("EVENT_LOOP") == "uvloop":
    import uvloop

    asyncio.new_event_loop = asyncio.events.new_event_loop = uvloop.new_event_loop
    uvloop.new_event_loop().close()  # opens the pipe that libuv keeps for the whole process
elif os.environ.get("EVENT_LOOP") == "eager":
    plain = asyncio.events.new_event_loop

    def eager() -> asyncio.AbstractEventLoop:
        loop = plain()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    asyncio.new_event_loop = asyncio.events.new_event_loop = eager
