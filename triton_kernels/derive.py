"""derive: the operands of a step from the bases, after these changed.

    out[i, j] = Q[i, j], or Q[j, i] transposed ;  Q = Q_1 x Q_2 x ..      Kronecker product

A basis at address 0 is the identity. Rows of out are padded by zeros to a multiple of 4 elements,
or to the tile of a folded mode.
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import DERIVE, SUB_BASES
from soap_fast.triton_kernels.table import floats

TABLE_COLUMNS = tl.constexpr(len(DERIVE))
OUT = tl.constexpr(DERIVE["out"])
ROWS = tl.constexpr(DERIVE["rows"])
ROW_STRIDE = tl.constexpr(DERIVE["row_stride"])
COLUMNS = tl.constexpr(DERIVE["columns"])
SIZE = tl.constexpr(DERIVE["size"])
TRANSPOSED = tl.constexpr(DERIVE["transposed"])
BASIS = tl.constexpr(DERIVE["basis0"])
COUNT = tl.constexpr(SUB_BASES)


@triton.jit(do_not_specialize=["n_tiles"])
def derive(
    tiles,  # [n, 3] int32: task, first row, first column
    tasks,  # [m, COLUMNS] int64
    n_tiles,
    BLOCK: tl.constexpr,
):
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        task = tasks + tl.load(tiles + 3 * tile).to(tl.int64) * TABLE_COLUMNS
        row = (tl.load(tiles + 3 * tile + 1) + tl.arange(0, BLOCK))[:, None]
        column = (tl.load(tiles + 3 * tile + 2) + tl.arange(0, BLOCK))[None, :]
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
        written = (row < tl.load(task + ROWS)) & (column < tl.load(task + COLUMNS))
        out = floats(tl.load(task + OUT)) + (row * tl.load(task + ROW_STRIDE).to(tl.int32) + column)
        tl.store(out, value, mask=written)
