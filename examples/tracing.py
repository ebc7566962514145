"""OpenTelemetry: a span for every call and, under it, one for every HTTP exchange.

    python examples/tracing.py MESSAGE_ID

The instrumentation records method, URL and status. It does not record headers by default; they hold
the token.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import StatusCode

from sinch_conv_async import ConversationClient, SessionManager


class OnSpan(logging.Handler):
    """Copies the log record of an ended call to the span around the call.

    The record is made in the caller's own task, so the current span is the call's.
    """

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "sinch_conv_async", {})
        if "outcome" in fields:
            span = trace.get_current_span()
            for name in ("attempts", "waited", "outcome"):
                span.set_attribute(f"sinch.{name}", fields[name])
            if fields["outcome"] != "succeeded":
                span.set_status(StatusCode.ERROR, fields["outcome"])


async def main(provider: TracerProvider, message_id: str) -> None:
    log = logging.getLogger("sinch_conv_async")
    log.setLevel(logging.DEBUG)  # a record for each call that ended
    handler = OnSpan()
    log.addHandler(handler)
    tracer = provider.get_tracer("examples")
    trace_config = create_trace_config(tracer_provider=provider)
    async with (
        SessionManager(trace_configs=[trace_config]) as manager,
        ConversationClient.from_env(session_manager=manager) as client,
    ):
        with tracer.start_as_current_span("update message metadata"):
            await client.update_message_metadata(message_id, '{"ticket": "closed"}')
    log.removeHandler(handler)


if __name__ == "__main__":
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    asyncio.run(main(provider, sys.argv[1]))
    provider.shutdown()
