"""What an op has to do at least, from those who know: its tables, its tensors, torch's counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from soap_fast import SOAP, explain
from soap_fast.explain import Explanation


@dataclass(frozen=True)
class Work:
    """What one call does.

    Attributes:
        flops: floating point operations of its products; None where nobody can count them, as in
            an iteration that goes on until it has converged.
        bytes: its operands read once and its results written once.
        launches: kernels of the Triton backend; of the others operators that compute, which on a
            GPU are a kernel each or more.
    """

    flops: int | None
    bytes: int
    launches: int

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float | None:
        """The least time, by the slower of the two roofs; None without a count of flops."""
        if self.flops is None:
            return None
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


@dataclass(frozen=True)
class StepFlops:
    """Products of one plain step of an optimizer, from the tables of its launches."""

    step: int
    rotation: int  # of one, there or back
    grams: int

    @classmethod
    def of(cls, optimizer: SOAP) -> StepFlops:
        return cls.explained(explain(optimizer))

    @classmethod
    def explained(cls, found: Explanation) -> StepFlops:
        """A step rotates there and back, and the way back has launches that do nothing else."""
        step = sum(launch.flops for launch in found.launches)
        back = ("rotate back", "apply")
        rotation = sum(one.flops for one in found.launches if one.launch.startswith(back))
        return cls(step, rotation, step - 2 * rotation)


def kernels_of_a_step(optimizer: SOAP) -> int:
    """Launches of a plain step of the Triton backend."""
    found = explain(optimizer)
    return len(found.launches) + len(found.without_tiles)


def nbytes(tensors: Iterable[torch.Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def products(call: Callable[[], object]) -> int:
    """Flops of the matrix products that a call makes, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


class _Operators(TorchDispatchMode):
    """Counts operators that compute tensors: neither views, bare allocations nor questions."""

    count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = (*op._schema.arguments, *op._schema.returns)
        of_tensors = any("Tensor" in str(value.type) for value in values)
        aliases = [value.alias_info for value in op._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        allocates = op.overloadpacket.__name__.startswith(("empty", "new_empty"))
        self.count += of_tensors and not view and not allocates
        return op(*args, **(kwargs or {}))


def operators(call: Callable[[], object]) -> int:
    """How many operators that compute a call makes, our extension's included."""
    with _Operators() as seen:
        call()
    return seen.count
