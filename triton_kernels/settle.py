"""settle: the last product of a carry, and both moments to their places.

    exp_avg_sq = v ;  exp_avg[n, i] = sum_k b[n, k] a[i, k], 0 where v is exactly 0

v is exp_avg_sq in its new order, in a plane. Tiles are those of `rotate`, whose records say where
v lies as `out`. A tensor that no product rotates has its exp_avg in a plane as well: its tiles are
ROWS elements that lie one behind the other, of the class behind those of products.

One launch writes both moments of all tensors, so that it was made or they are as they were.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import ROTATE, ROTATE_CLASSES, SCALARS
from soap_fast.triton_kernels.rotate import tensor_and_kind, tile_entries, tile_product
from soap_fast.triton_kernels.table import operand

COLUMNS = tl.constexpr(len(ROTATE))
A = tl.constexpr(ROTATE["a"])
V = tl.constexpr(ROTATE["out"])
EXP_AVG = tl.constexpr(ROTATE["exp_avg"])
EXP_AVG_SQ = tl.constexpr(ROTATE["exp_avg_sq"])
ROWS_LEFT = tl.constexpr(ROTATE["rows"])
CLASSES = tl.constexpr(len(ROTATE_CLASSES))
HEIGHTS, WIDTHS, ALONG = (tl.constexpr(x) for x in zip(*ROTATE_CLASSES, strict=True))
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])
MOST = tl.constexpr(64 * 32)  # elements of a tile whose second moments are in registers at once


@triton.jit(do_not_specialize=["n_tiles"])
def settle(
    records,  # [n, COLUMNS] int64
    carried,  # [tensors, SCALAR_COLUMNS] float32
    n_tiles,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    TALL: tl.constexpr,  # rows that are computed at once, at most
    ROWS: tl.constexpr,
):
    # As in rotate: a tile's tensor and kind are known before it begins.
    step = tl.num_programs(0)
    tensor, kind = tensor_and_kind(records + tl.program_id(0) * COLUMNS)
    for tile in tl.range(tl.program_id(0), n_tiles, step, disable_licm=True):
        record = records + tile * COLUMNS
        following = records + tl.minimum(tile + step, n_tiles - 1) * COLUMNS
        scalar = carried + tensor * SCALAR_COLUMNS
        next_tensor, next_kind = tensor, kind
        for number in tl.static_range(0, CLASSES):
            if kind == number:
                next_tensor, next_kind = _tile(
                    record, following, scalar, number, PRECISION, BK, STAGES, TALL
                )
        if kind == CLASSES:
            next_tensor, next_kind = _moved_tile(record, following, scalar, ROWS)
        tensor, kind = next_tensor, next_kind


@triton.jit
def _tile(
    record, following, scalar, NUMBER: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    """A tile of the product; returns tensor and kind of the record that follows, as in rotate."""
    HEIGHT: tl.constexpr = HEIGHTS[NUMBER]
    # Without tensor cores more than 64 rows spill.
    BM: tl.constexpr = 64 if PRECISION == "ieee" or TALL == 64 else HEIGHT
    BY_ROWS: tl.constexpr = ALONG[NUMBER]
    next_tensor, next_kind = tensor_and_kind(following)
    taken = tl.load(scalar + TAKEN) != 0.0
    for first in tl.static_range(0, HEIGHT, BM):
        g = tile_product(record, taken, first, BM, WIDTHS[NUMBER], BY_ROWS, PRECISION, BK, STAGES)
        _finish_parts(record, taken, g, first, 0, BY_ROWS)
    return next_tensor, next_kind


@triton.jit
def _moved_tile(record, following, scalar, ROWS: tl.constexpr):
    """A tile without a product; returns the same."""
    next_tensor, next_kind = tensor_and_kind(following)
    if tl.load(scalar + TAKEN) != 0.0:
        entry = tl.arange(0, ROWS)
        inside = entry < tl.multiple_of(tl.load(record + ROWS_LEFT).to(tl.int32), 4)
        g = tl.load(operand(tl.load(record + A)) + entry, mask=inside, other=0.0)
        _write(record, g, entry, inside, inside)
    return next_tensor, next_kind


@triton.jit
def _finish_parts(
    record, taken, g, first: tl.constexpr, column: tl.constexpr, BY_ROWS: tl.constexpr
):  # fmt: skip
    """Some columns after the others: second moments of all would not fit in registers."""
    if g.numel > MOST:
        HALF: tl.constexpr = g.shape[1] // 2
        left, right = g.reshape(g.shape[0], 2, HALF).permute(0, 2, 1).split()
        _finish_parts(record, taken, left, first, column, BY_ROWS)
        _finish_parts(record, taken, right, first, column + HALF, BY_ROWS)
    else:
        HEIGHT: tl.constexpr = g.shape[0]
        entry, inside, filled = tile_entries(
            record, taken, first, column, HEIGHT, g.shape[1], BY_ROWS
        )
        _write(record, g, entry, inside, filled)


@triton.jit
def _write(record, g, entry, inside, filled):
    v = tl.load(operand(tl.load(record + V)) + entry, mask=inside, other=0.0)
    tl.store(operand(tl.load(record + EXP_AVG_SQ)) + entry, v, mask=inside)
    g = tl.where(filled & (v != 0.0), g, 0.0)
    tl.store(operand(tl.load(record + EXP_AVG)) + entry, g, mask=inside)
