"""grouped_matmul: products of matrices of many sizes in one launch, for the refresh.

    out[g, i] = a[g, i] b[g, i]              for every matrix i of every group g
    out[g, i] = out[g, i] - a[g, i] b[g, i]  where the group says so

Rows of a and columns of b are contiguous, as tensor cores want both: b is the transpose of a matrix
that lies by rows. Groups whose operands lie in another way are loaded element by element.

Of a symmetric product the tiles on the diagonal and below are made and written twice, the second
time transposed. Terms of a sum that a triangle of zeros makes zero are left out by whole blocks.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import ANY_TILE, GROUPED_CLASSES, GROUPED_MATMUL
from soap_fast.triton_kernels.product import add_product, product_of_rows
from soap_fast.triton_kernels.table import floats, operand

COLUMNS = tl.constexpr(len(GROUPED_MATMUL))
FIRST_TILE = tl.constexpr(GROUPED_MATMUL["first_tile"])
LAST_TILE = tl.constexpr(GROUPED_MATMUL["last_tile"])
KIND = tl.constexpr(GROUPED_MATMUL["kind"])
M = tl.constexpr(GROUPED_MATMUL["m"])
N = tl.constexpr(GROUPED_MATMUL["n"])
K = tl.constexpr(GROUPED_MATMUL["k"])
TILES_M = tl.constexpr(GROUPED_MATMUL["tiles_m"])
TILES_N = tl.constexpr(GROUPED_MATMUL["tiles_n"])
PER_MATRIX = tl.constexpr(GROUPED_MATMUL["per_matrix"])
SYMMETRIC = tl.constexpr(GROUPED_MATMUL["symmetric"])
FROM_ROW = tl.constexpr(GROUPED_MATMUL["from_row"])
FROM_COLUMN = tl.constexpr(GROUPED_MATMUL["from_column"])
SUBTRACT = tl.constexpr(GROUPED_MATMUL["subtract"])
A = tl.constexpr(GROUPED_MATMUL["a_address"])
B = tl.constexpr(GROUPED_MATMUL["b_address"])
OUT = tl.constexpr(GROUPED_MATMUL["out_address"])
CLASSES = tl.constexpr(len(GROUPED_CLASSES))
HEIGHTS, WIDTHS = (tl.constexpr(x) for x in zip(*GROUPED_CLASSES, strict=True))
MOST = tl.constexpr(128 * 64)  # elements of a tile that are subtracted from at once
ANY_HEIGHT, ANY_WIDTH = (tl.constexpr(x) for x in ANY_TILE)


@triton.jit(do_not_specialize=["n_groups", "n_tiles"])
def grouped_matmul(
    groups,  # [n_groups, COLUMNS] int64
    n_groups,
    n_tiles,
    GROUPS: tl.constexpr,  # at most
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    TALL: tl.constexpr,  # rows that are computed at once, at most
    PRECISION: tl.constexpr,  # in tf32 operands are rounded, not cut off
):
    ROUNDED: tl.constexpr = "rounded" if PRECISION == "tf32" else PRECISION
    slot = tl.arange(0, GROUPS)
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        ends = tl.load(groups + slot * COLUMNS + LAST_TILE, mask=slot < n_groups, other=n_tiles)
        group = groups + tl.sum((ends <= tile).to(tl.int32)) * COLUMNS
        kind = tl.load(group + KIND).to(tl.int32)
        # Without tensor cores wider tiles spill.
        for number in tl.static_range(CLASSES - 1 if PRECISION == "ieee" else 0, CLASSES):
            if kind == number:
                _of_rows(group, tile, number, ROUNDED, BK, STAGES, TALL)
        if kind == CLASSES:
            _any(group, tile, BK, ROUNDED)


@triton.jit
def _of_rows(
    group, tile,
    NUMBER: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    TALL: tl.constexpr,
):  # fmt: skip
    """A tile of a product of rows with rows, all of them at multiples of 16 bytes."""
    HEIGHT: tl.constexpr = HEIGHTS[NUMBER]
    WIDTH: tl.constexpr = WIDTHS[NUMBER]
    BM: tl.constexpr = min(HEIGHT, TALL)
    matrix, tile_m0, n0 = _place(group, tile, HEIGHT, WIDTH)
    k = tl.arange(0, BK)
    n = n0 + tl.arange(0, WIDTH)
    for first in tl.static_range(0, HEIGHT, BM):
        m0 = tile_m0 + first
        m = m0 + tl.arange(0, BM)
        start = tl.multiple_of(_first_term(group, m0, n0), 4)
        length = tl.multiple_of(tl.load(group + K).to(tl.int32), 4) - start
        # Beyond the edges the last row is read again: masks would take registers in the loop.
        a_row = tl.minimum(m, tl.load(group + M).to(tl.int32) - 1)
        b_row = tl.minimum(n, tl.load(group + N).to(tl.int32) - 1)
        a_stride = tl.multiple_of(tl.load(group + A + 2).to(tl.int32), 4)
        b_stride = tl.multiple_of(tl.load(group + B + 3).to(tl.int32), 4)
        a_at = _aligned(group + A, matrix) + start + (a_row[:, None] * a_stride + k[None, :])
        b_at = _aligned(group + B, matrix) + start + (b_row[:, None] * b_stride + k[None, :])
        acc = product_of_rows(a_at, b_at, length, PRECISION, BK, STAGES)
        _store_parts(group, matrix, m0, n0, acc)


@triton.jit
def _store_parts(group, matrix, m0, n0, acc):
    """`_store` of some columns after the others: what is subtracted from would take registers."""
    HALF: tl.constexpr = acc.shape[1] // 2
    if acc.numel > MOST:
        left, right = acc.reshape(acc.shape[0], 2, HALF).permute(0, 2, 1).split()
        _store_parts(group, matrix, m0, n0, left)
        _store_parts(group, matrix, m0, n0 + HALF, right)
    else:
        _store(group, matrix, m0, n0, acc)


@triton.jit
def _store(group, matrix, m0, n0, acc):
    m = m0 + tl.arange(0, acc.shape[0])
    n = n0 + tl.arange(0, acc.shape[1])
    out = _aligned(group + OUT, matrix)
    stride = tl.multiple_of(tl.load(group + OUT + 2).to(tl.int32), 4)
    m_end = tl.load(group + M).to(tl.int32)
    n_end = tl.multiple_of(tl.load(group + N).to(tl.int32), 4)
    at = out + (m[:, None] * stride + n[None, :])
    inside = (m < m_end)[:, None] & (n < n_end)[None, :]
    symmetric = tl.load(group + SYMMETRIC) != 0
    mask = inside & ((n[None, :] <= m[:, None]) | ~symmetric)
    if tl.load(group + SUBTRACT) != 0:
        acc = tl.load(at, mask=mask, other=0.0) - acc
    tl.store(at, acc, mask=mask)
    if symmetric:
        mirrored = out + (n[None, :] * stride + m[:, None])
        tl.store(mirrored, acc, mask=inside & (n[None, :] < m[:, None]))


@triton.jit
def _any(group, tile, BK: tl.constexpr, PRECISION: tl.constexpr):
    matrix, m0, n0 = _place(group, tile, ANY_HEIGHT, ANY_WIDTH)
    m, n = m0 + tl.arange(0, ANY_HEIGHT), n0 + tl.arange(0, ANY_WIDTH)
    k = tl.arange(0, BK)
    m_end = tl.load(group + M).to(tl.int32)
    n_end = tl.load(group + N).to(tl.int32)
    k_end = tl.load(group + K).to(tl.int32)
    left_at = _matrix(group + A, matrix) + m[:, None] * tl.load(group + A + 2)
    right_at = _matrix(group + B, matrix) + n[:, None] * tl.load(group + B + 3)
    acc = tl.zeros((ANY_HEIGHT, ANY_WIDTH), tl.float32)
    first = _first_term(group, m0, n0) // BK * BK
    for start in tl.range(first, k_end, BK, num_stages=1):
        row = start + k
        mask = (m < m_end)[:, None] & (row < k_end)[None, :]
        left = tl.load(left_at + row[None, :] * tl.load(group + A + 3), mask=mask, other=0.0)
        mask = (n < n_end)[:, None] & (row < k_end)[None, :]
        right = tl.load(right_at + row[None, :] * tl.load(group + B + 2), mask=mask, other=0.0)
        acc = add_product(acc, left, right, PRECISION, False)
    out = _matrix(group + OUT, matrix) + m[:, None] * tl.load(group + OUT + 2)
    out += n[None, :] * tl.load(group + OUT + 3)
    mask = (m < m_end)[:, None] & (n < n_end)[None, :]
    if tl.load(group + SUBTRACT) != 0:
        acc = tl.load(out, mask=mask, other=0.0) - acc
    tl.store(out, acc, mask=mask)


@triton.jit
def _place(group, tile, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Of a tile: the number of its matrix, its first row and its first column."""
    tiles_n = tl.load(group + TILES_N).to(tl.int32)
    per_matrix = tl.load(group + PER_MATRIX).to(tl.int32)
    local = tile - tl.load(group + FIRST_TILE).to(tl.int32)
    within = local % per_matrix
    row, column = within // tiles_n, within % tiles_n
    if tl.load(group + SYMMETRIC) != 0:  # column by column, from the diagonal down
        row, column = within, 0 * within
        tiles_m = tl.load(group + TILES_M).to(tl.int32)
        while row >= tiles_m:
            column += 1
            row += column * WIDTH // HEIGHT - tiles_m
    return (local // per_matrix).to(tl.int64), row * HEIGHT, column * WIDTH


@triton.jit
def _first_term(group, m0, n0):
    """Of a tile's sums: what comes before is zero."""
    by_row = tl.load(group + FROM_ROW).to(tl.int32) * m0
    return tl.maximum(by_row, tl.load(group + FROM_COLUMN).to(tl.int32) * n0)


@triton.jit
def _aligned(at, matrix):
    """Where matrix number `matrix` of a group's operand begins, at a multiple of 16 bytes."""
    return operand(tl.load(at)) + matrix * tl.multiple_of(tl.load(at + 1), 4)


@triton.jit
def _matrix(at, matrix):
    """The same of any operand."""
    return floats(tl.load(at)) + matrix * tl.load(at + 1)
