"""`permute`: exp_avg_sq in the new order of the columns of bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from soap_fast.backends.triton.ops.tiles import FLOAT, linear_tiles
from soap_fast.backends.triton.ops.work import Member, Work, table_row
from soap_fast.step.layout import Layout
from soap_fast.step.modes import from_modes, to_modes
from soap_fast.triton_kernels.columns import (
    PERMUTE,
    PERMUTE_AXIS,
)


def permute_work(
    members: Sequence[Member], orders: Sequence[Mapping[int, int]], rows: int
) -> tuple[Work, list[list[int]]]:
    """exp_avg_sq into the first planes, and the rows of its axes.

    Args:
        orders: per tensor and mode the address of the order; none is the identity.
        rows: elements of a tile.
    """
    work = Work()
    axes: list[list[int]] = []
    for member, by_mode in zip(members, orders, strict=True):
        found: list[tuple[int, int]] = []  # size, order; neighbours that stay are one axis
        for mode in member.layout.physical_modes:
            size, order = member.layout.plan.modes[mode], by_mode.get(mode, 0)
            if found and not order and not found[-1][1]:
                found[-1] = (found[-1][0] * size, 0)
            else:
                found.append((size, order))
        layout = member.layout
        work.add(
            PERMUTE,
            linear_tiles(len(work.tasks), layout.elements, rows),
            tensor=member.index,
            source=member.exp_avg_sq,
            target=member.a,
            elements=layout.elements,
            inner=layout.inner,
            pitch=layout.pitch,
            first_axis=len(axes),
            axes=len(found),
        )
        axes += [table_row(PERMUTE_AXIS, size=size, order=order) for size, order in found]
        work.bytes += 2 * FLOAT * member.layout.numel
    return work, axes


def permute(
    exp_avg_sq: torch.Tensor, orders: Sequence[torch.Tensor | None], layout: Layout
) -> torch.Tensor:  # [elements]
    """v[order_1[i_1], .., order_k[i_k]], in the order in which moments lie in memory.

    Args:
        exp_avg_sq: [d_1 .. d_k], v.
        orders: [d_i] int64 per mode after merging, or None.
    """
    by_mode = to_modes(exp_avg_sq, layout.plan)
    for mode, order in enumerate(orders):
        if order is not None:
            by_mode = by_mode.index_select(mode, order)
    flat = exp_avg_sq.new_zeros(layout.elements)
    layout.state_view(flat).copy_(from_modes(by_mode, layout.plan))
    return flat
