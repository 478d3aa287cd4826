"""gather: gradients as they are into planes, in float32.

    plane[k', r] = sum_k Q[k, k'] g[k, r] / grad_scale          Q of the folded mode
    partials[tile] = g g^T over the rows of a tile, [S, S]      not rotated
    squares[tile]  = sum of g^2 over the tile

Any strides; float32, bfloat16 or float16. Padding of a plane is written as zero.
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import PLANE
from soap_fast.triton_kernels.plane import folded, rows
from soap_fast.triton_kernels.table import floats, load_float

COLUMNS = tl.constexpr(len(PLANE))
TENSOR = tl.constexpr(PLANE["tensor"])
PLANE_ = tl.constexpr(PLANE["plane"])
POSITIONS = tl.constexpr(PLANE["positions"])
DTYPE = tl.constexpr(PLANE["dtype"])
PARTIALS = tl.constexpr(PLANE["partials"])
FIRST_TILE = tl.constexpr(PLANE["first_tile"])


@triton.jit(do_not_specialize=["n_tiles"])
def gather(
    tiles,  # [n, 3] int32: task, first position, width of the fold's tile
    tasks,  # [m, COLUMNS] int64
    gradients,  # [tensors] int64, addresses; 0 without a gradient
    inverse_scale,  # [1] float32
    squares,  # [n] float32
    n_tiles,
    ROWS: tl.constexpr,  # positions of a tile without a fold
    FOLD_ROWS: tl.constexpr,  # of one with a fold, BLOCK at a time
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    scale = tl.load(inverse_scale)
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        task = tasks + tl.load(tiles + 3 * tile).to(tl.int64) * COLUMNS
        first = tl.load(tiles + 3 * tile + 1)
        width = tl.load(tiles + 3 * tile + 2)
        gradient = tl.load(gradients + tl.load(task + TENSOR))
        square = squares + tile
        if gradient == 0:
            tl.store(square, 0.0)
        else:
            if width == 1:
                _copy(task, gradient, first, scale, square, ROWS)
            if width == 16:
                _fold(task, gradient, first, scale, square, tile, 16, FOLD_ROWS, BLOCK, PRECISION)
            if width == 32:
                _fold(task, gradient, first, scale, square, tile, 32, FOLD_ROWS, BLOCK, PRECISION)


@triton.jit
def _copy(task, gradient, first, scale, square, ROWS: tl.constexpr):
    position = first + tl.arange(0, ROWS)
    offset, real = rows(task, position)
    x = load_float(gradient, offset, real, tl.load(task + DTYPE)) * scale  # [ROWS]
    plane = floats(tl.load(task + PLANE_))
    tl.store(plane + position, x, mask=position < tl.load(task + POSITIONS))
    tl.store(square, tl.sum(x * x))


@triton.jit
def _fold(
    task, gradient, first, scale, square, tile,
    S: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    in_tensor, in_plane, inside, basis = folded(task, S)  # transposed: row k' is column k' of Q
    positions = tl.load(task + POSITIONS).to(tl.int32)
    plane = floats(tl.load(task + PLANE_))
    dtype = tl.load(task + DTYPE)
    gram = tl.zeros((S, S), tl.float32)
    last = tl.minimum(positions - first, ROWS).to(tl.int32)
    for start in range(0, last, BLOCK):
        position = first + start + tl.arange(0, BLOCK)
        offset, real = rows(task, position)
        mask = inside & real[None, :]
        x = load_float(gradient, in_tensor + offset[None, :], mask, dtype) * scale  # [S, BLOCK]
        gram = tl.dot(x, tl.trans(x), gram, input_precision=PRECISION)
        rotated = tl.dot(basis, x, input_precision=PRECISION)
        target = plane + (in_plane + position[None, :])
        tl.store(target, rotated, mask=inside & (position < positions)[None, :])
    row, column = tl.arange(0, S)[:, None], tl.arange(0, S)[None, :]
    partial = (tile - tl.load(task + FIRST_TILE)) * (S * S) + (row * S + column)
    tl.store(floats(tl.load(task + PARTIALS)) + partial, gram)
    tl.store(square, tl.sum(tl.where(row == column, gram, 0.0)))
