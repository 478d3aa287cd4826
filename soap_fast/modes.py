"""Products of a tensor with a matrix along its modes: rotate, rotate back, carry, Gram."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soap_fast.plan import TensorPlan

Matrices = Sequence[torch.Tensor | None]  # one per mode, None stands for the identity


def rotate(x: torch.Tensor, bases: Matrices, plan: TensorPlan) -> torch.Tensor:
    """R(x): x' = Q_iᵀ x along every mode i.

    Args:
        x: [d_1 .. d_k], shape of the parameter.
        bases: Q_i [d_i, d_i] per mode after merging, or None.
        plan: the tensor's plan.

    Returns:
        [d_1 .. d_k], the coordinates of x in the bases.
    """
    return _contract(x, bases, plan, axis=0)


def rotate_back(x: torch.Tensor, bases: Matrices, plan: TensorPlan) -> torch.Tensor:
    """R⁻¹(x): x = Q_i x' along every mode i; shapes as for `rotate`."""
    return _contract(x, bases, plan, axis=1)


def gram(x: torch.Tensor, mode: int, plan: TensorPlan) -> torch.Tensor:  # [d, d]
    """x_(i) x_(i)ᵀ, a sum over all other modes, x of the parameter's shape; symmetric to the bit.

    A product alone need not be: MKL's on an AMD EPYC is not.
    """
    unfolded = to_modes(x, plan).movedim(mode, 0).reshape(plan.modes[mode], -1)  # [d, numel / d]
    product = unfolded @ unfolded.T
    return 0.5 * product + 0.5 * product.T  # halves first: entries reach the largest number


def to_modes(x: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """From the parameter's shape to the merged modes of its plan."""
    return x.permute(plan.order).reshape(plan.modes)


def from_modes(x: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """From the merged modes of a plan to the parameter's shape, contiguous."""
    ordered = x.reshape([plan.shape[i] for i in plan.order])
    return ordered.permute([plan.order.index(i) for i in range(len(plan.order))]).contiguous()


def _contract(x: torch.Tensor, matrices: Matrices, plan: TensorPlan, axis: int) -> torch.Tensor:
    """Contract each mode of x with `axis` of its matrix."""
    y = to_modes(x, plan)
    for matrix in matrices:
        # The leading mode is contracted and comes out last: at the end the order has cycled back.
        y = y.movedim(0, -1) if matrix is None else torch.tensordot(y, matrix, dims=([0], [axis]))
    return from_modes(y, plan)
