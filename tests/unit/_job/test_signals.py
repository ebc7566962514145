"""SIGINT and SIGTERM: what they do meanwhile, and what they do afterwards."""

from __future__ import annotations

import os
import signal

import pytest

from sinch_conv_async._job.signals import STOPPING, handled, not_ignored, terminated_as_interrupted


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_calls_and_is_given_back(number: signal.Signals) -> None:
    before, calls = signal.getsignal(number), []
    with handled(lambda: calls.append(number)):
        os.kill(os.getpid(), number)
    assert calls == [number]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert not_ignored() == [other for other in STOPPING if other is not number]
        with handled(lambda: pytest.fail("it was heard")), terminated_as_interrupted():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_sigterm_interrupts_like_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
