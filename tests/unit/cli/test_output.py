"""What a command says, on streams that cannot take everything."""

from __future__ import annotations

import errno
import io
import json
import os

import pytest

from sinch_conv_async.cli import output

TEXT = "Straße → 🚚 \udcff"


class Stream(io.TextIOWrapper):
    """A standard stream with an encoding, and a problem where there is one."""

    def __init__(self, encoding: str = "utf-8", problem: int | None = None) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self.problem = problem

    def flush(self) -> None:
        if self.problem is not None:
            raise OSError(self.problem, os.strerror(self.problem))
        super().flush()

    def close(self) -> None:
        self.problem = None
        super().close()

    @property
    def written(self) -> str:
        self.problem = None
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "Straße → 🚚 \\udcff\n"),
        ("latin-1", "Straße \\u2192 \\U0001f69a \\udcff\n"),
        ("ascii", "Stra\\xdfe \\u2192 \\U0001f69a \\udcff\n"),
    ],
)
def test_a_letter_that_the_encoding_lacks_is_escaped(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = Stream(encoding), Stream(encoding)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    assert output.put(TEXT)
    output.say(TEXT)
    assert (out.written, err.written) == (shown, shown)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("text", [TEXT, "plain é", "\x1b[2J", "\x9b2J"])
def test_json_stays_json(encoding: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Stream(encoding)
    monkeypatch.setattr("sys.stdout", out)
    assert output.put_json({"text": text}, indent=2)
    assert json.loads(out.written) == {"text": text}
    assert out.written.replace("\n", "").isprintable()


def test_a_reader_that_has_left_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Stream(problem=errno.EPIPE))
    assert not output.put("text")
    monkeypatch.setattr("sys.stdout", None)
    assert not output.put("text")
    assert not output.put_json({})


def test_a_standard_output_without_room_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Stream(problem=errno.ENOSPC))
    with pytest.raises(output.Ended, match="No space left on device; all is sent") as ended:
        output.put("text", done="; all is sent")
    assert ended.value.exit_code == 1
    with pytest.raises(output.Ended) as ended:
        output.put("text", code=3)
    assert ended.value.exit_code == 3


def test_a_standard_error_that_takes_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Stream(problem=errno.ENOSPC), None, io.StringIO()):
        if isinstance(stream, io.StringIO):
            stream.close()
        monkeypatch.setattr("sys.stderr", stream)
        output.say("text")
