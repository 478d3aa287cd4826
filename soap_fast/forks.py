"""What a forked process does without: the threads of torch's pool, which its copy still counts on.

Whoever hands work to such a pool waits for ever, as any product of some size in torch does. On one
thread the pool is not asked. So a process that was forked after steps steps on one, and says so.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["lost_threads", "note_work", "on_own_threads"]


def _native_threads() -> int:
    """Threads of this process that are not Python's, where the system tells; else 0."""
    try:
        return len(os.listdir("/proc/self/task")) - threading.active_count()
    except OSError:
        return 0


class _Pool:
    """Whether the pool had threads when this process was forked off."""

    def __init__(self) -> None:
        self.at_import = _native_threads()  # of numpy's BLAS, say, which outlives a fork
        self.used = False
        self.lost = False
        self.told = False

    def before_fork(self) -> None:
        # By others' products. It also takes torch.set_num_threads for them: one thread is slow, a
        # pool without threads is for ever.
        self.used = self.used or _native_threads() > self.at_import

    def in_child(self) -> None:
        self.lost, self.told = self.used, False


_pool = _Pool()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_pool.before_fork, after_in_child=_pool.in_child)


def note_work() -> None:
    """Told before work that the pool may take part in."""
    _pool.used = True


def lost_threads() -> bool:
    """Whether this process was forked from one whose pool had threads."""
    return _pool.lost


@contextmanager
def on_own_threads() -> Iterator[None]:
    """Within it torch computes on one thread, where the others were lost; else on all."""
    threads = torch.get_num_threads()
    if not _pool.lost or threads == 1:
        yield
        return
    if not _pool.told:
        _pool.told = True
        warnings.warn(
            "this process was forked after torch had started its threads, and has none of them: "
            "SOAP computes on one thread. To use all threads, start processes by 'spawn' "
            "(torch.multiprocessing.set_start_method), or fork before the first step",
            stacklevel=2,
        )
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
