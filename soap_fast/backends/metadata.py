"""Whether tensors have the sizes, strides, dtypes and devices they had, all in one look.

`parameters_seen` looks from C++ (csrc/unchanged/) where that is there for this build of torch; what
stands here in Python is its twin.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any, Protocol

import torch

from soap_fast import extension

try:
    # What torch.compile holds its inputs to: 64 ns a tensor in one C++ call, where a shape and a
    # stride asked for in Python take 160 (Intel Xeon, torch 2.13).
    from torch._C._dynamo.guards import TensorGuards as _Guards
except ImportError:  # it is not public: a torch without it takes the slower way
    _Guards = None  # type: ignore[misc, assignment]

GRAD, ADDRESS = attrgetter("grad"), torch.Tensor.data_ptr
# Addresses of gradients and of parameters, packed, and what keeps the gradients alive.
Found = tuple[bytes, bytes, object]


class Parameters(Protocol):
    """Some parameters and their gradients, as they were."""

    def look(self, params: list[torch.Tensor]) -> Found | None:
        """None where anything but addresses is not as it was, or a gradient is missing."""


def parameters_seen(params: list[torch.Tensor], grads: list[torch.Tensor]) -> Parameters:
    """As they are now."""
    compiled = extension.unchanged()
    if compiled is not None:
        try:
            seen: Parameters = compiled.Parameters(params, grads)
            return seen
        except TypeError:  # classes of others, whose `grad` may be anything
            pass
    return PlainParameters(params, grads)


class PlainParameters:
    """`Parameters` in Python."""

    def __init__(self, params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> None:
        self.like_params, self.like_grads = Metadata(params), Metadata(grads)
        self.have_elements = [param.numel() > 0 for param in params]

    def look(self, params: list[torch.Tensor]) -> Found | None:
        grads = list(map(GRAD, params))
        try:
            addresses = packed(map(ADDRESS, grads)), packed(map(ADDRESS, params))
        except (TypeError, RuntimeError):  # no gradient, or one without an address
            return None
        # `.data` gives a tensor, the same object at the same address, another shape or strides.
        if not self.like_grads.unchanged(grads) or not self.like_params.unchanged(params):
            return None
        if not self._have_memory(grads) or not self._have_memory(params):
            return None
        return (*addresses, grads)

    def _have_memory(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether no storage was resized to 0, where an address may be what is added to none."""
        storages = map(torch.Tensor.untyped_storage, compress(tensors, self.have_elements))
        return all(map(torch.UntypedStorage.nbytes, storages))


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


def packed(addresses: Iterable[int]) -> bytes:
    """int64 numbers, to be compared at once."""
    return array("q", addresses).tobytes()


def unpacked(addresses: bytes) -> torch.Tensor:  # [n] int64
    """On the host, also where torch's default device is another."""
    return torch.frombuffer(bytearray(addresses), dtype=torch.int64)
