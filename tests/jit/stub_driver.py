"""A driver that Triton launches through where there is no GPU: everything happens but the launch.

Kernels are bound, specialised, compiled and loaded as on a GPU of that architecture, from tensors
on the CPU: what neither the interpreter nor compiling ahead of time goes through. Memory stays as
it was, but for the flags of a step, so that a refresh finds tensors which took theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from soap_fast.backends.triton.launch.launcher import kernel
from soap_fast.triton_kernels.columns import SCALARS

KIB = 1024
# Bytes of shared memory that one block may use: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability".
SHARED = {
    80: 163 * KIB, 86: 99 * KIB, 89: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB, 120: 99 * KIB,
}  # fmt: skip
THREADS = 1024  # of a block
MULTIPROCESSORS = 132


class StubDriver:
    """Of one architecture, whose number is that of its device: caches of Triton are by device.

    Attributes:
        launched: ops in the order of their launches.
    """

    def __init__(self, sm: int) -> None:
        self.sm = sm
        self.launched: list[str] = []
        self.launcher_cls: Callable[..., Any] = partial(_Launch, self.launched)
        self.utils = _Utils()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)

    def get_current_device(self) -> int:
        return self.sm

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED[device], "multiprocessor_count": MULTIPROCESSORS}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """Module, function, registers, spills and threads at most; nobody looks at the first."""
        return name, name, 0, 0, THREADS

    def unload_module(self, module: Any) -> None:
        """What was not loaded."""


class _Launch:
    """In the place of what Triton compiles in C for each kernel."""

    def __init__(self, launched: list[str], source: Any, metadata: Any) -> None:
        self.launched, self.op = launched, source.fn.__name__

    def __call__(self, *arguments: Any) -> None:
        self.launched.append(self.op)


def install(sm: int) -> StubDriver:
    """From now on kernels are launched through it; TRITON_INTERPRET must not be set."""
    stub = StubDriver(sm)
    driver.set_active(stub)
    clock = kernel("clock")
    if not clock.pre_run_hooks:
        place = list(inspect.signature(clock.fn).parameters).index("scalars")
        clock.add_pre_run_hook(partial(_taken, place))
    return stub


def _taken(place: int, *arguments: Any, **constants: Any) -> None:
    """Every tensor takes its step; the row of no tensor, the last, stays zero."""
    arguments[place].view(-1, len(SCALARS))[:-1, SCALARS["taken"]] = 1
