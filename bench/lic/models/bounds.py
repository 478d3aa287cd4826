"""Quantisers, and a lower bound whose gradient lets a value below it climb back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x >= bound)
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * (inside | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound), elementwise.

    The gradient g passes where x >= bound, and below the bound where g < 0, that is where descent
    raises x. A plain clamp would leave a likelihood or a scale below its bound for ever.
    """
    return _LowerBound.apply(x, bound)


def add_noise(x: Tensor) -> Tensor:
    """x + U(-1/2, 1/2): what rounding is to a density. Only likelihoods are computed from it."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


def round_straight_through(x: Tensor) -> Tensor:
    """round(x), half to even, with the gradient of the identity. All that is decoded uses it."""
    return x + (x.round() - x).detach()
