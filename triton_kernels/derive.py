"""derive: the operands of a step from the bases, after these changed.

    out[i, j] = Q[i, j], or Q[j, i] transposed ;  Q = Q_1 x Q_2 x ..      Kronecker product

A basis at address 0 is the identity. Rows of out are padded by zeros to a multiple of 4 elements,
or to the tile of a folded mode.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import DERIVE, SUB_BASES
from soap_fast.triton_kernels.plane import quads
from soap_fast.triton_kernels.table import floats, operand

TABLE_COLUMNS = tl.constexpr(len(DERIVE))
OUT = tl.constexpr(DERIVE["out"])
ROWS = tl.constexpr(DERIVE["rows"])
ROW_STRIDE = tl.constexpr(DERIVE["row_stride"])
COLUMNS = tl.constexpr(DERIVE["columns"])
SIZE = tl.constexpr(DERIVE["size"])
TRANSPOSED = tl.constexpr(DERIVE["transposed"])
BASIS = tl.constexpr(DERIVE["basis0"])
SECOND = tl.constexpr(DERIVE["basis_size1"])  # 0: there is one basis
COUNT = tl.constexpr(SUB_BASES)
JOINED = tl.constexpr(1 << SUB_BASES)  # the largest of several


@triton.jit(do_not_specialize=["n_tiles"])
def derive(
    tiles,  # [n, 3] int32: task, first row, first column
    tasks,  # [m, COLUMNS] int64
    n_tiles,
    BLOCK: tl.constexpr,
):
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        task = tasks + tl.load(tiles + 3 * tile).to(tl.int64) * TABLE_COLUMNS
        first_row = tl.load(tiles + 3 * tile + 1)
        first_column = tl.load(tiles + 3 * tile + 2)
        if tl.load(task + SECOND) == 0:
            _write(task, first_row, first_column, _single(task, first_row, first_column, BLOCK))
        else:  # of small ones there is one tile
            row = first_row + tl.arange(0, JOINED)
            column = first_column + tl.arange(0, JOINED)
            value = _joined(task, row[:, None], column[None, :])
            _write(task, first_row, first_column, value)


@triton.jit
def _write(task, first_row, first_column, value):
    row = first_row + tl.arange(0, value.shape[0])
    column = tl.multiple_of(first_column, 4) + tl.arange(0, value.shape[1])
    stride = tl.multiple_of(tl.load(task + ROW_STRIDE).to(tl.int32), 4)
    length = tl.multiple_of(tl.load(task + COLUMNS).to(tl.int32), 4)
    inside = (row < tl.load(task + ROWS))[:, None] & (column < length)[None, :]
    out = operand(tl.load(task + OUT)) + (row[:, None] * stride + column[None, :])
    tl.store(out, value, mask=inside)


@triton.jit
def _single(task, first_row, first_column, BLOCK: tl.constexpr):
    """Of one basis, read along its rows whether it is transposed or not."""
    size = tl.load(task + SIZE).to(tl.int32)
    address = tl.load(task + BASIS)
    transposed = tl.load(task + TRANSPOSED) != 0
    top = tl.where(transposed, first_column, first_row)
    left = tl.where(transposed, first_row, first_column)
    i = top + tl.arange(0, BLOCK)
    j = tl.multiple_of(left, 4) + tl.arange(0, BLOCK)
    if address == 0:
        inside = (i < size)[:, None] & (j < size)[None, :]
        value = tl.where(inside & (i[:, None] == j[None, :]), 1.0, 0.0)
    elif (size % 4 == 0) & (address % 16 == 0):
        whole = tl.multiple_of(size, 4)
        inside = (i < size)[:, None] & (j < whole)[None, :]
        at = operand(address) + (i[:, None] * whole + j[None, :])
        value = tl.load(at, mask=inside, other=0.0)
    else:
        inside = (i < size)[:, None] & (j < size)[None, :]
        at = quads(floats(address), i[:, None] * size + j[None, :], 0)
        value = tl.load(at, mask=inside, other=0.0)
    if transposed:
        value = tl.trans(value)
    return value


@triton.jit
def _joined(task, row, column):
    """Of several, which are small: each entry is looked up in all of them."""
    size = tl.load(task + SIZE).to(tl.int32)
    inside = (row < size) & (column < size)
    transposed = tl.load(task + TRANSPOSED)
    i = tl.where(transposed != 0, column, row)
    j = tl.where(transposed != 0, row, column)
    value = tl.where(inside, 1.0, 0.0)
    for sub in tl.static_range(COUNT):
        address = tl.load(task + BASIS + 3 * sub)
        d = tl.load(task + BASIS + 3 * sub + 1).to(tl.int32)
        if d != 0:
            inner = tl.load(task + BASIS + 3 * sub + 2).to(tl.int32)
            a = i // inner % d
            b = j // inner % d
            if address == 0:
                value = tl.where(a == b, value, 0.0)
            else:
                entry = a * d + b
                value = value * tl.load(floats(address) + entry, mask=inside, other=0.0)
    return value
