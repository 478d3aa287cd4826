"""Faults put into the middle of a step: memory that runs out, a signal, a launch that fails."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import soap_fast
from soap_fast.backends.triton.launch.launcher import TritonLauncher

PACKAGE = str(Path(soap_fast.__file__).parent)


class Allocations(TorchDispatchMode):
    """Counts operations that make tensors, and fails instead of one of them.

    Attributes:
        fail_at: number of the operation that finds no memory; None lets all pass.
        count: of those seen so far.
    """

    def __init__(self, fail_at: int | None = None, error: type[Exception] = MemoryError) -> None:
        super().__init__()
        self.fail_at, self.error, self.count = fail_at, error, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if _allocates(func):
            if self.count == self.fail_at:
                self.count += 1
                raise self.error(f"injected at {func}")
            self.count += 1
        return func(*args, **(kwargs or {}))


def _allocates(func) -> bool:
    """Whether an operation returns memory of its own: no view, and nothing it was handed.

    `torch.tensor` shows itself by `lift_fresh`, which ends it.
    """
    if func is torch.ops.aten.lift_fresh.default:
        return True
    returns = func._schema.returns
    return any(r.alias_info is None and "Tensor" in str(r.type) for r in returns)


@contextlib.contextmanager
def launches_that_allocate_nothing() -> Iterator[None]:
    """Triton's interpreter makes tensors where a launch on a GPU makes none: they do not count."""
    launch = TritonLauncher.__call__

    def unseen(self, one):
        with torch.utils._python_dispatch._disable_current_modes():
            launch(self, one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TritonLauncher, "__call__", unseen)
        yield


def interrupt() -> None:
    """What a handler does whose signal is Ctrl-C."""
    raise KeyboardInterrupt


class CtrlC:
    """Presses Ctrl-C once, or sends another signal, as a line of soap_fast is about to run.

    Python raises it where it looks for signals and nowhere else: as functions begin, after calls,
    and as loops turn. So the signal is only made pending here, by a trace function that is C code
    and can look for none itself; one that raised would interrupt where nothing ever does, such as
    between a lock's release and the line before it.

    Attributes:
        at: number of the line, in the order of their running; None only counts them.
        number: of the signal.
        act: what its handler does.
        count: of lines so far.
        first, last: by function, the numbers of the first and the last of its lines so far.
        raised_in: function and line that were interrupted.
    """

    def __init__(
        self,
        at: int | None = None,
        number: int = signal.SIGINT,
        act: Callable[[], object] = interrupt,
    ) -> None:
        self.at, self.count, self.raised_in = at, 0, "nowhere"
        self.number, self.act = number, act
        self.first: dict[CodeType, int] = {}
        self.last: dict[CodeType, int] = {}
        called_with = [ctypes.py_object] * 3  # frame, event, argument
        # What a caller puts into registers beyond a function's own arguments is not read.
        prototype = ctypes.PYFUNCTYPE(None, ctypes.c_int, *called_with)
        always = ((5, "number", int(number)), (1, "frame"), (1, "event"), (1, "argument"))
        self.press = prototype(("PyErr_SetInterruptEx", ctypes.pythonapi), always)
        self.ignore = ctypes.PYFUNCTYPE(None, *called_with)(("Py_IsInitialized", ctypes.pythonapi))

    def __enter__(self) -> CtrlC:
        self.tracing = sys.gettrace()
        self.handler = signal.signal(self.number, self._handle)
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self.tracing)
        signal.signal(self.number, self.handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        sys.settrace(None)  # pressed once
        if frame is not None:
            self.raised_in = f"{frame.f_code.co_name}, line {frame.f_lineno}"
        self.act()

    def _call(self, frame: FrameType, event: str, argument: object):
        name = frame.f_code.co_filename
        return self._line if name.startswith(PACKAGE) and "triton_kernels" not in name else None

    def _line(self, frame: FrameType, event: str, argument: object):
        if event == "line":
            self.first.setdefault(frame.f_code, self.count)
            self.last[frame.f_code] = self.count
            self.count += 1
        if self.at is None or self.count <= self.at:
            return self._line
        sys.settrace(self.ignore)  # from here on nothing of the tracing is Python code
        outer = frame.f_back
        while outer is not None:
            if outer.f_trace is not None:
                outer.f_trace = self.press
            outer = outer.f_back
        return self.press
