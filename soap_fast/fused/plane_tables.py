"""Tasks and tiles of the launches between tensors as they are and their planes. Pure.

gather and apply at both ends of a step, and fold_gram, which sums what gather leaves of the folded
modes. Addresses are integers that the engine hands in; a plan without a device takes zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch

from soap_fast.fused.columns import (
    COLUMN_AXES,
    DTYPES,
    FOLD_AXES,
    FOLD_GRAM,
    LINE_AXES,
    PLANE,
    PLANE_KINDS,
)
from soap_fast.fused.layout import Layout, walk_of
from soap_fast.fused.work import Member, Work
from soap_fast.plan import Group

FLOAT = 4  # bytes

Strided = tuple[tuple[int, ...], torch.dtype]  # strides and dtype of a gradient or a parameter


def plane_kind(layout: Layout) -> int:
    """How gather and apply rotate the fold."""
    name = f"fold_{layout.fold_block}"
    if layout.fold == 1:
        name = "flat"
    elif layout.pair:
        name = "fold_{}_{}".format(*layout.fold_sizes)
    kind: int = PLANE_KINDS[name]
    return kind


def plane_rows(layout: Layout, constants: Mapping[str, int]) -> int:
    """Positions of a tile."""
    if layout.pair:
        return 4 * constants["FOLD_LANES"]
    return constants["ROWS"] if layout.fold == 1 else constants["FOLD_ROWS"]


def plane_count(layout: Layout, constants: Mapping[str, int]) -> int:
    """Tiles of a plane."""
    return -(-layout.positions // plane_rows(layout, constants))


def plane_tiles(task: int, layout: Layout, rows: int) -> torch.Tensor:
    """[tiles, 2] int32: task, first position."""
    starts = torch.arange(0, layout.positions, rows, dtype=torch.int32)
    return torch.stack([torch.full_like(starts, task), starts], dim=1)


def gather_work(
    members: Sequence[Member], strided: Sequence[Strided], constants: Mapping[str, int]
) -> Work:
    """Between gradients of these strides and dtypes and the planes."""
    work = Work()
    for member, (stride, dtype) in zip(members, strided, strict=True):
        layout = member.layout
        tiles = _add_plane(work, member, member.forward, stride, dtype, constants)
        work.bytes += dtype.itemsize * layout.numel
        if layout.folded:  # its Gram matrices
            sizes = layout.fold_sizes if layout.pair else (layout.fold,)
            work.needed += layout.numel * sum(size + 1 for size in sizes)
            whole = 2 * layout.positions * layout.fold_block**2
            work.executed += layout.numel * sum(d + 1 for d in sizes) if layout.pair else whole
            work.bytes += FLOAT * tiles * layout.fold_sums
    return work


def apply_work(
    members: Sequence[Member], strided: Sequence[Strided], constants: Mapping[str, int]
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
    constants: Mapping[str, int],
) -> int:
    """One tensor and its plane, and what its folded mode's rotation costs. Returns its tiles."""
    layout = member.layout
    tiles = plane_tiles(len(work.tasks), layout, plane_rows(layout, constants))
    work.add(
        PLANE,
        tiles,
        tensor=member.index,
        kind=plane_kind(layout),
        plane=member.a,
        fold=layout.fold,
        positions=layout.positions,
        inner=layout.inner,
        pitch=layout.pitch,
        dtype=DTYPES[str(dtype).removeprefix("torch.")],
        matrix=matrices[layout.folded] if layout.folded else 0,
        partials=member.partials,
        first_tile=work.count,
        **_walked(layout, stride),
    )
    if layout.folded:
        whole = 2 * layout.positions * layout.fold_block**2
        in_registers = 2 * layout.fold * layout.positions * sum(layout.fold_sizes)
        work.needed += 2 * layout.numel * (sum(layout.fold_sizes) if layout.pair else layout.fold)
        work.executed += in_registers if layout.pair else whole
    work.bytes += FLOAT * layout.fold * layout.positions
    return len(tiles)


def _walked(layout: Layout, stride: tuple[int, ...]) -> dict[str, int]:
    """Columns of the axes; unused ones have size 0, but for the first."""
    walk = walk_of(layout, stride)
    values = {"linear": int(walk.linear)}
    for place, step in enumerate(walk.pair):
        values[f"pair{place}_stride"] = step
    for name, axes in (("line", walk.lines), ("column", walk.columns), ("fold", walk.fold)):
        for axis, (size, step) in enumerate(axes or [(1, 0)]):
            values[f"{name}{axis}_size"], values[f"{name}{axis}_stride"] = size, step
    return values


def walkable(layout: Layout, stride: tuple[int, ...]) -> bool:
    """Whether a tensor of these strides has few enough axes for gather and apply."""
    walk = walk_of(layout, stride)
    pairs = ((walk.lines, LINE_AXES), (walk.columns, COLUMN_AXES), (walk.fold, FOLD_AXES))
    return all(len(axes) <= most for axes, most in pairs)


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
