"""OpenTelemetry: a span for every HTTP exchange, through `trace_configs`.

    python examples/tracing.py MESSAGE_ID

The instrumentation records method, URL and status. It does not record headers unless
told to: they hold the token.
"""

from __future__ import annotations

import asyncio
import sys

from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from sinch_conv_async import ConversationClient, SessionManager


async def main(provider: TracerProvider, message_id: str) -> None:
    tracer = provider.get_tracer("examples")
    trace_config = create_trace_config(tracer_provider=provider)
    async with (
        SessionManager(trace_configs=[trace_config]) as manager,
        ConversationClient.from_env(session_manager=manager) as client,
    ):
        with tracer.start_as_current_span("close ticket"):
            await client.update_message_metadata(message_id, '{"ticket": "closed"}')


if __name__ == "__main__":
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    asyncio.run(main(provider, sys.argv[1]))
    provider.shutdown()
