"""Arithmetic in a step obeys nothing the user has set around it, and leaves all of it as it was.

Autocast and the float32 matmul precision would lower the precision of the products (measured on a
CPU with bfloat16 allowed: entries of a 512 x 512 product of normal numbers off by 0.24).
The default dtype cannot interfere, the step names one wherever it matters; a default device is
overridden, for tables are made on the host.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

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
    stack = ExitStack()
    try:
        with held:  # what has been entered is known to be
            for device_type in device_types:
                if torch.is_autocast_enabled(device_type):
                    stack.enter_context(torch.autocast(device_type, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            stack.enter_context(torch.no_grad())
            forks.note_work()
            if forks.lost_threads():
                stack.enter_context(forks.on_own_threads())
            stack.enter_context(_precision)
        yield
    finally:
        try:
            with held:
                stack.close()
        finally:
            stack.close()  # should an interrupt have come before it was held


class _FullPrecision:
    """Holds the process-wide matmul precision at full float32 while any thread is inside.

    The first thread to enter remembers the settings and the last to leave restores them: two
    optimizers stepping on two threads must not restore each other's override.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._found: dict[tuple[str, str], str] = {}
        self._found_legacy: str | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._override()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore()

    def _override(self) -> None:
        self._found = {setting: _get(*setting) for setting in SETTINGS}
        if all(value in FULL_PRECISION for value in self._found.values()):
            self._found = {}
            return
        self._found_legacy = _legacy_precision()
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
