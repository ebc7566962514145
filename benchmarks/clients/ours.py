"""This project's client with everything on: token cache, admission, pacing, retry, typed answers.

Variant ``plain`` hides orjson, so that a machine that has it measures the core; variant
``speedups`` requires it. Variant ``session`` is ``plain`` with requests that go by aiohttp's
session, as they do with trace hooks and with an aiohttp that the fast route does not know.
"""

import contextlib
import importlib
import sys
from collections.abc import AsyncIterator

from benchmarks import sample
from benchmarks.clients import workload

# The pacer runs as it always does, only so fast that the server decides.
UNREACHED_RATE = 1_000_000


def choose_json(variant: str) -> None:
    """Decides, before the package is imported, which JSON library it will find."""
    if variant == "speedups":
        importlib.import_module("orjson")
    else:
        sys.modules["orjson"] = None  # type: ignore[assignment]  # documented: makes the import fail


def client_options(origin: str, rate_limit: float = UNREACHED_RATE) -> dict[str, object]:
    """Keywords of a client that talks to the benchmark's server."""
    return {
        "project_id": sample.PROJECT_ID,
        "key_id": sample.KEY_ID,
        "key_secret": sample.KEY_SECRET,
        "conversation_origin": origin,
        "auth_origin": origin,
        "rate_limit": rate_limit,
    }


@contextlib.asynccontextmanager
async def opened(given: workload.Arguments) -> AsyncIterator[workload.Call]:
    choose_json(given.variant)
    import aiohttp

    from sinch_conv_async import ConversationClient, SessionManager

    options = client_options(given.origin, given.rate or UNREACHED_RATE)
    traces = [aiohttp.TraceConfig()] if given.variant == "session" else []
    async with (
        SessionManager(trace_configs=traces) as manager,
        ConversationClient(**options, session_manager=manager) as client,  # type: ignore[arg-type]  # keywords of several types
    ):
        yield client.update_message_metadata


if __name__ == "__main__":
    workload.run(opened, distributions=["sinch-conv-async", "aiohttp"])
