"""grouped_matmul: products of matrices of many sizes in one launch, for the refresh.

    out[g, i] = a[g, i] b[g, i]        for every matrix i of every group g

An operand that is not contiguous along k is loaded 16 bytes at a time along its other axis and
transposed on its way to the product, with one stage: copying ahead would transpose in pieces of 4
bytes. So is loaded what lies at multiples of 16 bytes; the rest one by one, of any strides.

Of a symmetric product the tiles on the diagonal and below are made and written twice, the second
time transposed. Terms of a sum that a triangle of zeros makes zero are left out by whole blocks.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import GROUPED_KIND, GROUPED_MATMUL
from soap_fast.triton_kernels.product import add_product
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
A = tl.constexpr(GROUPED_MATMUL["a_address"])
B = tl.constexpr(GROUPED_MATMUL["b_address"])
OUT = tl.constexpr(GROUPED_MATMUL["out_address"])
ANY = tl.constexpr(GROUPED_KIND["any"])
ROWS_32 = tl.constexpr(GROUPED_KIND["rows_32"])
COLUMNS_32 = tl.constexpr(GROUPED_KIND["columns_32"])
ROWS_64 = tl.constexpr(GROUPED_KIND["rows_64"])
COLUMNS_64 = tl.constexpr(GROUPED_KIND["columns_64"])


@triton.jit(do_not_specialize=["n_groups", "n_tiles"])
def grouped_matmul(
    groups,  # [n_groups, COLUMNS] int64
    n_groups,
    n_tiles,
    GROUPS: tl.constexpr,  # at most
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slot = tl.arange(0, GROUPS)
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        ends = tl.load(groups + slot * COLUMNS + LAST_TILE, mask=slot < n_groups, other=n_tiles)
        group = groups + tl.sum((ends <= tile).to(tl.int32)) * COLUMNS
        kind = tl.load(group + KIND)
        if kind == ANY:
            _any(group, tile, BK, PRECISION)
        if kind == ROWS_32:
            _aligned(group, tile, 32, False, BK, PRECISION)
        if kind == COLUMNS_32:
            _aligned(group, tile, 32, True, BK, PRECISION)
        if PRECISION != "ieee":  # without tensor cores a tile of 64 spills
            if kind == ROWS_64:
                _aligned(group, tile, 64, False, BK, PRECISION)
            if kind == COLUMNS_64:
                _aligned(group, tile, 64, True, BK // 2, PRECISION)  # with BK it spills on sm_80


@triton.jit
def _aligned(
    group, tile,
    ROWS: tl.constexpr, BY_COLUMNS: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS rows of out, computed and written transposed: columns of b are rows there."""
    COLUMNS: tl.constexpr = 32 if PRECISION == "ieee" else 64
    matrix, m0, n0 = _place(group, tile, ROWS, COLUMNS)
    m, n = m0 + tl.arange(0, ROWS), n0 + tl.arange(0, COLUMNS)
    k = tl.arange(0, BK)
    m_end = tl.multiple_of(tl.load(group + M).to(tl.int32), 4)
    n_end = tl.multiple_of(tl.load(group + N).to(tl.int32), 4)
    k_end = tl.multiple_of(tl.load(group + K).to(tl.int32), 4)
    a_stride = tl.load(group + A + (3 if BY_COLUMNS else 2)).to(tl.int32)
    a_stride = tl.multiple_of(a_stride, 4)
    b_stride = tl.multiple_of(tl.load(group + B + 2).to(tl.int32), 4)
    a_base = operand(tl.load(group + A)) + matrix * tl.multiple_of(tl.load(group + A + 1), 4)
    b_base = operand(tl.load(group + B)) + matrix * tl.multiple_of(tl.load(group + B + 1), 4)
    if BY_COLUMNS:
        a_at = a_base + (k[:, None] * a_stride + m[None, :])
        a_step = BK * a_stride
    else:
        a_at = a_base + (tl.minimum(m, m_end - 1)[:, None] * a_stride + k[None, :])
        a_step = tl.full((), BK, tl.int32)
    b_at = b_base + (k[:, None] * b_stride + n[None, :])
    acc = tl.zeros((COLUMNS, ROWS), tl.float32)
    first = _first_term(group, m0, n0) // BK
    for block in tl.range(first, tl.cdiv(k_end, BK), num_stages=1):
        inside = k < k_end - block * BK
        mask = inside[:, None] & (n < n_end)[None, :]
        b = tl.load(b_at + block * (BK * b_stride), mask=mask, other=0.0)  # [BK, COLUMNS]
        if BY_COLUMNS:
            mask = inside[:, None] & (m < m_end)[None, :]
            a = tl.load(a_at + block * a_step, mask=mask, other=0.0)  # [BK, ROWS]
            a = tl.trans(a)
        else:
            a = tl.load(a_at + block * a_step, mask=inside[None, :], other=0.0)  # [ROWS, BK]
        acc = add_product(acc, tl.trans(b), a, PRECISION, False)
    out = operand(tl.load(group + OUT)) + matrix * tl.multiple_of(tl.load(group + OUT + 1), 4)
    row_stride = tl.multiple_of(tl.load(group + OUT + 2).to(tl.int32), 4)
    mask = (n < n_end)[:, None] & (m < m_end)[None, :]
    symmetric = tl.load(group + SYMMETRIC) != 0
    above = n[:, None] > m[None, :]
    tl.store(out + (n[:, None] + m[None, :] * row_stride), acc, mask=mask & ~(above & symmetric))
    if symmetric:
        mirrored = mask & (n[:, None] < m[None, :])
        tl.store(out + (n[:, None] * row_stride + m[None, :]), acc, mask=mirrored)


