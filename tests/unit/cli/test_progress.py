"""How far a job is, as it is shown: on a terminal, in a log, and where nobody can be shown anything
any more.
"""

from __future__ import annotations

import io

import pytest

from sinch_conv_async.cli.progress import Bar, Lines, Quiet, Rate, duration, progress_on
from tests.servers import Time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (5.4, "0:05"),
        (59.6, "1:00"),
        (750, "12:30"),
        (6250, "1:44:10"),
        (2 * 86400 + 3 * 3600, "2 d 3:00:00"),
    ],
)
def test_a_duration_is_read_off_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_rate_is_that_of_the_last_half_minute() -> None:
    rate = Rate()
    assert rate.per_second() == 0.0
    rate.see(0.0, 1000)
    rate.see(0.0, 2000)
    assert rate.per_second() == 0.0
    for second in range(1, 101):
        rate.see(
            float(second), 2000 + (100 * second if second <= 50 else 5000 + 10 * (second - 50))
        )
    assert rate.per_second() == pytest.approx(10.0)


def lines(total: int | None) -> tuple[Lines, io.StringIO, Time]:
    stream, clock = io.StringIO(), Time(100.0)
    progress = Lines(stream, clock=clock)
    progress.start(total, 0)
    return progress, stream, clock


def test_a_log_gets_a_line_every_five_seconds_without_control_characters() -> None:
    progress, stream, clock = lines(10_000)
    for done in range(0, 8001, 100):
        progress.see(done, done // 1000, outage=None)
        clock.now += 0.125
    progress.say("A sentence.")
    progress.stop()
    assert stream.getvalue().splitlines() == [
        "4,000 of 10,000 (40.0 %), 800/s, 4 failed, 0:08 left",
        "8,000 of 10,000 (80.0 %), 800/s, 8 failed, 0:02 left",
        "A sentence.",
    ]
    assert all(sign.isprintable() or sign == "\n" for sign in stream.getvalue())


def test_of_a_pipe_nobody_knows_how_much_is_left() -> None:
    progress, stream, clock = lines(None)
    clock.now += 5
    progress.see(4000, 0, outage=None)
    assert stream.getvalue() == "4,000, 800/s, 0 failed\n"


@pytest.mark.parametrize(("make", "before"), [(io.StringIO, ""), (Terminal, "\r\x1b[K")])
def test_a_list_counts_messages_and_takes_the_place_of_the_next_commands_bar(
    make: type[io.StringIO], before: str
) -> None:
    stream, clock = make(), Time(100.0)
    progress = Lines(stream, unit="messages", clock=clock)
    for total, line in (
        (10, "5 messages of 10 (50.0 %), 1/s, 0:05 left"),
        (None, "10 messages, 1/s"),
    ):
        stream.seek(0)
        stream.truncate()
        progress.start(total, 0)
        clock.now += 5
        progress.see(5 if total else 10, 0, outage=None)
        assert stream.getvalue() == f"{before}{line}\n"


def test_an_outage_is_said_and_no_time_left_is_guessed() -> None:
    progress, stream, clock = lines(0)
    clock.now += 5
    progress.see(0, 0, outage=None)
    clock.now += 5
    progress.see(0, 0, outage="")
    clock.now += 5
    progress.see(0, 0, outage="503 UNAVAILABLE")
    assert stream.getvalue().splitlines() == [
        "0 of 0 (0.0 %), 0/s, 0 failed",
        "0 of 0 (0.0 %), 0/s, 0 failed, the API takes no updates at the moment, waiting for it",
        "0 of 0 (0.0 %), 0/s, 0 failed, the API takes no updates at the moment, waiting for it"
        " (503 UNAVAILABLE)",
    ]


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    bar = progress_on(stream)
    assert isinstance(bar, Bar)
    bar.say("Before it began.")
    bar.start(1000, 200)
    bar.say("In between.")
    bar.see(600, 0, outage=None)
    bar.see(700, 3, outage=None)
    bar.see(700, 3, outage="")
    bar.stop()
    bar.stop()
    shown = stream.getvalue()
    assert shown.startswith("Before it began.\n")
    assert "In between.\n" in shown
    assert "700/1000" in shown
    assert "waiting for the API" in shown


@pytest.mark.parametrize("total", [4000, None])
def test_a_bar_keeps_its_clock_going_in_an_outage_and_says_what_it_waits_for(
    total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, stream = Time(100.0), Terminal()
    monkeypatch.setattr("tqdm.std.time", clock)
    bar = Bar(stream)
    bar.start(total, 1305)

    def shown(done: int, *, outage: str | None) -> str:
        before = len(stream.getvalue())
        bar.see(done, 0, outage=outage)
        return stream.getvalue()[before:]

    assert "waiting for the API]" in shown(
        1305, outage=""
    )  # at once, also where nothing was sent before
    assert "waiting" not in shown(1305, outage=None)
    for done in (1800, 2300, 2800):
        clock.now += 1
        assert "updates/s" in shown(done, outage=None)
    assert "[00:03, waiting for the API]" in shown(2800, outage="")
    for time in ("00:33", "01:03", "01:33"):
        clock.now += 30
        line = shown(2800, outage="")
        assert f"[{time}, waiting for the API]" in line
        assert "2800" in line
        assert "updates/s" not in line
    clock.now += 1
    assert "waiting for the API (503 UNAVAILABLE)]" in shown(2800, outage="503 UNAVAILABLE")
    assert "updates/s]" in shown(2800, outage=None)
    bar.stop()


def test_a_log_gets_lines_and_the_quiet_nothing() -> None:
    assert isinstance(progress_on(io.StringIO()), Lines)
    stream = Terminal()
    quiet = progress_on(stream, quiet=True)
    assert type(quiet) is Quiet
    quiet.start(1, 0)
    quiet.see(1, 0, outage=None)
    quiet.stop()
    assert stream.getvalue() == ""
    quiet.say("This much must be said.")
    assert stream.getvalue() == "This much must be said.\n"


@pytest.mark.parametrize("make", [Lines, Bar, Quiet])
@pytest.mark.parametrize("error", [BrokenPipeError, ValueError, OSError])
def test_a_terminal_that_was_closed_harms_no_job(make: type[Quiet], error: type[Exception]) -> None:
    class Closed(Terminal):
        broken = False

        def write(self, text: str) -> int:
            if self.broken:
                raise error
            return super().write(text)

    stream = Closed()
    progress = make(stream)
    progress.start(10, 0)
    stream.broken = True
    if isinstance(progress, Lines):
        progress._next = 0.0
    progress.see(5, 0, outage=None)
    progress.say("Nobody hears this.")
    progress.stop()


def test_a_standard_error_that_was_closed_before_shows_nothing_anywhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = progress_on(None)
    progress.start(2, 0)
    progress.see(1, 0, outage=None)
    progress.say("a sentence")
    progress.stop()
    assert capsys.readouterr() == ("", "")
