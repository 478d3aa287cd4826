"""`permute`: exp_avg_sq in the new order of the columns of bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from soap_fast.backends.triton.ops.settle import permuted_plane
from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.ops.work import Member, Work, table_row
from soap_fast.step.layout import Layout
from soap_fast.step.modes import from_modes, to_modes
from soap_fast.triton_kernels.columns import (
    PERMUTE,
    PERMUTE_AXIS,
    PERMUTE_WIDTHS,
)


def permute_work(
    members: Sequence[Member], orders: Sequence[Mapping[int, int]], elements: int
) -> tuple[Work, list[list[int]]]:
    """exp_avg_sq into planes that are not in use, and the rows of its axes.

    Args:
        orders: per tensor and mode the address of the order; none is the identity.
        elements: of a tile.
    """
    work = Work()
    axes: list[list[int]] = []
    for member, by_mode in zip(members, orders, strict=True):
        layout = member.layout
        found = _axes(layout, by_mode)
        kind = next((n for n, width in enumerate(PERMUTE_WIDTHS) if layout.pitch >= width))
        rows = layout.elements // layout.pitch
        width = PERMUTE_WIDTHS[kind]
        work.add(
            PERMUTE,
            _tiles(len(work.tasks), rows, elements // width, layout.pitch, width),
            tensor=member.index,
            kind=kind,
            source=member.exp_avg_sq,
            target=permuted_plane(member),
            rows=rows,
            inner=layout.inner,
            pitch=layout.pitch,
            first_axis=len(axes),
            axes=len(found),
        )
        axes += found
        work.bytes += 2 * FLOAT * member.layout.numel
    return work, axes


def _tiles(task: int, rows: int, height: int, pitch: int, width: int) -> torch.Tensor:
    """[tiles, 3] int32: task, first row, first column."""
    row, column = torch.meshgrid(
        torch.arange(0, rows, height, dtype=torch.int32),
        torch.arange(0, pitch, width, dtype=torch.int32),
        indexing="ij",
    )
    return torch.stack([torch.full_like(row, task), row, column], dim=-1).view(-1, 3)


def _axes(layout: Layout, orders: Mapping[int, int]) -> list[list[int]]:
    """Rows of the axes: the contiguous one, then the innermost. Neighbours that stay are one."""
    modes = list(layout.physical_modes)
    order, count = 0, 1
    while count < layout.inner:  # one mode, or some that stay
        mode = modes.pop()
        order, count = orders.get(mode, 0), count * layout.plan.modes[mode]
    found = [[layout.inner, 1, order]]  # size, stride in memory, order
    step = layout.pitch
    for mode in reversed(modes):
        size, own = layout.plan.modes[mode], orders.get(mode, 0)
        if len(found) > 1 and not own and not found[-1][2]:
            found[-1][0] *= size
        else:
            found.append([size, step, own])
        step *= size
    return [table_row(PERMUTE_AXIS, size=size, step=step, order=own) for size, step, own in found]


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
