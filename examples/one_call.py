"""Logs, a trace and metrics of one call whose first attempt is answered 503.

    python examples/one_call.py

It needs no account: it starts a sandbox.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from json_logging import JsonFormatter
from metrics import SessionCollector
from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from prometheus_client import CollectorRegistry, generate_latest
from tracing import OnSpan

from sinch_conv_async import ConversationClient, SessionManager
from sinch_conv_async.sandbox import Sandbox

MESSAGE = "01FC66621XXXXX119Z8PMV1QPA"


def line(span: ReadableSpan) -> str:
    under = "" if span.parent is None else "  "
    attributes = dict(span.attributes or {})
    return f"{under}{span.name} {span.status.status_code.name} {attributes}\n"


async def main() -> None:
    log = logging.getLogger("sinch_conv_async")
    log.setLevel(logging.DEBUG)
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(JsonFormatter())
    log.addHandler(output)
    log.addHandler(OnSpan())
    log.propagate = False
    provider = TracerProvider()
    exporter = ConsoleSpanExporter(formatter=line)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_config = create_trace_config(tracer_provider=provider)
    tracer = provider.get_tracer("examples")
    async with (
        Sandbox() as sandbox,
        SessionManager(trace_configs=[trace_config]) as manager,
        ConversationClient(
            **sandbox.client_options(), session_manager=manager
        ) as client,
    ):
        sandbox.add_message(MESSAGE)
        sandbox.fail_next(503)
        with tracer.start_as_current_span("update message metadata"):
            await client.update_message_metadata(MESSAGE, '{"ticket": "closed"}')
        registry = CollectorRegistry()
        registry.register(SessionCollector(manager))
        for text in generate_latest(registry).decode().splitlines():
            if not text.startswith("#"):
                print(text)


if __name__ == "__main__":
    asyncio.run(main())
