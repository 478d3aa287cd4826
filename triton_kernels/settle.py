"""settle: a moment from its plane, after a refresh has carried it over.

The first one is 0 where the second one, which is settled before it, is exactly 0.
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import SCALARS, SETTLE
from soap_fast.triton_kernels.table import floats

COLUMNS = tl.constexpr(len(SETTLE))
TENSOR = tl.constexpr(SETTLE["tensor"])
PLANE = tl.constexpr(SETTLE["plane"])
STATE = tl.constexpr(SETTLE["state"])
SQUARES = tl.constexpr(SETTLE["squares"])
INNER = tl.constexpr(SETTLE["inner"])
PITCH = tl.constexpr(SETTLE["pitch"])
POSITIONS = tl.constexpr(SETTLE["positions"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])


@triton.jit(do_not_specialize=["n_tiles"])
def settle(
    tiles,  # [n, 2] int32: task, first position
    tasks,  # [m, COLUMNS] int64
    carried,  # [tensors, SCALAR_COLUMNS] float32
    n_tiles,
    ROWS: tl.constexpr,
):
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        task = tasks + tl.load(tiles + 2 * tile).to(tl.int64) * COLUMNS
        if tl.load(carried + tl.load(task + TENSOR) * SCALAR_COLUMNS + TAKEN) != 0.0:
            position = tl.load(tiles + 2 * tile + 1) + tl.arange(0, ROWS)
            inner = tl.load(task + INNER).to(tl.int32)
            pitch = tl.load(task + PITCH).to(tl.int32)
            within = position % pitch
            real = (within < inner) & (position < tl.load(task + POSITIONS).to(tl.int32))
            x = tl.load(floats(tl.load(task + PLANE)) + position, mask=real, other=0.0)
            state = position // pitch * inner + within
            squares = tl.load(task + SQUARES)
            if squares != 0:
                v = tl.load(floats(squares) + state, mask=real, other=0.0)
                x = tl.where(v == 0.0, 0.0, x)
            tl.store(floats(tl.load(task + STATE)) + state, x, mask=real)
