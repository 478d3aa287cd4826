"""gather: gradients as they are into planes, in float32.

    plane[k', r] = sum_k Q[k, k'] g[k, r] / grad_scale          Q of the folded mode
    partials[tile] = g g^T over the rows of a tile, [S, S]      not rotated
    squares[tile]  = sum of g^2 over the tile

Any strides; float32, bfloat16 or float16. Padding of a plane is written as zero.
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import FOLD_AXES, PLANE, ROW_AXES
from soap_fast.triton_kernels.table import floats, load_float, strided

COLUMNS = tl.constexpr(len(PLANE))
TENSOR = tl.constexpr(PLANE["tensor"])
PLANE_ = tl.constexpr(PLANE["plane"])
FOLD = tl.constexpr(PLANE["fold"])
POSITIONS = tl.constexpr(PLANE["positions"])
INNER = tl.constexpr(PLANE["inner"])
PITCH = tl.constexpr(PLANE["pitch"])
DTYPE = tl.constexpr(PLANE["dtype"])
MATRIX = tl.constexpr(PLANE["matrix"])
PARTIALS = tl.constexpr(PLANE["partials"])
FIRST_TILE = tl.constexpr(PLANE["first_tile"])
ROWS_AT = tl.constexpr(PLANE["row0_size"])
FOLD_AT = tl.constexpr(PLANE["fold0_size"])
ROW_COUNT = tl.constexpr(ROW_AXES)
FOLD_COUNT = tl.constexpr(FOLD_AXES)


@triton.jit
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
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        task = tasks + tl.load(tiles + 3 * tile).to(tl.int64) * COLUMNS
        first = tl.load(tiles + 3 * tile + 1)
        width = tl.load(tiles + 3 * tile + 2)
        gradient = tl.load(gradients + tl.load(task + TENSOR))
        if gradient == 0:
            tl.store(squares + tile, 0.0)
        else:
            if width == 1:
                _copy(task, gradient, first, scale, squares + tile, ROWS)
            if width == 16:
                _fold(
                    task,
                    gradient,
                    first,
                    scale,
                    squares + tile,
                    tile,
                    16,
                    FOLD_ROWS,
                    BLOCK,
                    PRECISION,
                )
            if width == 32:
                _fold(
                    task,
                    gradient,
                    first,
                    scale,
                    squares + tile,
                    tile,
                    32,
                    FOLD_ROWS,
                    BLOCK,
                    PRECISION,
                )


@triton.jit
def row_index(task, position):
    """Index of rows at these positions of a plane, and whether they are rows and not padding."""
    inner = tl.load(task + INNER).to(tl.int32)
    pitch = tl.load(task + PITCH).to(tl.int32)
    within = position % pitch
    real = (within < inner) & (position < tl.load(task + POSITIONS).to(tl.int32))
    return position // pitch * inner + within, real


@triton.jit
def _copy(task, gradient, first, scale, square, ROWS: tl.constexpr):
    position = first + tl.arange(0, ROWS)
    row, real = row_index(task, position)
    offset = strided(row, task + ROWS_AT, ROW_COUNT)
    x = load_float(gradient, offset, real, tl.load(task + DTYPE)) * scale  # [ROWS]
    plane = floats(tl.load(task + PLANE_))
    tl.store(plane + position, x, mask=position < tl.load(task + POSITIONS))
    tl.store(square, tl.sum(x * x))


@triton.jit
def _fold(
    task, gradient, first, scale, square, tile,
    S: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, S)
    fold = tl.load(task + FOLD)
    positions = tl.load(task + POSITIONS).to(tl.int32)
    along_fold = strided(k, task + FOLD_AT, FOLD_COUNT)
    square_entries = k[:, None] * S + k[None, :]
    # The transposed basis: row k' holds column k' of Q.
    basis = tl.load(floats(tl.load(task + MATRIX)) + square_entries)  # [S, S]
    plane = floats(tl.load(task + PLANE_))
    dtype = tl.load(task + DTYPE)
    gram = tl.zeros((S, S), tl.float32)
    last = tl.minimum(positions - first, ROWS).to(tl.int32)
    for start in range(0, last, BLOCK):
        position = first + start + tl.arange(0, BLOCK)
        row, real = row_index(task, position)
        offset = along_fold[:, None] + strided(row, task + ROWS_AT, ROW_COUNT)[None, :]
        inside = (k < fold)[:, None]
        x = load_float(gradient, offset, inside & real[None, :], dtype) * scale  # [S, BLOCK]
        gram = tl.dot(x, tl.trans(x), gram, input_precision=PRECISION)
        rotated = tl.dot(basis, x, input_precision=PRECISION)
        target = plane + (k[:, None] * positions + position[None, :])
        tl.store(target, rotated, mask=inside & (position < positions)[None, :])
    index = tile - tl.load(task + FIRST_TILE)
    tl.store(floats(tl.load(task + PARTIALS)) + index * (S * S) + square_entries, gram)
    diagonal = tl.where(k[:, None] == k[None, :], gram, 0.0)
    tl.store(square, tl.sum(diagonal))
