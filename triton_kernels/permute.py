"""permute: second moments follow the order of their bases' columns.

    out[i_1, .., i_k] = v[order_1[i_1], .., order_k[i_k]]

out is a plane, without padding; `settle` brings it back.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import PERMUTE, PERMUTE_AXIS, SCALARS
from soap_fast.triton_kernels.table import floats, operand

COLUMNS = tl.constexpr(len(PERMUTE))
TENSOR = tl.constexpr(PERMUTE["tensor"])
SOURCE = tl.constexpr(PERMUTE["source"])
TARGET = tl.constexpr(PERMUTE["target"])
ELEMENTS = tl.constexpr(PERMUTE["elements"])
INNER = tl.constexpr(PERMUTE["inner"])
PITCH = tl.constexpr(PERMUTE["pitch"])
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
            element = tl.multiple_of(tl.load(tiles + 2 * tile + 1), 4) + tl.arange(0, ROWS)
            pitch = tl.load(task + PITCH).to(tl.int32)
            inner = tl.load(task + INNER).to(tl.int32)
            row = element // pitch
            within = element - row * pitch
            inside = element < tl.multiple_of(tl.load(task + ELEMENTS).to(tl.int32), 4)
            filled = inside & (within < inner)
            count = tl.load(task + AXES).to(tl.int32)
            last = axes + (tl.load(task + FIRST_AXIS) + count - 1) * AXIS_COLUMNS
            source = tl.zeros_like(element)
            rest = row * inner + within
            stride = tl.full((), 1, tl.int32)
            for place in range(0, count):
                axis = last - place * AXIS_COLUMNS
                size = tl.load(axis + SIZE).to(tl.int32)
                quotient = rest // size
                index = rest - quotient * size
                order = tl.load(axis + ORDER)
                if order != 0:
                    at = order.to(tl.pointer_type(tl.int64)) + index
                    index = tl.load(at, mask=filled, other=0).to(tl.int32)
                source += index * stride
                rest = quotient
                stride = stride * size
            source += source // inner * (pitch - inner)
            x = tl.load(floats(tl.load(task + SOURCE)) + source, mask=filled, other=0.0)
            tl.store(operand(tl.load(task + TARGET)) + element, x, mask=inside)
