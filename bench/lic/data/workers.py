"""The processes of one loader, ended with it, whatever ends it."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import TypeVar

T = TypeVar("T")

JOIN_SECONDS = 5.0  # for a killed process that still waits for a disk


class Workers:
    """Processes that nothing but their loader needs.

    They keep nothing, so that they are killed. Both torch and multiprocessing send SIGTERM, which
    workers ignore (see batches.py), and then wait: of torch for 5 seconds each, of multiprocessing,
    when this process ends, for ever.
    """

    def __init__(self) -> None:
        self.owner, self.processes = os.getpid(), set[BaseProcess]()

    def started_by(self, start: Callable[[], T]) -> T:
        """What `start` returns; the processes that it starts are these, also where it raises."""
        before = set(active_children())
        try:
            return start()
        finally:
            self.processes |= set(active_children()) - before
            # After torch and multiprocessing have registered theirs, hence called before them.
            atexit.register(self.end)

    def end(self) -> None:
        """Return once all have ended."""
        if os.getpid() == self.owner:  # a process that was forked has none of them
            with _deaths_unseen():
                for process in self.processes:
                    process.kill()
                for process in self.processes:
                    process.join(JOIN_SECONDS)
            self.processes.clear()
        atexit.unregister(self.end)


@contextmanager
def _deaths_unseen() -> Iterator[None]:
    """Without torch's handler, which raises RuntimeError when a worker has died by a signal."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    previous = _without_handler()
    try:
        yield
    finally:
        if previous is not None:  # else it was set by C, which Python cannot set again
            signal.signal(signal.SIGCHLD, previous)


def _without_handler() -> signal._HANDLER:
    while True:
        try:
            return signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError:  # of a worker that has just died; told once, and it is to end anyway
            continue
