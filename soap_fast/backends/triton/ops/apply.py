"""`apply`: the folded mode rotated back, the update applied to the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from soap_fast.backends.triton.ops.plane import (
    Strided,
    add_plane,
    from_plane,
)
from soap_fast.backends.triton.ops.work import Member, Work
from soap_fast.step.layout import Layout


def apply_work(
    members: Sequence[Member], strided: Sequence[Strided], constants: Mapping[str, int]
) -> Work:
    """Between the planes and parameters of these strides and dtypes."""
    work = Work()
    for member, (stride, dtype) in zip(members, strided, strict=True):
        add_plane(work, member, member.backward, stride, dtype, constants)
        work.bytes += 2 * dtype.itemsize * member.layout.numel
    return work


def apply(
    param: torch.Tensor,
    plane: torch.Tensor,
    basis: torch.Tensor | None,
    size: torch.Tensor,
    decay: torch.Tensor,
    layout: Layout,
) -> torch.Tensor:  # [d_1 .. d_k]
    """u = Q n along the fold;  p = p - size u;  p = p - decay p. Not rounded to a smaller dtype.

    Args:
        param: [d_1 .. d_k], p.
        plane: [F, P], n after the rotation back.
        basis: [F, F], Q of the folded modes; None without a fold.
        size, decay: [].
    """
    u = from_plane(plane if basis is None else basis @ plane, layout)
    param = param - size * u
    return param - decay * param
