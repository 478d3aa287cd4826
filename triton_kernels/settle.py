"""settle: a moment from its plane, after a refresh has carried it over. Both lie alike.

The first one is 0 where the second one, which is settled before it, is exactly 0.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import SCALARS, SETTLE
from soap_fast.triton_kernels.table import operand

COLUMNS = tl.constexpr(len(SETTLE))
TENSOR = tl.constexpr(SETTLE["tensor"])
PLANE = tl.constexpr(SETTLE["plane"])
STATE = tl.constexpr(SETTLE["state"])
SQUARES = tl.constexpr(SETTLE["squares"])
ELEMENTS = tl.constexpr(SETTLE["elements"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])


@triton.jit(do_not_specialize=["n_tiles"])
def settle(
    tiles,  # [n, 2] int32: task, first element
    tasks,  # [m, COLUMNS] int64
    carried,  # [tensors, SCALAR_COLUMNS] float32
    n_tiles,
    ROWS: tl.constexpr,
):
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        task = tasks + tl.load(tiles + 2 * tile).to(tl.int64) * COLUMNS
        if tl.load(carried + tl.load(task + TENSOR) * SCALAR_COLUMNS + TAKEN) != 0.0:
            element = tl.multiple_of(tl.load(tiles + 2 * tile + 1), 4) + tl.arange(0, ROWS)
            inside = element < tl.multiple_of(tl.load(task + ELEMENTS).to(tl.int32), 4)
            x = tl.load(operand(tl.load(task + PLANE)) + element, mask=inside, other=0.0)
            squares = tl.load(task + SQUARES)
            if squares != 0:
                v = tl.load(operand(squares) + element, mask=inside, other=0.0)
                x = tl.where(v == 0.0, 0.0, x)
            tl.store(operand(tl.load(task + STATE)) + element, x, mask=inside)