@triton.jit
def _any(group, tile, BK: tl.constexpr, PRECISION: tl.constexpr):
    ROWS: tl.constexpr = 32 if PRECISION == "ieee" else 64
    matrix, m0, n0 = _place(group, tile, ROWS, 32)
    m, n = m0 + tl.arange(0, ROWS), n0 + tl.arange(0, 32)
    k = tl.arange(0, BK)
    m_end = tl.load(group + M).to(tl.int32)
    n_end = tl.load(group + N).to(tl.int32)
    k_end = tl.load(group + K).to(tl.int32)
    left_at = _matrix(group + A, matrix) + m[:, None] * tl.load(group + A + 2)
    right_at = _matrix(group + B, matrix) + n[None, :] * tl.load(group + B + 3)
    acc = tl.zeros((ROWS, 32), tl.float32)
    first = _first_term(group, m0, n0) // BK * BK
    for start in tl.range(first, k_end, BK, num_stages=1):
        row = start + k
        mask = (m < m_end)[:, None] & (row < k_end)[None, :]
        left = tl.load(left_at + row[None, :] * tl.load(group + A + 3), mask=mask, other=0.0)
        mask = (row < k_end)[:, None] & (n < n_end)[None, :]
        right = tl.load(right_at + row[:, None] * tl.load(group + B + 2), mask=mask, other=0.0)
        acc = add_product(acc, left, tl.trans(right), PRECISION, False)
    _store(group, matrix, m, n, acc)


@triton.jit
def _place(group, tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of a tile: the number of its matrix, its first row and its first column."""
    tiles_n = tl.load(group + TILES_N).to(tl.int32)
    per_matrix = tl.load(group + PER_MATRIX).to(tl.int32)
    local = tile - tl.load(group + FIRST_TILE).to(tl.int32)
    within = local % per_matrix
    row, column = within // tiles_n, within % tiles_n
    if tl.load(group + SYMMETRIC) != 0:  # column by column, from the diagonal down
        row, column = within, 0 * within
        below = tl.load(group + TILES_M).to(tl.int32)
        while row >= below:
            row -= below
            column += 1
            below -= COLUMNS // ROWS
        row += column * (COLUMNS // ROWS)
    return (local // per_matrix).to(tl.int64), row * ROWS, column * COLUMNS


@triton.jit
def _first_term(group, m0, n0):
    """Of a tile's sums: what comes before is zero."""
    by_row = tl.load(group + FROM_ROW).to(tl.int32) * m0
    return tl.maximum(by_row, tl.load(group + FROM_COLUMN).to(tl.int32) * n0)


@triton.jit
def _matrix(operand, matrix):
    """Where matrix number `matrix` of a group's operand begins: its address and stride."""
    return floats(tl.load(operand)) + matrix * tl.load(operand + 1)


@triton.jit
def _store(group, matrix, m, n, acc):
    out = _matrix(group + OUT, matrix) + m[:, None] * tl.load(group + OUT + 2)
    mask = (m < tl.load(group + M))[:, None] & (n < tl.load(group + N))[None, :]
    tl.store(out + n[None, :] * tl.load(group + OUT + 3), acc, mask=mask)
