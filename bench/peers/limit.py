"""A limit on what one call of somebody else's code may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TookTooLong(BaseException):
    """No Exception, or libraries that try one way and then another would go on with the other."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise within it once so much time has passed; None is no limit.

    By an alarm, which Python sees between two of its own instructions: a single call into a
    library is waited for. In another thread than the main one, alarms do not reach us and nothing
    is limited.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(*_: Any) -> None:
        raise TookTooLong(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
