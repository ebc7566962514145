"""Sinch's own SDK, which has no asynchronous client: its concurrency is a number of threads.

One `SinchClient` serves all threads, as its documentation has it. It takes no origin for loopback,
so the two of its configuration are set after construction.
"""

from concurrent.futures import ThreadPoolExecutor

from benchmarks import sample
from benchmarks.clients import workload


def main() -> None:
    given = workload.arguments()
    from sinch import SinchClient

    client = SinchClient(
        project_id=sample.PROJECT_ID,
        key_id=sample.KEY_ID,
        key_secret=sample.KEY_SECRET,
        conversation_region="us",
    )
    client.configuration.conversation_origin = given.origin
    client.configuration.auth_origin = given.origin

    def call(message_id: str) -> object:
        return client.conversation.messages.update(message_id=message_id, metadata=sample.METADATA)

    # Several milliseconds a call: a warm-up as long as the others' would only be waiting.
    warmup = max(20, 2 * given.concurrency)
    with ThreadPoolExecutor(given.concurrency) as threads:
        for _ in threads.map(call, workload.message_ids(warmup)):
            pass
        with workload.Stopwatch() as stopwatch:
            for _ in threads.map(call, workload.message_ids(given.calls)):
                pass
    workload.report(
        workload.result(given.calls, stopwatch), distributions=["sinch", "requests", "pydantic"]
    )


if __name__ == "__main__":
    with workload.missing_is_reported():
        main()
