"""norm: step sizes of tensors under normalize_grads.

size = size / (1e-30 + rms(u)),    rms(u) = rms(n) since bases are orthogonal
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import OPTIONS, SCALARS, TENSOR

COLUMNS = tl.constexpr(len(TENSOR))
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
FIRST_DIRECTION = tl.constexpr(TENSOR["first_direction"])
DIRECTIONS = tl.constexpr(TENSOR["directions"])
NUMEL = tl.constexpr(TENSOR["numel"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
NORMALIZE = tl.constexpr(OPTIONS["normalize"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
SIZE = tl.constexpr(SCALARS["size"])


@triton.jit(do_not_specialize=["n_tensors"])
def norm(tensors, option_rows, scalars, directions, n_tensors, BLOCK: tl.constexpr):
    for index in range(tl.program_id(0), n_tensors, tl.num_programs(0)):
        tensor = tensors + index * COLUMNS
        row = option_rows + tl.load(tensor + OPTIONS_ROW) * OPTION_COLUMNS
        if tl.load(row + NORMALIZE) != 0.0:
            count = tl.load(tensor + DIRECTIONS)
            sums = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, count, BLOCK):
                place = start + tl.arange(0, BLOCK)
                at = directions + tl.load(tensor + FIRST_DIRECTION) + place
                sums += tl.load(at, mask=place < count, other=0.0)
            mean = tl.sum(sums) / tl.load(tensor + NUMEL).to(tl.float32)
            at = scalars + index * SCALAR_COLUMNS + SIZE
            tl.store(at, tl.load(at) / (1e-30 + tl.sqrt(mean)))
