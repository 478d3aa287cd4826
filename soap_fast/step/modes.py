"""Products of a tensor with a matrix along its modes: rotate, rotate back, carry, Gram.

Modes go by the groups of a plan. Those of a small group are one mode, whose matrix is the Kronecker
product of theirs: with a 3 x 3 kernel one product in place of two, and one Gram matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod

import torch

from soap_fast.ranges import station
from soap_fast.step.alignment import is_aligned
from soap_fast.step.plan import Group, TensorPlan

Matrices = Sequence[torch.Tensor | None]  # one per mode, None stands for the identity


@station
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


@station
def rotate_back(x: torch.Tensor, bases: Matrices, plan: TensorPlan) -> torch.Tensor:
    """R⁻¹(x): x = Q_i x' along every mode i; shapes as for `rotate`."""
    return _contract(x, bases, plan, axis=1)


@station
def grams(x: torch.Tensor, plan: TensorPlan) -> list[torch.Tensor | None]:
    """x_(i) x_(i)ᵀ, a sum over all other modes, for every mode i with a factor.

    Args:
        x: [d_1 .. d_k], shape of the parameter.

    Returns:
        [d_i, d_i] per mode after merging, symmetric to the bit, or None. A product alone need not
        be symmetric: MKL's on an AMD EPYC is not.
    """
    y = _to_groups(x, plan)
    found: list[torch.Tensor | None] = [None] * len(plan.modes)
    for place, group in enumerate(plan.groups):
        if not group.rotated:
            continue
        unfolded = y.movedim(place, 0).reshape(group.size, -1)  # [size, numel / size]
        joint = unfolded @ unfolded.T
        for mode in group.modes:
            k = _partial_trace(joint, group, mode, plan)
            found[mode] = 0.5 * k + 0.5 * k.T  # halves first: entries reach the largest number
    return found


def to_modes(x: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """From the parameter's shape to the merged modes of its plan."""
    return x.permute(plan.order).reshape(plan.modes)


def from_modes(x: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """From the merged modes of a plan to the parameter's shape, contiguous."""
    ordered = x.reshape([plan.shape[i] for i in plan.order])
    return ordered.permute([plan.order.index(i) for i in range(len(plan.order))]).contiguous()


def _to_groups(x: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """From the parameter's shape to the groups of its plan."""
    return x.permute(plan.order).reshape([group.size for group in plan.groups])


def _contract(x: torch.Tensor, matrices: Matrices, plan: TensorPlan, axis: int) -> torch.Tensor:
    """Contract each group of modes with `axis` of its matrix."""
    y = _to_groups(x, plan)
    for group in plan.groups:
        matrix = _joint_matrix(matrices, group, plan)
        # The leading group is contracted and comes out last: at the end the order has cycled back.
        y = y.movedim(0, -1) if matrix is None else torch.tensordot(y, matrix, dims=([0], [axis]))
    return from_modes(y, plan)


def _joint_matrix(
    matrices: Matrices, group: Group, plan: TensorPlan
) -> torch.Tensor | None:  # [size, size]
    """The Kronecker product of a group's matrices; None where all of them are the identity."""
    found = [matrices[mode] for mode in group.modes]
    first = next((matrix for matrix in found if matrix is not None), None)
    if first is None or len(found) == 1:
        return first if first is None or is_aligned(first) else first.clone()
    members = [
        torch.eye(plan.modes[mode], dtype=first.dtype, device=first.device) if q is None else q
        for mode, q in zip(group.modes, found, strict=True)
    ]
    return reduce(torch.kron, members)


def _partial_trace(
    joint: torch.Tensor, group: Group, mode: int, plan: TensorPlan
) -> torch.Tensor:  # [d, d]
    """K[a, b] = sum_{o, i} J[(o, a, i), (o, b, i)], J [size, size] of a group, K of one mode."""
    if len(group.modes) == 1:
        return joint
    d, place = plan.modes[mode], group.modes.index(mode)
    outer = prod(plan.modes[m] for m in group.modes[:place])
    inner = group.size // (outer * d)
    return torch.einsum("oaiobi->ab", joint.view(outer, d, inner, outer, d, inner))
