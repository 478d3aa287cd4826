"""How Ctrl-C and SIGTERM end a run: between two steps, or while it waits for images."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 5.0  # seconds; the others of several processes wait for this one's step


class Interrupted(Exception):
    """Stopped by Ctrl-C or SIGTERM; the message says where."""


class StoppedWaiting(BaseException):
    """A request to stop that came while no step was underway; not to be caught as an error."""


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request that is met between two steps.

    Within `waiting` it is met at once, by an exception. The second one stops at once; but not among
    several processes, which torchrun tells as well as the terminal does, so that each of them gets
    two. There a step that others have begun gets its images if they come within PATIENCE.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, alone: bool = True) -> None:
        self.made, self.alone, self.waits = False, alone, False
        self.over = False
        self.since = 0.0  # when the request was made
        self.timer: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        self.previous = [signal.signal(number, self._note) for number in self.SIGNALS]
        return self

    def __exit__(self, *error: object) -> None:
        self.over = True
        if self.timer is not None:  # before its signal would meet another handler
            self.timer.cancel()
            self.timer.join()
        for number, previous in zip(self.SIGNALS, self.previous, strict=True):
            signal.signal(number, previous)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For what may be left at any moment, as no step is underway.

        Raises:
            StoppedWaiting: a request was made, or is made.
        """
        self.waits = True
        try:
            self._leave_if_due()
            yield
        finally:
            self.waits = False

    def _note(self, *received: object) -> None:
        if not self.made:
            self.made, self.since = True, time.monotonic()
        if self.alone:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._leave_if_due()
        if not self.alone and not self.over:
            self._ask_again()

    def _leave_if_due(self) -> None:
        due = self.made and (self.alone or time.monotonic() - self.since >= PATIENCE)
        if self.waits and due:
            raise StoppedWaiting

    def _ask_again(self) -> None:
        """By the same signal: an exception in the main thread can come from a handler only."""
        if self.timer is not None:
            self.timer.cancel()
        main = threading.main_thread().ident
        assert main is not None
        self.timer = threading.Timer(PATIENCE, signal.pthread_kill, (main, signal.SIGTERM))
        self.timer.daemon = True
        self.timer.start()
