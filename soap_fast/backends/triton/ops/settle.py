"""`settle`: a moment from the plane that a refresh has left it in back to where it lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soap_fast.backends.triton.ops.plane import (
    from_plane,
)
from soap_fast.backends.triton.ops.tiles import FLOAT, linear_tiles
from soap_fast.backends.triton.ops.work import Member, Work
from soap_fast.step.layout import Layout
from soap_fast.triton_kernels.columns import (
    SETTLE,
)


def settle_permuted_work(members: Sequence[Member], rows: int) -> Work:
    """exp_avg_sq back from the first planes."""
    work = Work()
    for member in members:
        _add_settled(work, member, member.a, member.exp_avg_sq, 0, rows)
    return work


def settle_rotated_work(members: Sequence[Member], rows: int) -> Work:
    """exp_avg back from the planes in which its rotation ended."""
    work = Work()
    for member in members:
        plane = member.a if len(member.layout.levels) % 2 == 0 else member.b
        _add_settled(work, member, plane, member.exp_avg, member.exp_avg_sq, rows)
    return work


def _add_settled(
    work: Work, member: Member, plane: int, state: int, squares: int, rows: int
) -> None:
    elements = member.layout.elements
    tiles = linear_tiles(len(work.tasks), elements, rows)
    values = {"plane": plane, "state": state, "squares": squares, "elements": elements}
    work.add(SETTLE, tiles, tensor=member.index, **values)
    work.bytes += (3 if squares else 2) * FLOAT * member.layout.numel


def settle(
    plane: torch.Tensor, layout: Layout, exp_avg_sq: torch.Tensor | None = None
) -> torch.Tensor:  # [d_1 .. d_k]
    """A moment from the plane [F, P] in which its rotation ended, in the parameter's shape.

    Args:
        exp_avg_sq: [d_1 .. d_k]; where it is exactly 0, exp_avg is.
    """
    moment = from_plane(plane, layout)
    return moment if exp_avg_sq is None else moment.masked_fill(exp_avg_sq == 0, 0)
