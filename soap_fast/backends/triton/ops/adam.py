"""`adam`: moments and direction of tensors that no product rotates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.ops.work import Member, Work
from soap_fast.options import StepOptions
from soap_fast.triton_kernels.columns import (
    ADAM,
)


def adam_work(members: Sequence[Member], rows: int) -> Work:
    """Tensors that no product rotates."""
    work = Work()
    for member in members:
        layout = member.layout
        if layout.levels:
            continue
        starts = torch.arange(0, layout.elements, rows, dtype=torch.int32)
        tiles = torch.empty((len(starts), 2), dtype=torch.int32)
        tiles[:, 0], tiles[:, 1] = len(work.tasks), starts
        work.add(
            ADAM,
            tiles,
            tensor=member.index,
            plane=member.a,
            inner=layout.inner,
            pitch=layout.pitch,
            elements=layout.elements,
            exp_avg=member.exp_avg,
            exp_avg_sq=member.exp_avg_sq,
        )
        work.bytes += 6 * FLOAT * layout.numel
    return work


def adam(
    g: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    options: StepOptions,
    floor: torch.Tensor | float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g²;  n = m / (sqrt(v) + eps).

    Elementwise, all of one shape; n is 0 where both m and the denominator are, and where sqrt(v)
    is below the floor.

    Returns:
        m, v, n.
    """
    exp_avg = options.beta1 * exp_avg + (1 - options.beta1) * g
    exp_avg_sq = options.beta2 * exp_avg_sq + (1 - options.beta2) * g.square()
    root = exp_avg_sq.sqrt()
    denominator = root + options.eps
    n = torch.where((denominator == 0) | (root < floor), 0, exp_avg / denominator)
    return exp_avg, exp_avg_sq, n
