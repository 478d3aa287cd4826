"""A tensor as it is beside its plane [fold, positions]: what gather and apply share. Pure.

Addresses are integers that the engine hands in; a plan without a device takes zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import pad

from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.ops.work import Member, Work
from soap_fast.step.layout import Layout, padded, walk_of
from soap_fast.step.plan import Group
from soap_fast.triton_kernels.columns import (
    COLUMN_AXES,
    DTYPES,
    FOLD_AXES,
    LINE_AXES,
    PLANE,
    PLANE_KINDS,
)

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


def add_plane(
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
        kind=plane_kind(layout),
        plane=member.a,
        fold=layout.fold,
        positions=layout.positions,
        inner=layout.inner,
        pitch=layout.pitch,
        planar=int(lies_as_plane(layout, stride, dtype)),
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


def lies_as_plane(layout: Layout, stride: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a tensor with a folded pair lies as its plane: float32, nothing padded."""
    same = stride == layout.state_strides and layout.inner == layout.pitch
    return layout.pair and same and dtype == torch.float32


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


def to_plane(x: torch.Tensor, layout: Layout) -> torch.Tensor:  # [F, P]
    """A tensor of the parameter's shape as a plane, zeros where it is padded."""
    flat = x.new_zeros(layout.elements)
    layout.state_view(flat).copy_(x)
    return flat.view(layout.fold, layout.positions)


def from_plane(plane: torch.Tensor, layout: Layout) -> torch.Tensor:  # [d_1 .. d_k]
    """A plane in the parameter's shape."""
    return layout.state_view(plane.flatten())


def with_padding(rows: torch.Tensor) -> torch.Tensor:  # [n, pitch]
    """Rows [n, inner] of the contiguous axis padded by zeros to a multiple of four elements."""
    return pad(rows, (0, padded(rows.shape[1]) - rows.shape[1]))


def without_padding(plane: torch.Tensor, inner: int) -> torch.Tensor:  # [n, inner]
    """The rows of a plane whose contiguous axis has `inner` elements."""
    return plane.reshape(-1, padded(inner))[:, :inner].contiguous()
