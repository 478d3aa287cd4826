"""permute: second moments follow the order of their bases' columns.

    out[i_1, .., i_k] = v[order_1[i_1], .., order_k[i_k]]

out is a plane; `settle` takes it from there. A tile is some columns, along the contiguous axis, of
some rows. So an entry's place is a sum of its row's and its column's, both of which are looked up
once a tile. Narrow rows have tiles of their own.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import PERMUTE, PERMUTE_AXIS, PERMUTE_WIDTHS, SCALARS
from soap_fast.triton_kernels.plane import quads
from soap_fast.triton_kernels.table import floats, operand

COLUMNS = tl.constexpr(len(PERMUTE))
TENSOR = tl.constexpr(PERMUTE["tensor"])
KIND = tl.constexpr(PERMUTE["kind"])
SOURCE = tl.constexpr(PERMUTE["source"])
TARGET = tl.constexpr(PERMUTE["target"])
ROWS = tl.constexpr(PERMUTE["rows"])
INNER = tl.constexpr(PERMUTE["inner"])
PITCH = tl.constexpr(PERMUTE["pitch"])
FIRST_AXIS = tl.constexpr(PERMUTE["first_axis"])
AXES = tl.constexpr(PERMUTE["axes"])
AXIS_COLUMNS = tl.constexpr(len(PERMUTE_AXIS))
SIZE = tl.constexpr(PERMUTE_AXIS["size"])
STEP = tl.constexpr(PERMUTE_AXIS["step"])
ORDER = tl.constexpr(PERMUTE_AXIS["order"])
WIDTHS, KINDS = tl.constexpr(PERMUTE_WIDTHS), tl.constexpr(len(PERMUTE_WIDTHS))
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])


@triton.jit(do_not_specialize=["n_tiles"])
def permute(
    tiles,  # [n, 3] int32: task, first row, first column
    tasks,  # [m, COLUMNS] int64
    axes,  # [all axes, AXIS_COLUMNS] int64
    carried,  # [tensors, SCALAR_COLUMNS] float32
    n_tiles,
    ELEMENTS: tl.constexpr,  # of a tile
):
    # The next tile is on its way while this one is worked on.
    coming = tl.load(tiles + 3 * tl.program_id(0))
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        ahead = tl.minimum(tile + tl.num_programs(0), n_tiles - 1)
        task = tasks + coming.to(tl.int64) * COLUMNS
        coming = tl.load(tiles + 3 * ahead)
        kind = tl.load(task + KIND)
        if tl.load(carried + tl.load(task + TENSOR) * SCALAR_COLUMNS + TAKEN) != 0.0:
            for number in tl.static_range(KINDS):
                if kind == number:
                    _tile(task, axes, tiles + 3 * tile, number, ELEMENTS)


@triton.jit
def _tile(task, axes, tile, NUMBER: tl.constexpr, ELEMENTS: tl.constexpr):
    WIDTH: tl.constexpr = WIDTHS[NUMBER]
    HEIGHT: tl.constexpr = ELEMENTS // WIDTH
    row = tl.load(tile + 1) + tl.arange(0, HEIGHT)
    column = tl.multiple_of(tl.load(tile + 2), 4) + tl.arange(0, WIDTH)
    is_row = row < tl.load(task + ROWS).to(tl.int32)
    is_column = column < tl.load(task + INNER).to(tl.int32)
    axis = axes + tl.load(task + FIRST_AXIS) * AXIS_COLUMNS
    from_column = _ordered(column, tl.load(axis + ORDER), is_column)
    from_row = tl.zeros_like(row)
    rest = row
    for _ in range(1, tl.load(task + AXES).to(tl.int32)):  # the innermost first
        axis += AXIS_COLUMNS
        size = tl.load(axis + SIZE).to(tl.int32)
        beyond = rest // size
        digit = _ordered(rest - beyond * size, tl.load(axis + ORDER), is_row)
        from_row += digit * tl.load(axis + STEP).to(tl.int32)
        rest = beyond
    filled = is_row[:, None] & is_column[None, :]
    # Lanes walk along memory, whatever the order.
    source = quads(floats(tl.load(task + SOURCE)), from_row[:, None] + from_column[None, :], 0)
    x = tl.load(source, mask=filled, other=0.0)
    pitch = tl.multiple_of(tl.load(task + PITCH).to(tl.int32), 4)
    inside = is_row[:, None] & (column < pitch)[None, :]
    target = operand(tl.load(task + TARGET)) + (row[:, None] * pitch + column[None, :])
    tl.store(target, x, mask=inside)


@triton.jit
def _ordered(index, order, mask):
    """order[index], int32; the index itself where the order is at address 0."""
    if order != 0:
        at = order.to(tl.pointer_type(tl.int64)) + index
        index = tl.load(at, mask=mask, other=0).to(tl.int32)
    return index
