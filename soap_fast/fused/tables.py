"""Tasks and tiles of every launch of a step, with what they cost. Pure but for the addresses.

Addresses are integers that the engine hands in; a plan without a device takes zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from soap_fast.fused.columns import (
    ADAM,
    DERIVE,
    DTYPES,
    FOLD_AXES,
    FOLD_GRAM,
    PLANE,
    ROW_AXES,
)
from soap_fast.fused.layout import Layout, axes_of
from soap_fast.fused.operands import Operand
from soap_fast.fused.work import Member, Work
from soap_fast.plan import Group

FLOAT = 4  # bytes


def plane_tiles(task: int, layout: Layout, rows: int) -> torch.Tensor:
    """[tiles, 3] int32: task, first position, width of the fold's tile."""
    starts = torch.arange(0, layout.positions, rows, dtype=torch.int32)
    tiles = torch.empty((len(starts), 3), dtype=torch.int32)
    tiles[:, 0], tiles[:, 1], tiles[:, 2] = task, starts, layout.fold_block
    return tiles


def plane_rows(layout: Layout, constants: dict[str, int]) -> int:
    return constants["ROWS"] if layout.fold == 1 else constants["FOLD_ROWS"]


def gather_work(
    members: Sequence[Member],
    strided: Sequence[tuple[tuple[int, ...], torch.dtype]],
    constants: dict[str, int],
) -> Work:
    """Between gradients of these strides and dtypes and the planes."""
    work = Work()
    for member, (stride, dtype) in zip(members, strided, strict=True):
        layout = member.layout
        tiles = _add_plane(work, member, member.forward, stride, dtype, constants)
        work.bytes += dtype.itemsize * layout.numel
        if layout.folded:  # its Gram matrix
            rows = layout.numel // layout.fold
            work.needed += rows * layout.fold * (layout.fold + 1)
            work.executed += 2 * layout.positions * layout.fold_block**2
            work.bytes += FLOAT * tiles * layout.fold_block**2
    return work


def apply_work(
    members: Sequence[Member],
    strided: Sequence[tuple[tuple[int, ...], torch.dtype]],
    constants: dict[str, int],
) -> Work:
    """Between the planes and parameters of these strides and dtypes."""
    work = Work()
    for member, (stride, dtype) in zip(members, strided, strict=True):
        _add_plane(work, member, member.backward, stride, dtype, constants)
        work.bytes += 2 * dtype.itemsize * member.layout.numel
    return work


def _add_plane(
    work: Work,
    member: Member,
    matrices: dict[Group, int],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    constants: dict[str, int],
) -> int:
    """One tensor and its plane, and what its folded mode's rotation costs. Returns its tiles."""
    layout = member.layout
    tiles = plane_tiles(len(work.tasks), layout, plane_rows(layout, constants))
    rows, fold = axes_of(layout, stride)
    walk = {}
    for name, axes, count in (("row", rows, ROW_AXES), ("fold", fold, FOLD_AXES)):
        for axis in range(count):
            size, step = axes[axis] if axis < len(axes) else (1, 0)
            walk[f"{name}{axis}_size"], walk[f"{name}{axis}_stride"] = size, step
    work.add(
        PLANE,
        tiles,
        tensor=member.index,
        plane=member.a,
        fold=layout.fold,
        positions=layout.positions,
        inner=layout.inner,
        pitch=layout.pitch,
        dtype=DTYPES[str(dtype).removeprefix("torch.")],
        matrix=matrices[layout.folded] if layout.folded else 0,
        partials=member.partials,
        first_tile=work.count,
        **walk,
    )
    if layout.folded:
        work.needed += 2 * layout.numel * layout.fold
        work.executed += 2 * layout.positions * layout.fold_block**2
    work.bytes += FLOAT * layout.fold * layout.positions
    return len(tiles)


def walkable(layout: Layout, stride: tuple[int, ...]) -> bool:
    """Whether a tensor of these strides has few enough axes for gather and apply."""
    rows, fold = axes_of(layout, stride)
    return len(rows) <= ROW_AXES and len(fold) <= FOLD_AXES


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


def fold_gram_work(members: Sequence[Member], constants: dict[str, int]) -> Work:
    """Factors of the folded modes, from what gather left behind."""
    work = Work()
    for member in members:
        folded = member.layout.folded
        if folded is None:
            continue
        tiles = -(-member.layout.positions // plane_rows(member.layout, constants))
        width, inner = member.layout.fold_block, folded.size
        for mode in folded.modes:
            size = member.layout.plan.modes[mode]
            inner //= size
            work.add(
                FOLD_GRAM,
                torch.empty((1, 0), dtype=torch.int32),
                tensor=member.index,
                partials=member.partials,
                count=tiles,
                padded=width,
                size=size,
                fold=folded.size,
                inner=inner,
                factor=member.factors[mode],
            )
            work.bytes += FLOAT * (tiles * width**2 + 2 * size**2)
    return work


def derive_work(operands: Iterable[Operand], block: int) -> Work:
    """Operands of products from bases, in tiles `block` wide."""
    work = Work()
    for operand in operands:
        size = operand.group.size
        values: dict[str, int] = {}
        inner = size
        for place, (address, d) in enumerate(operand.parts):
            inner //= d
            values |= {
                f"basis{place}": address,
                f"basis_size{place}": d,
                f"basis_inner{place}": inner,
            }
        starts = [
            (len(work.tasks), row, column)
            for row in range(0, operand.rows, block)
            for column in range(0, operand.length, block)
        ]
        work.add(
            DERIVE,
            torch.tensor(starts, dtype=torch.int32),
            out=operand.address,
            rows=operand.rows,
            row_stride=operand.length,
            columns=operand.length,
            size=size,
            transposed=int(operand.transposed),
            **values,
        )
        entries = operand.rows * operand.length + sum(d * d for _, d in operand.parts)
        work.bytes += FLOAT * entries
    return work
