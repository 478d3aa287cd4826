"""fold_gram: factors of the folded modes follow the gradient.

    K[a, b] = beta_s K[a, b] + (1 - beta_s) sum over the tensor's tiles of G[a, b]

G is the lower triangle that gather has left of a mode of a pair, or a partial trace of the joint
Gram matrix J [fold, fold] of all folded modes, outer x size x inner:

    G[a, b] = sum_{o, i} J[(o, a, i), (o, b, i)]
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import FOLD_GRAM, OPTIONS, SCALARS, TENSOR
from soap_fast.triton_kernels.table import floats

COLUMNS = tl.constexpr(len(FOLD_GRAM))
TENSOR_ = tl.constexpr(FOLD_GRAM["tensor"])
PARTIALS = tl.constexpr(FOLD_GRAM["partials"])
COUNT = tl.constexpr(FOLD_GRAM["count"])
SUMS = tl.constexpr(FOLD_GRAM["sums"])
FIRST = tl.constexpr(FOLD_GRAM["first"])
TRIANGLE = tl.constexpr(FOLD_GRAM["triangle"])
PADDED = tl.constexpr(FOLD_GRAM["padded"])
SIZE = tl.constexpr(FOLD_GRAM["size"])
REST = tl.constexpr(FOLD_GRAM["rest"])
INNER = tl.constexpr(FOLD_GRAM["inner"])
FACTOR = tl.constexpr(FOLD_GRAM["factor"])
TENSOR_COLUMNS = tl.constexpr(len(TENSOR))
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
BETA_S = tl.constexpr(OPTIONS["beta_s"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])


@triton.jit(do_not_specialize=["n_tiles"])
def fold_gram(
    tiles,  # [n, 2] int32: task, row of the factor
    tasks,  # [m, COLUMNS] int64
    tensors,
    option_rows,
    scalars,
    n_tiles,
    WIDTH: tl.constexpr,  # of a folded mode at most
    TILES: tl.constexpr,  # of gather that are read at once
):
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        task = tasks + tl.load(tiles + 2 * tile).to(tl.int64) * COLUMNS
        a = tl.load(tiles + 2 * tile + 1)
        tensor = tl.load(task + TENSOR_)
        row = tl.load(tensors + tensor * TENSOR_COLUMNS + OPTIONS_ROW) * OPTION_COLUMNS
        beta = tl.load(option_rows + row + BETA_S)
        if tl.load(scalars + tensor * SCALAR_COLUMNS + TAKEN) != 0.0:
            size = tl.load(task + SIZE).to(tl.int32)
            b = tl.arange(0, WIDTH)
            gram = tl.sum(_sums(task, a, b, size, WIDTH, TILES), 0)  # [WIDTH]
            at = floats(tl.load(task + FACTOR)) + a * size + b
            old = tl.load(at, mask=b < size, other=0.0)
            new = beta.to(tl.float32) * old + (1.0 - beta).to(tl.float32) * gram
            tl.store(at, new, mask=b < size)


@triton.jit
def _sums(task, a, b, size, WIDTH: tl.constexpr, TILES: tl.constexpr):
    """Row a of G in TILES parts [TILES, WIDTH], so that no sum waits for all the others."""
    sums = tl.load(task + SUMS).to(tl.int32)
    padded = tl.load(task + PADDED).to(tl.int32)
    inner = tl.load(task + INNER).to(tl.int32)
    count = tl.load(task + COUNT).to(tl.int32)
    # Of a dot with itself the two triangles may differ by rounding; the lower one is taken.
    upper, lower = tl.maximum(a, b), tl.minimum(a, b)
    entry = (upper * padded + lower) * inner
    if tl.load(task + TRIANGLE) != 0:
        entry = tl.load(task + FIRST).to(tl.int32) + upper * (upper + 1) // 2 + lower
    part = tl.arange(0, TILES)
    at = floats(tl.load(task + PARTIALS)) + (part[:, None] * sums + entry[None, :])
    total = tl.zeros((TILES, WIDTH), tl.float32)
    for start in range(0, count, TILES):
        inside = (start + part < count)[:, None] & (b < size)[None, :]
        one = tl.zeros((TILES, WIDTH), tl.float32)
        for rest in range(0, tl.load(task + REST).to(tl.int32)):
            diagonal = (rest // inner * size * inner + rest % inner) * (padded + 1)
            one += tl.load(at + start * sums + diagonal, mask=inside, other=0.0)
        total += one
    return total
