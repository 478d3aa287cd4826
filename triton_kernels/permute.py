"""permute: second moments follow the order of their bases' columns.

    out[i_1, .., i_k] = v[order_1[i_1], .., order_k[i_k]]

out is a plane; `settle` takes it from there. Entries of a tile are counted from its first one: digit by
digit, innermost axis first, what one axis leaves over is at most ROWS and goes to the next. So only
the first entry's digits take divisions, once a tile.
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
PITCH_INVERSE = tl.constexpr(PERMUTE["pitch_inverse"])
FIRST_AXIS = tl.constexpr(PERMUTE["first_axis"])
AXES = tl.constexpr(PERMUTE["axes"])
AXIS_COLUMNS = tl.constexpr(len(PERMUTE_AXIS))
SIZE = tl.constexpr(PERMUTE_AXIS["size"])
INVERSE = tl.constexpr(PERMUTE_AXIS["inverse"])
STEP = tl.constexpr(PERMUTE_AXIS["step"])
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
            first = tl.multiple_of(tl.load(tiles + 2 * tile + 1), 4)
            element = first + tl.arange(0, ROWS)
            pitch = tl.load(task + PITCH).to(tl.int32)
            inner = tl.load(task + INNER).to(tl.int32)
            row = first // pitch
            begin = first - row * pitch  # within the row, perhaps in its padding
            further, within = _split(
                begin + tl.arange(0, ROWS), pitch, tl.load(task + PITCH_INVERSE), ROWS
            )
            inside = element < tl.multiple_of(tl.load(task + ELEMENTS).to(tl.int32), 4)
            filled = inside & (within < inner)
            begin = tl.minimum(begin, inner)
            base = row * inner + begin  # the first entry's number, padding left out
            left = further * inner + within - begin
            source = tl.zeros_like(element)
            axis = axes + tl.load(task + FIRST_AXIS) * AXIS_COLUMNS
            for _ in range(0, tl.load(task + AXES).to(tl.int32)):
                size = tl.load(axis + SIZE).to(tl.int32)
                digit = base % size
                base = base // size
                left, index = _split(digit + left, size, tl.load(axis + INVERSE), ROWS)
                order = tl.load(axis + ORDER)
                if order != 0:
                    at = order.to(tl.pointer_type(tl.int64)) + index
                    index = tl.load(at, mask=filled, other=0).to(tl.int32)
                source += index * tl.load(axis + STEP).to(tl.int32)
                axis += AXIS_COLUMNS
            x = tl.load(floats(tl.load(task + SOURCE)) + source, mask=filled, other=0.0)
            tl.store(operand(tl.load(task + TARGET)) + element, x, mask=inside)


@triton.jit
def _split(x, size, inverse, ROWS: tl.constexpr):
    """Quotient and remainder of x < size + ROWS + 1.

    The quotient is 0 or 1 of sizes above ROWS. For others inverse is 2^32 / size, rounded up: with
    size * x < 2^32 the product's upper half is exact.
    """
    product = tl.umulhi(x.to(tl.uint32), inverse.to(tl.uint32)).to(tl.int32)
    quotient = tl.where(size > ROWS, (x >= size).to(tl.int32), product)
    return quotient, x - quotient * size
