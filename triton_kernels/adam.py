"""adam: moments and direction of tensors that no product rotates, in place on their planes."""

import triton
import triton.language as tl

from soap_fast.fused.columns import ADAM, OPTIONS, SCALARS, TENSOR
from soap_fast.triton_kernels.rotate import adam_direction
from soap_fast.triton_kernels.table import floats

COLUMNS = tl.constexpr(len(ADAM))
TENSOR_ = tl.constexpr(ADAM["tensor"])
PLANE = tl.constexpr(ADAM["plane"])
INNER = tl.constexpr(ADAM["inner"])
PITCH = tl.constexpr(ADAM["pitch"])
POSITIONS = tl.constexpr(ADAM["positions"])
EXP_AVG = tl.constexpr(ADAM["exp_avg"])
EXP_AVG_SQ = tl.constexpr(ADAM["exp_avg_sq"])
FIRST_TILE = tl.constexpr(ADAM["first_tile"])
TENSOR_COLUMNS = tl.constexpr(len(TENSOR))
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
FIRST_DIRECTION = tl.constexpr(TENSOR["first_direction"])
HELD_BACK = tl.constexpr(TENSOR["held_back"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])
FLOOR = tl.constexpr(SCALARS["floor"])


@triton.jit(do_not_specialize=["n_tiles"])
def adam(
    tiles,  # [n, 2] int32: task, first position
    tasks,  # [m, COLUMNS] int64
    tensors,
    option_rows,
    scalars,
    directions,
    n_tiles,
    ROWS: tl.constexpr,
):
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        task = tasks + tl.load(tiles + 2 * tile).to(tl.int64) * COLUMNS
        index = tl.load(task + TENSOR_)
        if tl.load(scalars + index * SCALAR_COLUMNS + TAKEN) != 0.0:
            tensor = tensors + index * TENSOR_COLUMNS
            row = option_rows + tl.load(tensor + OPTIONS_ROW) * OPTION_COLUMNS
            position = tl.load(tiles + 2 * tile + 1) + tl.arange(0, ROWS)
            inner = tl.load(task + INNER).to(tl.int32)
            pitch = tl.load(task + PITCH).to(tl.int32)
            inside = position < tl.load(task + POSITIONS)
            real = inside & (position % pitch < inner)
            state = position // pitch * inner + position % pitch
            plane = floats(tl.load(task + PLANE)) + position
            g = tl.load(plane, mask=real, other=0.0)
            exp_avg = floats(tl.load(task + EXP_AVG)) + state
            exp_avg_sq = floats(tl.load(task + EXP_AVG_SQ)) + state
            floor = tl.load(scalars + index * SCALAR_COLUMNS + FLOOR)
            held_back = tl.load(tensor + HELD_BACK).to(tl.pointer_type(tl.int64))
            n = adam_direction(g, exp_avg, exp_avg_sq, real, row, floor, held_back)
            tl.store(plane, n, mask=real)
            place = tl.load(tensor + FIRST_DIRECTION) + tile - tl.load(task + FIRST_TILE)
            tl.store(directions + place, tl.sum(n * n))
