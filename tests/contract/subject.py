"""What this folder looks at: soap_fast.SOAP on each of its backends, on tensors of a few elements.

Triton's kernels are interpreted where there is no GPU. A step of tensors so small takes a tenth of
a second then, so that nothing here is left to the other two backends.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from streams import BACKENDS, parameters, train

from soap_fast import SOAP
from soap_fast.backends.triton.backend import interpreted

# Two modes, modes that fold, no factor, one element, no dimension.
SHAPES = ((3, 2), (2, 3, 2, 2), (3,), (1, 1), ())

on_every_backend = pytest.mark.parametrize("backend", BACKENDS)


def device_of(backend: str) -> str:
    """Where tests of a backend put their tensors: kernels that are not interpreted want a GPU."""
    return "cuda" if backend == "triton" and not interpreted() else "cpu"


def started(backend: str, shapes=SHAPES, *, calls: int = 0, dtype=torch.float32, **options):
    """Parameters and their optimizer after some calls."""
    params = parameters(shapes, dtype)
    for param in params:
        param.data = param.data.to(device_of(backend))
    optimizer = SOAP(params, backend=backend, **{"precondition_frequency": 2, **options})
    follow(optimizer, params, range(calls))
    return params, optimizer


def follow(optimizer, params, calls: Iterable[int]) -> None:
    """As `streams.train`, on any device."""
    if all(param.device.type == "cpu" for param in params):
        train(optimizer, params, calls)
        return
    for call in calls:
        generator = torch.Generator().manual_seed(1000 + call)
        for param in params:
            grad = torch.randn(param.shape, generator=generator)
            param.grad = grad.to(param.device, param.dtype)
        optimizer.step()


def copies(params) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def assert_equal(params, others) -> None:
    for place, (param, other) in enumerate(zip(params, others, strict=True)):
        assert torch.equal(param, other), f"parameter {place}"
