"""permute: second moments follow the order of their bases' columns.

    out[i_1, .., i_k] = v[order_1[i_1], .., order_k[i_k]]

out is a plane, without padding; `settle` brings it back.
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import PERMUTE, PERMUTE_AXIS, SCALARS
from soap_fast.triton_kernels.table import floats

COLUMNS = tl.constexpr(len(PERMUTE))
TENSOR = tl.constexpr(PERMUTE["tensor"])
SOURCE = tl.constexpr(PERMUTE["source"])
TARGET = tl.constexpr(PERMUTE["target"])
NUMEL = tl.constexpr(PERMUTE["numel"])
FIRST_AXIS = tl.constexpr(PERMUTE["first_axis"])
AXES = tl.constexpr(PERMUTE["axes"])
AXIS_COLUMNS = tl.constexpr(len(PERMUTE_AXIS))
SIZE = tl.constexpr(PERMUTE_AXIS["size"])
ORDER = tl.constexpr(PERMUTE_AXIS["order"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])


@triton.jit(do_not_specialize=["n_tiles"])
def permute(
    tiles,  # [n, 2] int32: task, first element
    tasks,  # [m, COLUMNS] int64
    axes,  # [all axes, AXIS_COLUMNS] int64
    carried,  # [tensors, SCALAR_COLUMNS] float32
    n_tiles,
    ROWS: tl.constexpr,
):
    for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        task = tasks + tl.load(tiles + 2 * tile).to(tl.int64) * COLUMNS
        if tl.load(carried + tl.load(task + TENSOR) * SCALAR_COLUMNS + TAKEN) != 0.0:
            element = tl.load(tiles + 2 * tile + 1) + tl.arange(0, ROWS)
            inside = element < tl.load(task + NUMEL).to(tl.int32)
            count = tl.load(task + AXES).to(tl.int32)
            last = axes + (tl.load(task + FIRST_AXIS) + count - 1) * AXIS_COLUMNS
            source = tl.zeros_like(element)
            rest = element
            stride = tl.full((), 1, tl.int32)
            for place in range(0, count):
                row = last - place * AXIS_COLUMNS
                size = tl.load(row + SIZE).to(tl.int32)
                index = rest % size
                order = tl.load(row + ORDER)
                if order != 0:
                    at = order.to(tl.pointer_type(tl.int64)) + index
                    index = tl.load(at, mask=inside, other=0).to(tl.int32)
                source += index * stride
                rest = rest // size
                stride = stride * size
            x = tl.load(floats(tl.load(task + SOURCE)) + source, mask=inside, other=0.0)
            tl.store(floats(tl.load(task + TARGET)) + element, x, mask=inside)
