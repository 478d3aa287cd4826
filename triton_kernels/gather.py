"""gather: gradients as they are into planes, in float32.

    plane[k', r] = sum_k Q[k, k'] g[k, r] / grad_scale          Q of the folded mode
    partials[tile] = Gram sums of the folded modes over the rows of a tile, not rotated
    squares[tile]  = sum of g^2 over the tile

Any strides; float32, bfloat16 or float16. Padding of a plane is written as zero. Folds of two modes
of 3 or of 5 are rotated in registers, one mode after the other, and leave both modes' triangles;
all others are a product of tiles in full precision, and leave the joint matrix [S, S].
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import PLANE, PLANE_KINDS
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
    tile_in_plane,
    tile_in_tensor,
)
from soap_fast.triton_kernels.registers import apart, entries_of, gram_sums, rotated
from soap_fast.triton_kernels.table import floats

COLUMNS = tl.constexpr(len(PLANE))
MATRIX = tl.constexpr(PLANE["matrix"])
PLANAR = tl.constexpr(PLANE["planar"])
PARTIALS = tl.constexpr(PLANE["partials"])
FIRST_TILE = tl.constexpr(PLANE["first_tile"])
FLAT = tl.constexpr(PLANE_KINDS["flat"])
FOLD_3 = tl.constexpr(PLANE_KINDS["fold_3_3"])
FOLD_5 = tl.constexpr(PLANE_KINDS["fold_5_5"])
FOLD_16 = tl.constexpr(PLANE_KINDS["fold_16"])
FOLD_32 = tl.constexpr(PLANE_KINDS["fold_32"])


@triton.jit(do_not_specialize=["n_tiles"])
def gather(
    tiles,  # [n, 2] int32: task, first position
    tasks,  # [m, COLUMNS] int64, a row for each tensor
    gradients,  # [m] int64, addresses; 0 without a gradient
    inverse_scale,  # [1] float32
    squares,  # [n] float32
    n_tiles,
    ROWS: tl.constexpr,  # positions of a tile without a fold
    FOLD_LANES: tl.constexpr,  # of a tile that is rotated in registers, four positions each
    FOLD_ROWS: tl.constexpr,  # positions of a tile with any other fold, BLOCK at a time
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
        gradient = tl.load(gradients + number)
        kind, linear, dtype, positions, plane = record(task)
        walk = (task, gradient, first, contiguous(linear, gradient), dtype, positions, plane)
        scale = tl.load(inverse_scale)  # kept by no register in between
        if gradient == 0:
            tl.store(squares + tile, 0.0)
        else:
            if kind == FLAT:
                _copy(walk, scale, squares, tile, ROWS)
            if kind == FOLD_3:
                _fold_pair(walk, scale, squares, tile, 3, 4, 16, FOLD_LANES)
            if kind == FOLD_5:
                _fold_pair(walk, scale, squares, tile, 5, 8, 32, FOLD_LANES)
            if kind == FOLD_16:
                _fold(walk, scale, squares, tile, 16, FOLD_ROWS, BLOCK)
            if kind == FOLD_32:
                _fold(walk, scale, squares, tile, 32, FOLD_ROWS, BLOCK)
        number, first = next_number, next_first


@triton.jit
def _copy(walk, scale, squares, tile, ROWS: tl.constexpr):
    task, gradient, first, run, dtype, positions, plane = walk
    if run:
        place, inside = in_plane(first, ROWS // 4), in_use(first, positions, ROWS // 4)
        x = load_quads(gradient, place, inside, dtype, True) * scale  # [ROWS / 4, 4]
        tl.store(quads(plane, place, 4), x, mask=inside)
        total = tl.sum(tl.reshape(x * x, (8, ROWS // 32, 4)), 0)
    else:
        total = tl.zeros((ROWS // 32, 4), tl.float32)
        for start in tl.range(first, first + ROWS, ROWS // 8, num_stages=1):
            place, inside = in_plane(start, ROWS // 32), in_use(start, positions, ROWS // 32)
            offset, real = elements(task, start, positions, ROWS // 32)
            x = load_quads(gradient, offset, real, dtype, False) * scale
            tl.store(quads(plane, place, 4), x, mask=inside)
            total += x * x
    # By columns first: a sum of scalars over warps keeps a register from tile to tile.
    columns = tl.sum(tl.reshape(total, (ROWS // 256, 32)), 0)
    tl.store(squares + tile, tl.sum(columns))


@triton.jit
def _fold_pair(
    walk, scale, squares, tile,
    D: tl.constexpr, PITCH: tl.constexpr, SUMS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    task, gradient, first, run, dtype, positions, plane = walk
    inside = in_use(first, positions, LANES)
    place = in_plane(first, LANES)
    if run:
        x = entries_of(_run(gradient, first, inside, dtype, 0, 4 * D * D, LANES), D * D)
    else:
        source = plane
        # A choice of sources beside 25 entries spills (sm_100, sm_120).
        if D == 3 and (tl.load(task + PLANAR) != 0) & (gradient % 16 == 0):
            source = floats(gradient)
        else:  # by way of the plane, so that an entry after the other is enough
            _spread(walk, place, inside, D, LANES)
            tl.debug_barrier()
        x = load_entries(source, place, inside, positions, 0, D * D)
    scaled = ()
    for entry in tl.static_range(D * D):
        scaled = scaled + (x[entry] * scale,)  # noqa: RUF005

    sums = gram_sums(scaled, D, SUMS)
    number = tl.arange(0, SUMS)
    partials = floats(tl.load(task + PARTIALS)) + (tile - tl.load(task + FIRST_TILE)) * SUMS
    tl.store(partials + number, sums)
    # The diagonal of the first mode: 0, 2, 5, 9, 14.
    diagonal = (number == 0) | (number == 2) | (number == 5)
    if D == 5:
        diagonal = diagonal | (number == 9) | (number == 14)
    tl.store(squares + tile, tl.sum(tl.where(diagonal, sums, 0.0)))

    tl.debug_barrier()  # or the compiler loads matrices while registers hold the sums
    out = rotated(scaled, floats(tl.load(task + MATRIX)), D, PITCH)
    store_entries(out, plane, place, inside, positions, 0, D * D)


@triton.jit
def _run(gradient, first, inside, dtype, START: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr):
    """Of the N elements in a row that are a lane's, those from START on."""
    WIDTH: tl.constexpr = 64 if N - START >= 64 else 32 if N - START >= 32 else 4
    lane = tl.arange(0, LANES)[:, None]
    offset = first * (N // 4) + (lane * N + START + tl.arange(0, WIDTH)[None, :])
    x = load_quads(gradient, offset, inside, dtype, True)  # [LANES, WIDTH]
    if START + WIDTH == N:
        return apart(x, WIDTH)
    else:
        return apart(x, WIDTH) + _run(gradient, first, inside, dtype, START + WIDTH, N, LANES)


@triton.jit
def _spread(walk, place, inside, D: tl.constexpr, LANES: tl.constexpr):
    """Entries of a tensor with any strides into the plane as they are."""
    task, gradient, first, _, dtype, positions, plane = walk
    offset, real = elements(task, first, positions, LANES)
    for entry in tl.range(0, D * D, num_stages=1):
        at = offset + entry_in_tensor(task, entry, D)
        x = load_quads(gradient, at, real, dtype, False)
        tl.store(quads(plane, place + entry * positions, 4), x, mask=inside)


@triton.jit
def _fold(walk, scale, squares, tile, S: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    task, gradient, first, _, dtype, positions, plane = walk
    last = tl.minimum(positions - first, ROWS).to(tl.int32)
    gram = tl.zeros((S, S), tl.float32)
    for start in tl.range(first, first + last, BLOCK, num_stages=1):
        offset, mask = tile_in_tensor(task, start, positions, S, BLOCK)
        x = load_quads(gradient, offset, mask, dtype, False) * scale  # [S, BLOCK]
        gram = tl.dot(x, tl.trans(x), gram, input_precision="ieee")
    partials = floats(tl.load(task + PARTIALS)) + (tile - tl.load(task + FIRST_TILE)) * (S * S)
    k = tl.arange(0, S)
    tl.store(partials + (k[:, None] * S + k[None, :]), gram)
    tl.debug_barrier()
    tl.store(squares + tile, tl.sum(tl.load(partials + k * (S + 1))))  # its trace
    # The gradient is read again: both products' operands at once would not fit in registers.
    basis = fold_matrix(task, S)  # transposed: row k' is column k' of Q
    for start in tl.range(first, first + last, BLOCK, num_stages=1):
        offset, mask = tile_in_tensor(task, start, positions, S, BLOCK)
        x = load_quads(gradient, offset, mask, dtype, False) * scale
        target, inside = tile_in_plane(task, start, positions, plane, S, BLOCK)
        tl.store(target, tl.dot(basis, x, input_precision="ieee"), mask=inside)
