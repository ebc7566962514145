"""From the bytes of an answer to a typed message, beside reading its JSON alone and beside pydantic
and msgspec.

Knows no client and no server. A reader of its own runs in a process of its own.
"""

import datetime
import enum
import functools
import json
import sys
import time
import timeit
from collections.abc import Callable

from benchmarks import process, sample
from benchmarks.clients import ours as our_client
from benchmarks.clients import workload
from benchmarks.figures import Goal, Measurement, Plot, number
from benchmarks.plan import Plan

Reader = Callable[[bytes], object]


def measure(plan: Plan) -> Measurement:
    """Microseconds an answer, with ratios against `json.loads`."""
    loops = 2_000 if plan.short else 50_000
    jobs = {
        name: functools.partial(process.run, "benchmarks.conversion", name, loops)
        for name in _READERS
    }
    results = process.interleaved(plan.rounds, jobs)
    base = results["json.loads"]
    return Measurement(
        name="conversion",
        title="From bytes to ConversationMessage",
        how=(
            f"{loops:,} answers of {len(sample.answer())} bytes, each with its own id, time and metadata; medians of "
            f"{plan.rounds} interleaved rounds. The pydantic model keeps what it does not know, as ours does; "
            "the msgspec structure drops unknown fields and refuses unknown enum values, since it cannot keep them."
        ),
        columns=("reader", "µs", "ratio"),
        rows=[
            (
                name,
                number(process.median(found, "us"), 2),
                number(process.ratio(found, base, "us"), 2),
            )
            for name, found in results.items()
        ],
        goals=[
            Goal(
                text="an answer's bytes to ConversationMessage against json.loads",
                figure=process.ratio(results["sinch-conv-async"], base, "us"),
                bound=2.5,
            )
        ],
        plot=Plot(
            label="µs an answer",
            series={
                name: [(0.0, value)]
                for name, found in results.items()
                if (value := process.median(found, "us")) is not None
            },
        ),
        raw={"rounds": results},
    )


def _ours(variant: str) -> Reader:
    our_client.choose_json(variant)
    # Private, and named here only: what a call costs between the last byte received and the value
    # returned.
    from sinch_conv_async import ConversationMessage
    from sinch_conv_async._wire.structure import structure_message

    # It answers with a sentence where it could not read: no such answer may be taken for a quick
    # one.
    message = structure_message(sample.answer().encode())
    if not isinstance(message, ConversationMessage):
        raise RuntimeError(f"the sample answer was not understood: {message}")
    return structure_message


def _json() -> Reader:
    return json.loads


def _orjson() -> Reader:
    import orjson

    return orjson.loads


class _Channel(enum.StrEnum):
    WHATSAPP = "WHATSAPP"
    RCS = "RCS"
    SMS = "SMS"
    MESSENGER = "MESSENGER"
    VIBERBM = "VIBERBM"
    MMS = "MMS"
    INSTAGRAM = "INSTAGRAM"
    TELEGRAM = "TELEGRAM"
    KAKAOTALK = "KAKAOTALK"
    KAKAOTALKCHAT = "KAKAOTALKCHAT"
    LINE = "LINE"
    WECHAT = "WECHAT"
    APPLEBC = "APPLEBC"


class _Direction(enum.StrEnum):
    TO_APP = "TO_APP"
    TO_CONTACT = "TO_CONTACT"


class _ProcessingMode(enum.StrEnum):
    CONVERSATION = "CONVERSATION"
    DISPATCH = "DISPATCH"


def _pydantic() -> Reader:
    import pydantic

    class ChannelIdentity(pydantic.BaseModel, extra="allow", frozen=True):
        identity: str
        channel: _Channel | str
        app_id: str | None = None

    class Message(pydantic.BaseModel, extra="allow", frozen=True):
        id: str | None = None
        accept_time: datetime.datetime | None = None
        channel_identity: ChannelIdentity | None = None
        contact_id: str | None = None
        conversation_id: str | None = None
        direction: _Direction | str | None = None
        metadata: str | None = None
        injected: bool | None = None
        sender_id: str | None = None
        processing_mode: _ProcessingMode | str | None = None

    return Message.model_validate_json


def _msgspec() -> Reader:
    import msgspec

    # Built by `defstruct` because annotations of local classes are resolved among the module's
    # names.
    identity = msgspec.defstruct(
        "ChannelIdentity",
        [("identity", str), ("channel", _Channel), ("app_id", str | None, None)],
        frozen=True,
    )
    message = msgspec.defstruct(
        "Message",
        [
            ("id", str | None, None),
            ("accept_time", datetime.datetime | None, None),
            ("channel_identity", identity | None, None),
            ("contact_id", str | None, None),
            ("conversation_id", str | None, None),
            ("direction", _Direction | None, None),
            ("metadata", str | None, None),
            ("injected", bool | None, None),
            ("sender_id", str | None, None),
            ("processing_mode", _ProcessingMode | None, None),
        ],
        frozen=True,
    )
    return msgspec.json.Decoder(message).decode


_READERS: dict[str, Callable[[], Reader]] = {
    "json.loads": _json,
    "sinch-conv-async": functools.partial(_ours, "plain"),
    "orjson.loads": _orjson,
    "sinch-conv-async [speedups]": functools.partial(_ours, "speedups"),
    "pydantic": _pydantic,
    "msgspec": _msgspec,
}


def _bodies(count: int) -> list[bytes]:
    """Answers that differ where real ones do: a reader that remembers the last one
    gains nothing.
    """
    began = datetime.datetime(2026, 3, 18, 9, 41, 27, 318204, tzinfo=datetime.UTC)
    bodies = []
    for at, message_id in enumerate(workload.message_ids(count)):
        message = json.loads(sample.answer(message_id))
        moment = began + at * datetime.timedelta(seconds=1, microseconds=7)
        message["accept_time"] = moment.isoformat().replace("+00:00", "Z")
        message["metadata"] = sample.METADATA.replace("48213", str(48213 + at))
        bodies.append(json.dumps(message, separators=(",", ":")).encode())
    return bodies


def main() -> None:
    """A reader's process."""
    name, loops = sys.argv[1], int(sys.argv[2])
    with workload.missing_is_reported():
        read = _READERS[name]()
        bodies = _bodies(1_000)

        def read_all() -> None:
            for body in bodies:
                read(body)

        read_all()
        turns = max(1, loops // len(bodies) // 5)
        # The least of five, as timeit's documentation advises: what is above it is the machine's
        # doing.
        best = min(timeit.repeat(read_all, number=turns, repeat=5, timer=time.process_time))
        print(json.dumps({"us": best / turns / len(bodies) * 1e6}))


if __name__ == "__main__":
    main()
