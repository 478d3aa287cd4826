"""What Python may run between two lines of a step: handlers of signals, which save, raise or both.

They run in the main thread, between any two calls. `at_once` leaves them no room: its parts are C
code, called by C code. Where that cannot be, for launches of kernels are Python, `held` keeps all
handlers waiting until its block is left, which is within the time of the launches.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import chain
from types import FrameType

import torch

Handler = Callable[[int, FrameType | None], object]
# Those of `signal` make enums of what these return, which takes ten times as long: 9 microseconds
# a block, where a whole steady step takes 40 (AMD EPYC).
get_handler, set_handler = _signal.getsignal, _signal.signal
SIGNALS = tuple(map(int, sorted(signal.valid_signals())))


def at_once(*parts: Iterable[object]) -> None:
    """Exhaust iterators, one after the other, in one call of C code: no Python code runs within.

    So what an operator writes and the clock that counts it belong together, whatever a handler
    does. Modes of torch's functions, of which a default device is one, are Python and passed over.
    Dispatch modes, which count or check operators, go on seeing them, and handlers wait for these.

    Args:
        parts: each a `map` of a function in C over what is there already.
    """
    watched = torch._C._len_torch_dispatch_stack() > 0
    with held if watched else nullcontext(), torch._C.DisableTorchFunction():
        deque(chain.from_iterable(parts), maxlen=0)


class _Held:
    """`with held:` in any thread, and within itself.

    Handlers are exchanged one by one, so one of them may raise as the block is entered or left, and
    ours stay where others were. Outside of a block ours hand on what they are told, and the next
    block puts the others back.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._holder: FrameType | None = None  # which entered the outermost block
        self._found: tuple[object, ...] = ()  # for each of SIGNALS, when last looked at
        self._handlers: dict[int, Handler] = {}  # by signal, where ours stand or are about to
        self._noted: list[int] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if self._is_within(sys._getframe(1)):
            self._depth += 1
            return
        self._depth, self._holder = 0, sys._getframe(1)
        try:
            self._exchange()
            self._depth = 1
        except BaseException:
            self._depth, self._holder = 0, None
            self._put_back()
            raise

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth -= 1
        if self._depth > 0:
            return
        self._holder = None
        try:
            self._put_back()
        except BaseException:
            self._put_back()
            raise
        finally:
            self._raise_noted()

    def _is_within(self, frame: FrameType | None) -> bool:
        """Whether a block is underway; not one whose frame has been left by an exception."""
        if not self._depth:
            return False
        while frame is not None and frame is not self._holder:
            frame = frame.f_back
        return frame is not None

    def _exchange(self) -> None:
        found = tuple(map(get_handler, SIGNALS))
        if found != self._found:
            before = self._handlers
            self._handlers = {
                number: before[number] if handler == self._note else handler
                for number, handler in zip(SIGNALS, found, strict=True)
                if callable(handler)
            }
            self._found = found
        for number in self._handlers:
            set_handler(number, self._note)

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            if get_handler(number) == self._note:  # and no handler has put another one there
                set_handler(number, handler)

    def _raise_noted(self) -> None:
        """Once more, all that came: where the handler of one raises, the others' still run."""
        try:
            if self._noted:
                _signal.raise_signal(self._noted.pop())
        finally:
            if self._noted:
                self._raise_noted()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._is_within(frame):
            self._handlers[number](number, frame)
        elif number not in self._noted:
            self._noted.append(number)


held = _Held()
