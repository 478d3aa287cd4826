"""apply: the direction, its folded mode rotated back, applied to the parameter as it is.

u[k, r] = sum_k' Q[k, k'] plane[k', r]
p = p - size u ;  p = p - decay p         in float32, rounded once to the parameter's dtype

Folds are rotated as in gather.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import PLANE, PLANE_KINDS, SCALARS
from soap_fast.triton_kernels.plane import (
    contiguous,
    elements,
    entry_in_tensor,
    fold_matrix,
    in_plane,
    in_use,
    load_entries,
    load_quads,
    quads,
    record,
    store_entries,
    store_quads,
    tile_in_plane,
    tile_in_tensor,
)
from soap_fast.triton_kernels.registers import joined, rotated, run_of
from soap_fast.triton_kernels.table import floats

COLUMNS = tl.constexpr(len(PLANE))
MATRIX = tl.constexpr(PLANE["matrix"])
FLAT = tl.constexpr(PLANE_KINDS["flat"])
FOLD_3 = tl.constexpr(PLANE_KINDS["fold_3_3"])
FOLD_5 = tl.constexpr(PLANE_KINDS["fold_5_5"])
FOLD_16 = tl.constexpr(PLANE_KINDS["fold_16"])
FOLD_32 = tl.constexpr(PLANE_KINDS["fold_32"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])
SIZE = tl.constexpr(SCALARS["size"])
DECAY = tl.constexpr(SCALARS["decay"])


@triton.jit(do_not_specialize=["n_tiles"])
def apply(
    tiles,  # [n, 2] int32: task, first position
    tasks,  # [m, COLUMNS] int64, a row for each tensor
    parameters,  # [m] int64, addresses
    scalars,  # [m, SCALAR_COLUMNS] float32
    n_tiles,
    ROWS: tl.constexpr,  # these as in gather
    FOLD_LANES: tl.constexpr,
    FOLD_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    number, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        # The next tile's record is on its way while this one is worked on.
        ahead = tiles + 2 * (tile + tl.num_programs(0))
        another = tile + tl.num_programs(0) < n_tiles
        next_number = tl.load(ahead, mask=another, other=0)
        next_first = tl.load(ahead + 1, mask=another, other=0)
        task = tasks + number.to(tl.int64) * COLUMNS
        scalar = scalars + number * SCALAR_COLUMNS
        parameter = tl.load(parameters + number)
        kind, linear, dtype, positions, plane = record(task)
        matrix = floats(tl.load(task + MATRIX))
        walk = (task, parameter, first, contiguous(linear, parameter), dtype, positions, plane)
        taken = tl.load(scalar + TAKEN)
        tl.debug_barrier()  # or the compiler loads the rest only where the tile is known to step
        if taken != 0.0:
            if kind == FLAT:
                _flat(walk, scalar, ROWS)
            if kind == FOLD_3:
                _unfold_pair(walk, scalar, matrix, 3, 4, FOLD_LANES)
            if kind == FOLD_5:
                _unfold_pair(walk, scalar, matrix, 5, 8, FOLD_LANES)
            if kind == FOLD_16:
                _unfold(walk, scalar, 16, FOLD_ROWS, BLOCK)
            if kind == FOLD_32:
                _unfold(walk, scalar, 32, FOLD_ROWS, BLOCK)
        number, first = next_number, next_first


@triton.jit
def _flat(walk, scalar, ROWS: tl.constexpr):
    task, parameter, first, run, dtype, positions, plane = walk
    if run:
        place, inside = in_plane(first, ROWS // 4), in_use(first, positions, ROWS // 4)
        u = tl.load(quads(plane, place, 4), mask=inside, other=0.0)
        _update(parameter, place, u, inside, scalar, dtype, True)
    else:
        for start in tl.range(first, first + ROWS, ROWS // 8, num_stages=1):
            place, inside = in_plane(start, ROWS // 32), in_use(start, positions, ROWS // 32)
            u = tl.load(quads(plane, place, 4), mask=inside, other=0.0)
            offset, real = elements(task, start, positions, ROWS // 32)
            _update(parameter, offset, u, real, scalar, dtype, False)


@triton.jit
def _unfold_pair(walk, scalar, matrix, D: tl.constexpr, PITCH: tl.constexpr, LANES: tl.constexpr):
    task, parameter, first, run, dtype, positions, plane = walk
    inside = in_use(first, positions, LANES)
    place = in_plane(first, LANES)
    n = load_entries(plane, place, inside, positions, 0, D * D)
    u = rotated(n, matrix, D, PITCH)
    if run:
        rows = run_of(u, D * D)
        _update_run(parameter, first, inside, rows, scalar, dtype, 0, 4 * D * D, LANES)
    else:  # by way of the plane, so that an entry after the other is enough
        store_entries(u, plane, place, inside, positions, 0, D * D)
        tl.debug_barrier()
        offset, real = elements(task, first, positions, LANES)
        for entry in tl.range(0, D * D, num_stages=1):
            one = tl.load(quads(plane, place + entry * positions, 4), mask=inside, other=0.0)
            at = offset + entry_in_tensor(task, entry, D)
            _update(parameter, at, one, real, scalar, dtype, False)


@triton.jit
def _update_run(
    parameter, first, inside, rows, scalar, dtype,
    START: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Of the N elements in a row that are a lane's, those from START on."""
    # Tiles of 64 spill beside the address of the matrices, which is read ahead (sm_100).
    WIDTH: tl.constexpr = 32 if N - START >= 32 else 4
    if START + WIDTH < N:  # the widest part last, when fewest registers hold the rest
        _update_run(parameter, first, inside, rows, scalar, dtype, START + WIDTH, N, LANES)
    lane = tl.arange(0, LANES)[:, None]
    offset = first * (N // 4) + (lane * N + START + tl.arange(0, WIDTH)[None, :])
    _update(parameter, offset, joined(rows, START, 1, WIDTH), inside, scalar, dtype, True)


@triton.jit
def _unfold(walk, scalar, S: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    task, parameter, first, _, dtype, positions, plane = walk
    basis = fold_matrix(task, S)
    last = tl.minimum(positions - first, ROWS).to(tl.int32)
    for start in tl.range(0, last, BLOCK, num_stages=1):
        source, inside = tile_in_plane(task, first + start, positions, plane, S, BLOCK)
        n = tl.load(source, mask=inside, other=0.0)  # [S, BLOCK]
        u = tl.dot(basis, n, input_precision="ieee")
        offset, mask = tile_in_tensor(task, first + start, positions, S, BLOCK)
        _update(parameter, offset, u, mask, scalar, dtype, False)


@triton.jit
def _update(parameter, offset, u, mask, scalar, dtype, ALIGNED: tl.constexpr):
    p = load_quads(parameter, offset, mask, dtype, ALIGNED)
    p = p - tl.load(scalar + SIZE) * u
    p = p - tl.load(scalar + DECAY) * p
    store_quads(parameter, offset, p, mask, dtype, ALIGNED)
