"""Parameters and gradient streams that many tests share, and how to compare whole states."""

from __future__ import annotations

import copy
import io
import os

import pytest
import torch

from soap_fast import extension
from soap_fast.backends import survey
from soap_fast.backends.triton.backend import interpreted

SHAPES = ((8, 8), (6, 4, 3, 3), (5,), (4, 1, 4), ())


# Where the extension was demanded, its absence is a failure and not a skip.
DEMANDED = os.environ.get("SOAP_FAST_EXTENSION") == "ON"
needs_native = pytest.mark.skipif(
    not extension.available() and not DEMANDED, reason=str(extension.reason())
)


# Every backend as a test parameter; one that cannot run here is skipped with its reason.
BACKENDS = [
    pytest.param(
        status.name,
        marks=pytest.mark.skipif(not status.usable and not DEMANDED, reason=status.reason),
    )
    for status in survey()
]
needs_interpreter = pytest.mark.skipif(
    not interpreted(), reason="interprets kernels on CPU tensors: set TRITON_INTERPRET=1"
)
# The same for tests that keep all of their tensors on the CPU, whatever the machine has.
ON_CPU = [
    pytest.param(*b.values, marks=[*b.marks, needs_interpreter]) if "triton" in b.values else b
    for b in BACKENDS
]


def backends() -> list:
    """Backends whose kernels are not interpreted, which takes a tenth of a second a step."""
    return [b for b in BACKENDS if "triton" not in b.values]


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def set_gradients(params, seed: int) -> None:
    """Give each parameter the gradient of call `seed`: the same for the same seed and shapes."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def train(optimizer, params, calls) -> None:
    for call in calls:
        set_gradients(params, call)
        optimizer.step()


def snapshot(optimizer, params) -> tuple:
    """Everything a step may change, copied."""
    values = [param.detach().clone() for param in params]
    return values, copy.deepcopy(optimizer.state_dict())


def through_a_file(state_dict: dict) -> dict:
    """Saved and loaded again, as a checkpoint is."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_bits(one, other, where: str = "") -> None:
    """Nested dicts, lists and tensors are equal to the last bit, dtypes included."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), where
        assert torch.equal(one.isnan(), other.isnan()), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same_bits(value, other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same_bits(left, right, f"{where}[{index}]")
    else:
        assert one == other, where
