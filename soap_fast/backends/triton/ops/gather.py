"""`gather`: gradients into planes, their folded mode rotated; sums of squares, Gram of the fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from soap_fast.backends.triton.ops.plane import (
    Strided,
    add_plane,
    to_plane,
)
from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.ops.work import Member, Work
from soap_fast.step.layout import Layout


def gather_work(
    members: Sequence[Member], strided: Sequence[Strided], constants: Mapping[str, int]
) -> Work:
    """Between gradients of these strides and dtypes and the planes."""
    work = Work()
    for member, (stride, dtype) in zip(members, strided, strict=True):
        layout = member.layout
        tiles = add_plane(work, member, member.forward, stride, dtype, constants)
        work.bytes += dtype.itemsize * layout.numel
        if layout.folded:  # its Gram matrices
            sizes = layout.fold_sizes if layout.pair else (layout.fold,)
            work.needed += layout.numel * sum(size + 1 for size in sizes)
            whole = 2 * layout.positions * layout.fold_block**2
            work.executed += layout.numel * sum(d + 1 for d in sizes) if layout.pair else whole
            work.bytes += FLOAT * tiles * layout.fold_sums
    return work


class Gathered(NamedTuple):
    plane: torch.Tensor  # [F, P]
    square: torch.Tensor  # []
    joint: torch.Tensor  # [F, F]


def gather(
    grad: torch.Tensor, basis: torch.Tensor | None, layout: Layout, inverse_scale: float = 1.0
) -> Gathered:
    """plane = Qᵀ g along the fold; sum g²; J = g gᵀ of the fold, before its rotation.

    Of a pair (`Layout.pair`) the kernel leaves the lower triangles of both partial traces of J.

    Args:
        grad: [d_1 .. d_k], the parameter's shape, any strides.
        basis: [F, F], Q of the folded modes as `derive` joins them; None without a fold.
        inverse_scale: multiplies the gradient first.
    """
    g = to_plane(grad * inverse_scale, layout)  # [F, P], zeros where padded
    plane = g if basis is None else basis.T @ g
    return Gathered(plane, g.square().sum(), g @ g.T)
