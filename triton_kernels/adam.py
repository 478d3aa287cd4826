"""adam: moments and direction of tensors that no product rotates, in place on their planes."""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import ADAM, OPTIONS, SCALARS, TENSOR
from soap_fast.triton_kernels.rotate import adam_direction
from soap_fast.triton_kernels.table import operand

COLUMNS = tl.constexpr(len(ADAM))
TENSOR_ = tl.constexpr(ADAM["tensor"])
PLANE = tl.constexpr(ADAM["plane"])
INNER = tl.constexpr(ADAM["inner"])
PITCH = tl.constexpr(ADAM["pitch"])
ELEMENTS = tl.constexpr(ADAM["elements"])
EXP_AVG = tl.constexpr(ADAM["exp_avg"])
EXP_AVG_SQ = tl.constexpr(ADAM["exp_avg_sq"])
TENSOR_COLUMNS = tl.constexpr(len(TENSOR))
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])
FLOOR = tl.constexpr(SCALARS["floor"])


@triton.jit(do_not_specialize=["n_tiles"])
def adam(
    tiles,  # [n, 2] int32: task, first element
    tasks,  # [m, COLUMNS] int64
    tensors,
    option_rows,
    scalars,
    directions,  # sums of n^2 by tile, float32
    n_tiles,
    ROWS: tl.constexpr,
):
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        task = tasks + tl.load(tiles + 2 * tile).to(tl.int64) * COLUMNS
        index = tl.load(task + TENSOR_)
        if tl.load(scalars + index * SCALAR_COLUMNS + TAKEN) != 0.0:
            tensor = tensors + index * TENSOR_COLUMNS
            row = option_rows + tl.load(tensor + OPTIONS_ROW) * OPTION_COLUMNS
            element = tl.multiple_of(tl.load(tiles + 2 * tile + 1), 4) + tl.arange(0, ROWS)
            inside = element < tl.multiple_of(tl.load(task + ELEMENTS).to(tl.int32), 4)
            inner = tl.load(task + INNER).to(tl.int32)
            pitch = tl.load(task + PITCH).to(tl.int32)
            filled = inside
            if inner != pitch:
                filled = inside & (element % pitch < inner)
            plane = operand(tl.load(task + PLANE)) + element
            g = tl.load(plane, mask=inside, other=0.0)
            exp_avg = operand(tl.load(task + EXP_AVG)) + element
            exp_avg_sq = operand(tl.load(task + EXP_AVG_SQ)) + element
            floor = tl.load(scalars + index * SCALAR_COLUMNS + FLOOR)
            n = adam_direction(g, exp_avg, exp_avg_sq, inside, filled, row, floor)
            tl.store(plane, n, mask=inside)
            tl.store(directions + tile, tl.sum(n * n))
