"""rotate: one product per tensor along one mode, and in the last one Adam.

    out[n, i] = sum_k b[n, k] a[i, k]

a is rows of a plane, b rows of a basis; both are contiguous along k. The output has its new mode as
the slowest axis behind the fold (`Level` in soap_fast/step/layout.py says where), so that tiles
are written along their rows, or, where there is no other mode, along their columns. With ADAM the
product g' = out is not stored; what is, is

    m = beta1 m + (1 - beta1) g' ;  v = beta2 v + (1 - beta2) g'^2 ;  out = n = m / (sqrt(v) + eps)

and n = 0 where sqrt(v) is below the tensor's noise floor. Moments lie as out does. All that a tile
reads of a table is one record.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import OPTIONS, ROTATE, ROTATE_CLASSES, SCALARS, TENSOR
from soap_fast.triton_kernels.product import product_of_rows
from soap_fast.triton_kernels.table import operand

COLUMNS = tl.constexpr(len(ROTATE))
TENSOR_ = tl.constexpr(ROTATE["tensor"])
KIND = tl.constexpr(ROTATE["kind"])
A = tl.constexpr(ROTATE["a"])
B = tl.constexpr(ROTATE["b"])
OUT = tl.constexpr(ROTATE["out"])
EXP_AVG = tl.constexpr(ROTATE["exp_avg"])
EXP_AVG_SQ = tl.constexpr(ROTATE["exp_avg_sq"])
K = tl.constexpr(ROTATE["k"])
ROWS = tl.constexpr(ROTATE["rows"])
MODES = tl.constexpr(ROTATE["modes"])
STORED = tl.constexpr(ROTATE["stored"])
STEP = tl.constexpr(ROTATE["step"])
BLOCK_PLACE = tl.constexpr(ROTATE["block_place"])
BLOCK = tl.constexpr(ROTATE["block"])
BLOCK_INVERSE = tl.constexpr(ROTATE["block_inverse"])
BLOCK_JUMP = tl.constexpr(ROTATE["block_jump"])
RUN_PLACE = tl.constexpr(ROTATE["run_place"])
RUN_INVERSE = tl.constexpr(ROTATE["run_inverse"])
RUN_INNER = tl.constexpr(ROTATE["run_inner"])
RUN_PITCH = tl.constexpr(ROTATE["run_pitch"])
CLASSES = tl.constexpr(len(ROTATE_CLASSES))
HEIGHTS, WIDTHS, ALONG = (tl.constexpr(x) for x in zip(*ROTATE_CLASSES, strict=True))
TENSOR_COLUMNS = tl.constexpr(len(TENSOR))
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
BETA1 = tl.constexpr(OPTIONS["beta1"])
BETA2 = tl.constexpr(OPTIONS["beta2"])
EPS = tl.constexpr(OPTIONS["eps"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])
FLOOR = tl.constexpr(SCALARS["floor"])
MOST = tl.constexpr(64 * 32)  # elements of a tile whose moments are in registers at once
LANES = tl.constexpr(32)  # sums of n^2 that a tile hands over; their sum is taken once
LEAST = tl.constexpr(2.0**-63)


@triton.jit(do_not_specialize=["n_tiles"])
def rotate(
    records,  # [n, COLUMNS] int64
    tensors,  # [tensors, TENSOR_COLUMNS] int64
    option_rows,  # [groups, OPTION_COLUMNS] float64
    scalars,  # [tensors, SCALAR_COLUMNS] float32
    directions,  # sums of n^2 by tile, float32
    n_tiles,
    ADAM: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    TALL: tl.constexpr,  # rows that are computed at once, at most
):
    # A tile's tensor and kind are known before it begins: the rest of its record, and whether its
    # tensor is taken, are then read at once, and its operands next.
    step = tl.num_programs(0)
    tensor, kind = tensor_and_kind(records + tl.program_id(0) * COLUMNS)
    for tile in tl.range(tl.program_id(0), n_tiles, step, disable_licm=True):
        record = records + tile * COLUMNS
        following = records + tl.minimum(tile + step, n_tiles - 1) * COLUMNS
        next_tensor, next_kind = tensor, kind
        squares = tl.zeros((LANES,), tl.float32)
        for number in tl.static_range(CLASSES):
            if kind == number:
                next_tensor, next_kind, squares = _tile(
                    record,
                    following,
                    tensor,
                    tensors,
                    option_rows,
                    scalars,
                    number,
                    ADAM,
                    PRECISION,
                    BK,
                    STAGES,
                    TALL,
                )
        if ADAM:
            tl.store(directions + tile, tl.sum(squares))
        tensor, kind = next_tensor, next_kind


@triton.jit
def _tile(
    record, following, tensor, tensors, option_rows, scalars,
    NUMBER: tl.constexpr, ADAM: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    """A tile of the product, and what becomes of it; with ADAM also its sum of n^2.

    Returns:
        Tensor and kind of the record that follows. Read here, they are on their way meanwhile: the
        compiler would wait for them where tiles of all kinds begin.
    """
    HEIGHT: tl.constexpr = HEIGHTS[NUMBER]
    # Without tensor cores more than 64 rows spill.
    BM: tl.constexpr = min(HEIGHT, 64 if PRECISION == "ieee" else TALL)
    BN: tl.constexpr = WIDTHS[NUMBER]
    BY_ROWS: tl.constexpr = ALONG[NUMBER]
    # Beside products of CUDA cores they would spill (sm_86).
    AHEAD: tl.constexpr = PRECISION != "ieee"
    if AHEAD:
        next_tensor, next_kind = tensor_and_kind(following)
    taken = tl.load(scalars + tensor * SCALAR_COLUMNS + TAKEN) != 0.0
    squares = tl.zeros((LANES,), tl.float32)
    for first in tl.range(0, HEIGHT, BM, num_stages=1):
        acc = tile_product(record, taken, first, BM, BN, BY_ROWS, PRECISION, BK, STAGES)
        row = option_rows
        floor = 0.0
        if ADAM:
            options = tl.load(tensors + tensor * TENSOR_COLUMNS + OPTIONS_ROW)
            row = option_rows + options * OPTION_COLUMNS
            floor = tl.load(scalars + tensor * SCALAR_COLUMNS + FLOOR)
        squares += _finish_parts(record, taken, row, floor, acc, first, 0, BY_ROWS, ADAM)
    if not AHEAD:
        next_tensor, next_kind = tensor_and_kind(following)
    return next_tensor, next_kind, squares


@triton.jit
def tensor_and_kind(record):
    return tl.load(record + TENSOR_).to(tl.int32), tl.load(record + KIND).to(tl.int32)


@triton.jit
def _finish_parts(
    record, taken, options, floor, g, first, column: tl.constexpr,
    BY_ROWS: tl.constexpr, ADAM: tl.constexpr,
):  # fmt: skip
    """`_finish` of some columns after the others: moments of all would not fit in registers."""
    if ADAM and g.numel > MOST:
        HALF: tl.constexpr = g.shape[1] // 2
        left, right = g.reshape(g.shape[0], 2, HALF).permute(0, 2, 1).split()
        squares = _finish_parts(record, taken, options, floor, left, first, column, BY_ROWS, ADAM)
        NEXT: tl.constexpr = column + HALF
        squares += _finish_parts(record, taken, options, floor, right, first, NEXT, BY_ROWS, ADAM)
    else:
        squares = _finish(record, taken, options, floor, g, first, column, BY_ROWS, ADAM)
    return squares


@triton.jit
def tile_product(
    record, taken, first,
    BM: tl.constexpr, BN: tl.constexpr, BY_ROWS: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """BM of its rows by BN modes, from row `first` on; of a tensor that is not taken 0, unread."""
    i = first + tl.arange(0, BM)
    k = tl.arange(0, BK)
    row = i
    if BY_ROWS:  # of every run of positions the first are rows of a, the rest is padding
        run, _ = _split(i, record + RUN_PLACE, record + RUN_PITCH, record + RUN_INVERSE)
        skipped = tl.load(record + RUN_PITCH) - tl.load(record + RUN_INNER)
        row = i - run * skipped.to(tl.int32)
    # Beyond the edges the last row is read again: masks would take registers in the loop.
    a_row = tl.minimum(row, tl.load(record + ROWS).to(tl.int32) - 1)
    b_row = tl.minimum(tl.arange(0, BN), tl.load(record + MODES).to(tl.int32) - 1)
    length = tl.multiple_of(tl.load(record + K).to(tl.int32), 4)
    a_at = operand(tl.load(record + A)) + (a_row[:, None] * length + k[None, :])
    b_at = operand(tl.load(record + B)) + (b_row[:, None] * length + k[None, :])
    terms = tl.where(taken, length, 0)
    return product_of_rows(a_at, b_at, terms, PRECISION, BK, STAGES)


@triton.jit
def _finish(
    record, taken, options, floor, g, first, column: tl.constexpr,
    BY_ROWS: tl.constexpr, ADAM: tl.constexpr,
):  # fmt: skip
    """Write some columns of a tile, or with ADAM what follows from them; the sum of n^2."""
    HEIGHT: tl.constexpr = g.shape[0]
    entry, inside, filled = tile_entries(record, taken, first, column, HEIGHT, g.shape[1], BY_ROWS)
    out = operand(tl.load(record + OUT)) + entry
    squares = tl.zeros((LANES,), tl.float32)
    if ADAM:
        exp_avg = operand(tl.load(record + EXP_AVG)) + entry
        exp_avg_sq = operand(tl.load(record + EXP_AVG_SQ)) + entry
        n = adam_direction(g, exp_avg, exp_avg_sq, inside, filled, options, floor)
        tl.store(out, n, mask=inside)
        squares = tl.sum(tl.reshape(n * n, (n.numel // LANES, LANES)), 0)
    else:
        tl.store(out, tl.where(filled, g, 0.0), mask=inside)
    return squares


@triton.jit
def tile_entries(
    record, taken, first, column: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BY_ROWS: tl.constexpr,
):  # fmt: skip
    """Where some columns of a tile go, from its first entry; where there is memory, and an element.

    Of a tensor that is not taken there is neither.

    Of what lies along memory four neighbours are 16 bytes at a multiple of 16: tiles begin at
    multiples of 16 positions, blocks and the distances between them are multiples of 4.
    """
    i = first + tl.arange(0, HEIGHT)
    j = column + tl.arange(0, WIDTH)
    step = tl.multiple_of(tl.load(record + STEP).to(tl.int32), 4)
    stored = tl.where(taken, tl.load(record + STORED).to(tl.int32), 0)
    stored = tl.multiple_of(stored, 4)
    modes = tl.load(record + MODES).to(tl.int32)
    if BY_ROWS:
        _, within = _split(i, record + RUN_PLACE, record + RUN_PITCH, record + RUN_INVERSE)
        real = within < tl.load(record + RUN_INNER).to(tl.int32)
        block, _ = _split(i, record + BLOCK_PLACE, record + BLOCK, record + BLOCK_INVERSE)
        jump = tl.load(record + BLOCK_JUMP).to(tl.int32)
        along = tl.max_contiguous(tl.multiple_of(i + block * jump, 4), 4)
        entry = along[:, None] + j[None, :] * step
        inside = (i < stored)[:, None] & (j < modes)[None, :]
        filled = inside & real[:, None]
    else:
        entry = i[:, None] * step + j[None, :]
        inside = (i < tl.load(record + ROWS).to(tl.int32))[:, None] & (j < stored)[None, :]
        filled = inside & (j < modes)[None, :]
    return entry, inside, filled


@triton.jit
def _split(i, place, size, inverse):
    """Quotient and remainder of place + i by a size whose inverse, 2^32 / size, is rounded up.

    The host takes care that the quotient is exact, see soap_fast/backends/triton/ops/rotate.py.
    """
    x = tl.load(place).to(tl.int32) + i
    quotient = tl.umulhi(x.to(tl.uint32), tl.load(inverse).to(tl.uint32)).to(tl.int32)
    return quotient, x - quotient * tl.load(size).to(tl.int32)


@triton.jit
def adam_direction(g, exp_avg_at, exp_avg_sq_at, inside, filled, options, floor):
    """Moments follow g in place; returns m / (sqrt(v) + eps), 0 where that is m / 0.

    It is 0 where sqrt(v) is below the floor as well.

    Roots are approximate, one instruction each. In units of 2^-24 sqrt errs by 2, its sum with eps
    and eps itself by 1, the square of that sum by 1, of which a root halves the effect, rsqrt by
    2.2 (2^-22.9) and the product with m by 1: 7.7, where tests allow 8. A denominator below 2^-63,
    whose square float32 no longer holds, counts as 0: these roots take such a v for 0.

    Args:
        inside: where there is memory, in pieces of 16 bytes.
        filled: where there is an element.
    """
    beta1 = tl.load(options + BETA1)
    beta2 = tl.load(options + BETA2)
    eps = tl.load(options + EPS).to(tl.float32)
    exp_avg = tl.load(exp_avg_at, mask=inside, other=0.0)
    exp_avg_sq = tl.load(exp_avg_sq_at, mask=inside, other=0.0)
    exp_avg = beta1.to(tl.float32) * exp_avg + (1.0 - beta1).to(tl.float32) * g
    exp_avg_sq = beta2.to(tl.float32) * exp_avg_sq + (1.0 - beta2).to(tl.float32) * (g * g)
    tl.store(exp_avg_at, exp_avg, mask=inside)
    tl.store(exp_avg_sq_at, exp_avg_sq, mask=inside)
    # One comparison for both: root + eps is below LEAST where root is below LEAST - eps.
    root = tl.sqrt(exp_avg_sq)
    below = root < tl.maximum(floor, -eps + LEAST)  # false of NaN, which stays NaN
    denominator = root + eps
    inverse = tl.rsqrt(denominator * denominator)
    return tl.where(filled & ~below, exp_avg * inverse, 0.0)
