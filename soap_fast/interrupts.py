"""Ctrl-C waits while things are written that belong together, such as a tensor and its clock.

Python raises KeyboardInterrupt between any two calls of the main thread. Where a step has written
one half, that would leave a tensor torn: moved, but not counted. Within `held` the signal is only
noted, and raised as soon as the block is left, which is within the time of the writes.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
# Those of `signal` make enums of what these return, which takes ten times as long: 9 microseconds
# a block, where a whole steady step takes 40 (AMD EPYC).
get_handler, set_handler = _signal.getsignal, _signal.signal


class _Held:
    """`with held:` in any thread, and within itself; signals reach the main thread alone."""

    def __init__(self) -> None:
        self._depth = 0
        self._handler: Handler | None = None
        self._noted: FrameType | None = None
        self._is_noted = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if self._depth == 0:
            self._noted, self._is_noted = None, False  # of one that came while the last was left
            handler = get_handler(signal.SIGINT)
            self._handler = handler if callable(handler) else None  # nothing would be raised
            if self._handler is not None:
                set_handler(signal.SIGINT, self._note)
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth -= 1
        if self._depth or self._handler is None:
            return
        set_handler(signal.SIGINT, self._handler)
        if self._is_noted:
            frame, self._noted, self._is_noted = self._noted, None, False
            self._handler(signal.SIGINT, frame)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted, self._is_noted = frame, True


held = _Held()
