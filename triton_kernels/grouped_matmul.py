"""grouped_matmul: products of matrices of many sizes in one launch, for the refresh.

    out[g, i] = a[g, i] b[g, i]              for every matrix i of every group g
    out[g, i] = out[g, i] - a[g, i] b[g, i]  where the group says so

Rows of a, columns of b and rows of out are contiguous, as tensor cores want them: b is the
transpose of a matrix that lies by rows. Rows begin and end at multiples of 16 bytes.

Of a symmetric product the tiles on the diagonal and below are made and written twice, the second
time transposed. Terms of a sum that a triangle of zeros makes zero are left out by whole blocks.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import GROUPED_CLASSES, GROUPED_MATMUL, GROUPED_NARROW
from soap_fast.triton_kernels.product import product_of_rows
from soap_fast.triton_kernels.table import operand

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
NARROW = tl.constexpr(GROUPED_NARROW)


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
        for number in tl.static_range(NARROW if PRECISION == "ieee" else 0, CLASSES):
            if kind == number:
                _tile(group, tile, number, ROUNDED, BK, STAGES, TALL)


@triton.jit
def _tile(
    group, tile,
    NUMBER: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    TALL: tl.constexpr,
):  # fmt: skip
    """A tile of a product of rows with rows."""
    HEIGHT: tl.constexpr = HEIGHTS[NUMBER]
    WIDTH: tl.constexpr = WIDTHS[NUMBER]
    BM: tl.constexpr = min(HEIGHT, TALL)
    matrix, tile_m0, n0 = _place(group, tile, HEIGHT, WIDTH)
    k = tl.arange(0, BK)
    n = n0 + tl.arange(0, WIDTH)
    for first in tl.range(0, HEIGHT, BM, num_stages=1):
        m0 = tile_m0 + first
        m = m0 + tl.arange(0, BM)
        start = _first_term(group, m0, n0)
        length = _number(group + K) - start
        # Beyond the edges the last row is read again: masks would take registers in the loop.
        a_row = tl.minimum(m, tl.load(group + M).to(tl.int32) - 1)
        b_row = tl.minimum(n, tl.load(group + N).to(tl.int32) - 1)
        a_row = a_row[:, None] * _number(group + A + 2)
        b_row = b_row[:, None] * _number(group + B + 2)
        a_at = _matrix(group + A, matrix) + start + (a_row + k[None, :])
        b_at = _matrix(group + B, matrix) + start + (b_row + k[None, :])
        acc = product_of_rows(a_at, b_at, length, PRECISION, BK, STAGES)
        _store(group, matrix, m, n, acc)


@triton.jit
def _store(group, matrix, m, n, acc):
    out = _matrix(group + OUT, matrix)
    stride = _number(group + OUT + 2)
    m_end = tl.load(group + M).to(tl.int32)
    n_end = _number(group + N)
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
def _number(at):
    """A number of the table that is a multiple of 4."""
    return tl.multiple_of(tl.load(at).to(tl.int32), 4)


@triton.jit
def _matrix(at, matrix):
    """Where matrix number `matrix` of a group's operand begins."""
    return operand(tl.load(at)) + matrix * tl.multiple_of(tl.load(at + 1), 4)
