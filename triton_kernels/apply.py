"""apply: the direction, its folded mode rotated back, applied to the parameter as it is.

u[k, r] = sum_k' Q[k, k'] plane[k', r]
p = p - size u ;  p = p - decay p         in float32, rounded once to the parameter's dtype
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import PLANE, SCALARS
from soap_fast.triton_kernels.plane import folded, rows
from soap_fast.triton_kernels.table import floats, load_float, store_float

COLUMNS = tl.constexpr(len(PLANE))
TENSOR = tl.constexpr(PLANE["tensor"])
PLANE_ = tl.constexpr(PLANE["plane"])
POSITIONS = tl.constexpr(PLANE["positions"])
DTYPE = tl.constexpr(PLANE["dtype"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])
SIZE = tl.constexpr(SCALARS["size"])
DECAY = tl.constexpr(SCALARS["decay"])


@triton.jit(do_not_specialize=["n_tiles"])
def apply(
    tiles,  # [n, 3] int32: task, first position, width of the fold's tile
    tasks,  # [m, COLUMNS] int64
    parameters,  # [tensors] int64, addresses
    scalars,  # [tensors, SCALAR_COLUMNS] float32
    n_tiles,
    ROWS: tl.constexpr,
    FOLD_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        task = tasks + tl.load(tiles + 3 * tile).to(tl.int64) * COLUMNS
        first = tl.load(tiles + 3 * tile + 1)
        width = tl.load(tiles + 3 * tile + 2)
        index = tl.load(task + TENSOR)
        scalar = scalars + index * SCALAR_COLUMNS
        if tl.load(scalar + TAKEN) != 0.0:
            parameter = tl.load(parameters + index)
            if width == 1:
                _flat(task, parameter, scalar, first, ROWS)
            if width == 16:
                _unfold(task, parameter, scalar, first, 16, FOLD_ROWS, BLOCK, PRECISION)
            if width == 32:
                _unfold(task, parameter, scalar, first, 32, FOLD_ROWS, BLOCK, PRECISION)


@triton.jit
def _flat(task, parameter, scalar, first, ROWS: tl.constexpr):
    position = first + tl.arange(0, ROWS)
    offset, real = rows(task, position)
    u = tl.load(floats(tl.load(task + PLANE_)) + position, mask=real, other=0.0)
    _update(parameter, offset, u, real, scalar, tl.load(task + DTYPE))


@triton.jit
def _unfold(
    task, parameter, scalar, first,
    S: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    in_tensor, in_plane, inside, basis = folded(task, S)
    plane = floats(tl.load(task + PLANE_))
    last = tl.minimum(tl.load(task + POSITIONS).to(tl.int32) - first, ROWS).to(tl.int32)
    for start in range(0, last, BLOCK):
        position = first + start + tl.arange(0, BLOCK)
        offset, real = rows(task, position)
        mask = inside & real[None, :]
        source = plane + (in_plane + position[None, :])
        n = tl.load(source, mask=mask, other=0.0)  # [S, BLOCK]
        u = tl.dot(basis, n, input_precision=PRECISION)
        _update(parameter, in_tensor + offset[None, :], u, mask, scalar, tl.load(task + DTYPE))


@triton.jit
def _update(parameter, offset, u, mask, scalar, dtype):
    p = load_float(parameter, offset, mask, dtype)
    p = p - tl.load(scalar + SIZE) * u
    p = p - tl.load(scalar + DECAY) * p
    store_float(parameter, offset, p, mask, dtype)
