"""Arithmetic in a step obeys nothing the user has set around it, and leaves all of it as it was.

Autocast and the float32 matmul precision would lower the precision of the products (measured on a
CPU with bfloat16 allowed: entries of a 512 x 512 product of normal numbers off by 0.24).
The default dtype cannot interfere, the step names one wherever it matters; a default device is
overridden, for tables are made on the host.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch

from soap_fast import forks
from soap_fast.interrupts import held

FULL_PRECISION = ("ieee", "none")
SETTINGS = (("cuda", "matmul"), ("mkldnn", "matmul"))


@contextmanager
def neutral(device_types: Iterable[str]) -> Iterator[None]:
    """Full float32 products, no autocast on these devices, no gradients; new tensors: CPU.

    In a process that was forked, on the threads that it has.
    """
    # What is found is noted before any of it is changed, and put back as often as one likes:
    # a handler of a signal may raise on the way in, and once more on the way out.
    casting = [one for one in device_types if torch.is_autocast_enabled(one)]
    with_grad, seldom, mine = torch.is_grad_enabled(), ExitStack(), object()

    def put_back() -> None:
        _precision.leave(mine)
        torch._C._set_grad_enabled(with_grad)
        for device_type in casting:
            torch.set_autocast_enabled(device_type, True)
        with held if elsewhere or alone else nullcontext():
            seldom.close()

    elsewhere, alone = torch.get_default_device().type != "cpu", forks.lost_threads()
    try:
        for device_type in casting:
            torch.set_autocast_enabled(device_type, False)
        torch._C._set_grad_enabled(False)
        forks.note_work()
        if elsewhere or alone:
            with held:  # what has been entered is known to be
                if elsewhere:
                    seldom.enter_context(torch.device("cpu"))
                if alone:
                    seldom.enter_context(forks.on_own_threads())
        _precision.enter(mine)
        yield
    finally:
        try:
            put_back()
        finally:
            put_back()


class _FullPrecision:
    """Holds the process-wide matmul precision at full float32 while any thread is inside.

    The first thread to enter remembers the settings and the last to leave restores them: two
    optimizers stepping on two threads must not restore each other's override. Leaving once more
    completes what an exception has cut off.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users: set[object] = set()
        self._found: dict[tuple[str, str], str] = {}
        self._found_legacy: str | None = None

    @property
    def _inside(self) -> int:
        return len(self._users)

    def enter(self, user: object) -> None:
        with self._lock:
            first = not self._users
            self._users.add(user)
            if first:
                self._override()

    def leave(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if not self._users:
                self._restore()

    def _override(self) -> None:
        found = {setting: _get(*setting) for setting in SETTINGS}
        if all(value in FULL_PRECISION for value in found.values()):
            return
        self._found_legacy = _legacy_precision()
        self._found = found  # from here on there is something to restore
        if self._found_legacy is not None:
            torch.set_float32_matmul_precision("highest")
        for setting in SETTINGS:
            _set(*setting, "ieee")

    def _restore(self) -> None:
        if not self._found:
            return
        if self._found_legacy is not None:
            torch.set_float32_matmul_precision(self._found_legacy)
        for (backend, op), value in self._found.items():
            # Equal to what its backend says: it was inherited, and goes on being so.
            _set(backend, op, "none" if value == _get(backend, "all") else value)
        self._found = {}


_precision = _FullPrecision()


def _get(backend: str, op: str) -> str:
    return torch._C._get_fp32_precision_getter(backend, op)


def _set(backend: str, op: str, value: str) -> None:
    torch._C._set_fp32_precision_setter(backend, op, value)


def _legacy_precision() -> str | None:
    """The older of torch's two settings; None where the newer was used, and reading it raises."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
