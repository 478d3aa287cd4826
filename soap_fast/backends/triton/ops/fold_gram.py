"""`fold_gram`: factors of the folded modes, from what gather leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch

from soap_fast.backends.triton.ops.plane import (
    plane_count,
)
from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.ops.work import Member, Work
from soap_fast.step.layout import Layout
from soap_fast.triton_kernels.columns import (
    FOLD_GRAM,
)


def fold_gram_work(members: Sequence[Member], constants: Mapping[str, int]) -> Work:
    """Factors of the folded modes, from what gather left behind: a tile is a row of one."""
    work = Work()
    for member in members:
        layout = member.layout
        folded, sizes = layout.folded, layout.fold_sizes
        if folded is None:
            continue
        count, pair = plane_count(layout, constants), layout.pair
        for place, (mode, size) in enumerate(zip(folded.modes, sizes, strict=True)):
            rows = torch.empty((size, 2), dtype=torch.int32)
            rows[:, 0], rows[:, 1] = len(work.tasks), torch.arange(size)
            work.add(
                FOLD_GRAM,
                rows,
                tensor=member.index,
                partials=member.partials,
                count=count,
                sums=layout.fold_sums,
                first=place * (size * (size + 1) // 2) if pair else 0,
                triangle=int(pair),
                padded=layout.fold_block,
                size=size,
                rest=1 if pair else folded.size // size,
                inner=1 if pair else prod(sizes[place + 1 :]),
                factor=member.factors[mode],
            )
            work.bytes += FLOAT * (2 * size**2)
        work.bytes += FLOAT * count * layout.fold_sums
    return work


def fold_gram(
    joint: torch.Tensor, factor: torch.Tensor, beta_s: float, layout: Layout, mode: int
) -> torch.Tensor:  # [d, d]
    """K[a, b] = beta_s K[a, b] + (1 - beta_s) sum_{o, i} J[(o, a, i), (o, b, i)].

    Args:
        joint: [F, F], J.
        factor: [d, d], K of one of the folded modes.
    """
    assert layout.folded is not None
    modes, sizes = layout.folded.modes, layout.plan.modes
    place = modes.index(mode)
    outer, inner = (prod(sizes[m] for m in part) for part in (modes[:place], modes[place + 1 :]))
    d = sizes[mode]
    by_mode = joint.view(outer, d, inner, outer, d, inner)
    return beta_s * factor + (1 - beta_s) * torch.einsum("oaiobi->ab", by_mode)
