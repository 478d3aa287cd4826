"""fold_gram: factors of a folded mode follow the gradient.

    J = sum over the tensor's tiles of partials[tile]         joint Gram matrix [fold, fold]
    K[a, b] = beta_s K[a, b] + (1 - beta_s) sum_{o, i} J[(o, a, i), (o, b, i)]

The joint mode is outer x size x inner; K is the partial trace over the other two.
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import FOLD_GRAM, OPTIONS, SCALARS, TENSOR
from soap_fast.triton_kernels.table import floats

COLUMNS = tl.constexpr(len(FOLD_GRAM))
TENSOR_ = tl.constexpr(FOLD_GRAM["tensor"])
PARTIALS = tl.constexpr(FOLD_GRAM["partials"])
COUNT = tl.constexpr(FOLD_GRAM["count"])
PADDED = tl.constexpr(FOLD_GRAM["padded"])
SIZE = tl.constexpr(FOLD_GRAM["size"])
FOLD = tl.constexpr(FOLD_GRAM["fold"])
INNER = tl.constexpr(FOLD_GRAM["inner"])
FACTOR = tl.constexpr(FOLD_GRAM["factor"])
TENSOR_COLUMNS = tl.constexpr(len(TENSOR))
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
BETA_S = tl.constexpr(OPTIONS["beta_s"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])


@triton.jit(do_not_specialize=["n_tasks"])
def fold_gram(
    tasks,  # [n, COLUMNS] int64
    tensors,
    option_rows,
    scalars,
    n_tasks,
    WIDTH: tl.constexpr,  # of a folded mode at most
):
    for index in range(tl.program_id(0), n_tasks, tl.num_programs(0)):
        task = tasks + index * COLUMNS
        tensor = tl.load(task + TENSOR_)
        if tl.load(scalars + tensor * SCALAR_COLUMNS + TAKEN) != 0.0:
            row = tl.load(tensors + tensor * TENSOR_COLUMNS + OPTIONS_ROW) * OPTION_COLUMNS
            beta = tl.load(option_rows + row + BETA_S)
            padded = tl.load(task + PADDED)
            size = tl.load(task + SIZE)
            fold = tl.load(task + FOLD)
            inner = tl.load(task + INNER)
            a = tl.arange(0, WIDTH)[:, None]
            b = tl.arange(0, WIDTH)[None, :]
            inside = (a < size) & (b < size)
            entry = (a * padded + b) * inner
            acc = tl.zeros((WIDTH, WIDTH), tl.float32)
            for tile in range(0, tl.load(task + COUNT)):
                joint = floats(tl.load(task + PARTIALS)) + tile * padded * padded
                for rest in range(0, fold // size):
                    diagonal = rest // inner * size * inner + rest % inner
                    at = joint + diagonal * (padded + 1) + entry
                    acc += tl.load(at, mask=inside, other=0.0)
            at = floats(tl.load(task + FACTOR)) + a * size + b
            old = tl.load(at, mask=inside, other=0.0)
            # Of a dot with itself the two triangles may differ by rounding; the lower one is taken.
            lower = tl.where(a >= b, acc, tl.trans(acc))
            new = beta.to(tl.float32) * old + (1.0 - beta).to(tl.float32) * lower
            tl.store(at, new, mask=inside)
