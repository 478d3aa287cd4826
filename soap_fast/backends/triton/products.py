"""The products of a refresh by a Triton kernel, in the operator's place on CUDA.

`soap_fast::grouped_matmul_at_` is what the extension's refresh multiplies with, see
soap_fast/step/grouped_matmul.py. Within `products_by` its products are launches of ours, outside a
batched product of torch's for each group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import string_at
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soap_fast.backends.triton.launch.launcher import Launcher
from soap_fast.backends.triton.ops.grouped_matmul import (
    Alike,
    Multiplication,
    multiplication,
    run,
)
from soap_fast.step import capture
from soap_fast.step.grouped_matmul import grouped_matmul_as_tensors

Key = tuple[int, str, torch.dtype, bytes]  # structure, precision, the matrices and their table


class KeptProducts:
    """The launches of earlier calls, their tables on the device, for calls on the same memory.

    A refresh finds its workspace where the last one had it, as long as torch's allocator hands out
    the same block. One object serves one stream: nobody else reads the tables, so that they may be
    given up at any time.
    """

    # Calls: of a period of staggered refreshes, which repeat after it, all that a model of LALIC's
    # size makes. With 200 bytes a group in each table these are some megabytes.
    MOST = 4096

    def __init__(self) -> None:
        self.made: dict[Key, Multiplication] = {}  # the last one used last
        self.compiled: dict[Alike, dict[str, Any]] = {}  # see Launch.kept


@dataclass
class Products:
    """How the products of a refresh are made.

    Attributes:
        precision: "tf32x3" or "ieee".
        kept: not of a capture, whose graph has tables of its own.
    """

    launcher: Launcher
    precision: str
    kept: KeptProducts

    def __post_init__(self) -> None:
        if capture.underway():
            self.kept = KeptProducts()

    def multiply(self, memory: Tensor, groups: Tensor, structure: int) -> None:
        """As `grouped_matmul_at`."""
        # All that a launch relies on. A refresh comes here as often as it multiplies.
        contents = string_at(groups.data_ptr(), groups.nbytes)
        key, made = (structure, self.precision, memory.dtype, contents), self.kept.made
        by = made.pop(key, None)
        if by is None:
            by = self._new(memory, groups, structure)
        made[key] = by
        run(by, memory, groups, self.launcher, structure)

    def _new(self, memory: Tensor, groups: Tensor, structure: int) -> Multiplication:
        kept = self.kept
        if len(kept.made) == kept.MOST:
            del kept.made[next(iter(kept.made))]
        how = self.launcher, self.precision, structure, kept.compiled
        return multiplication(memory, groups, *how)


_within: ContextVar[Products | None] = ContextVar("products", default=None)
_libraries: dict[str, torch.library.Library] = {}


@contextmanager
def products_by(
    launcher: Launcher,
    precision: str,
    device_type: str = "cuda",
    *,
    kept: KeptProducts | None = None,
) -> Iterator[None]:
    """Within it the refresh multiplies by the kernel: tf32x3, or ieee where that is asked for.

    Args:
        kept: of the current stream, to be handed in again.
    """
    if device_type not in _libraries:
        library = torch.library.Library("soap_fast", "IMPL")  # type: ignore[no-untyped-call]
        key = device_type.upper()
        library.impl("grouped_matmul_at_", _operator, key)  # type: ignore[no-untyped-call]
        _libraries[device_type] = library
    precision = "ieee" if precision == "ieee" else "tf32x3"
    token = _within.set(Products(launcher, precision, kept or KeptProducts()))
    try:
        yield
    finally:
        _within.reset(token)


def _operator(memory: Tensor, groups: Tensor, structure: int = 0) -> None:
    by = _within.get()
    (grouped_matmul_as_tensors if by is None else by.multiply)(memory, groups, structure)
