"""`permute`: exp_avg_sq in the new order of the columns of bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from soap_fast.backends.triton.ops.settle import permuted_plane
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
    """exp_avg_sq into planes that are not in use, and the rows of its axes.

    Args:
        orders: per tensor and mode the address of the order; none is the identity.
        rows: elements of a tile.
    """
    work = Work()
    axes: list[list[int]] = []
    for member, by_mode in zip(members, orders, strict=True):
        layout, found = member.layout, _axes(member.layout, by_mode)
        work.add(
            PERMUTE,
            linear_tiles(len(work.tasks), layout.elements, rows),
            tensor=member.index,
            source=member.exp_avg_sq,
            target=permuted_plane(member),
            elements=layout.elements,
            inner=layout.inner,
            pitch=layout.pitch,
            pitch_inverse=_inverse(layout.pitch),
            first_axis=len(axes),
            axes=len(found),
        )
        axes += found
        work.bytes += 2 * FLOAT * member.layout.numel
    return work, axes


def _axes(layout: Layout, orders: Mapping[int, int]) -> list[list[int]]:
    """Rows of a tensor's axes, innermost first; neighbours that stay are one."""
    found: list[list[int]] = []  # size, stride in memory, order
    count = step = 1
    for mode in reversed(layout.physical_modes):
        size, order = layout.plan.modes[mode], orders.get(mode, 0)
        ends = count == layout.inner  # and padding follows
        step = layout.pitch if ends else step
        if found and not ends and not order and not found[-1][2]:
            found[-1][0] *= size
        else:
            found.append([size, step, order])
        count, step = count * size, step * size
    return [
        table_row(PERMUTE_AXIS, size=size, inverse=_inverse(size), step=step, order=order)
        for size, step, order in found
    ]


def _inverse(size: int) -> int:
    return -(-(2**32) // size)


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
