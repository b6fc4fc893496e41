"""Listening and its end, in this process."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from collafuse.serving.listening import Address, listen

LATE_SECONDS = 20


async def nothing(scope, receive, send):
    """An application that is never asked."""


@pytest.fixture
def restored():
    """Handlers and the switch interval are this process's own again afterwards."""
    interval, handlers = sys.getswitchinterval(), {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    sys.setswitchinterval(interval)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_before_the_first_request_can_is_not_lost(restored, number):
    signal.signal(number, lambda *_: None)  # were it not listen's own, this would swallow it
    again = threading.Timer(LATE_SECONDS, os.kill, (os.getpid(), number))
    again.start()
    listen(nothing, Address(port=0), 1.0, started=lambda url: os.kill(os.getpid(), number))
    needed_again = again.finished.is_set()
    again.cancel()
    assert not needed_again
