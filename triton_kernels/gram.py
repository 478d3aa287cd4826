"""gram: factors follow the gradient.

    K = beta_s K + (1 - beta_s) sum_k x[i, k] x[j, k]

Of a tile and its mirror one is computed; K gets both. A long sum is cut into parts, whose tiles
`gram_reduce` adds in their order. x is a plane, or one of its modes: the sum runs along the
contiguous axis, run by run, or for the contiguous mode over the rows. All that a tile reads of a
table is one record.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import GRAM, GRAM_ROWS, GRAM_WIDTHS, OPTIONS, SCALARS, TENSOR
from soap_fast.triton_kernels.product import add_product
from soap_fast.triton_kernels.table import floats, operand

COLUMNS = tl.constexpr(len(GRAM))
TENSOR_ = tl.constexpr(GRAM["tensor"])
KIND = tl.constexpr(GRAM["kind"])
M0 = tl.constexpr(GRAM["m0"])
N0 = tl.constexpr(GRAM["n0"])
A = tl.constexpr(GRAM["a"])
B = tl.constexpr(GRAM["b"])
SIZE = tl.constexpr(GRAM["size"])
ROW_STRIDE = tl.constexpr(GRAM["row_stride"])
RUN_STRIDE = tl.constexpr(GRAM["run_stride"])
LENGTH = tl.constexpr(GRAM["length"])
START = tl.constexpr(GRAM["start"])
CHUNKS = tl.constexpr(GRAM["chunks"])
PART = tl.constexpr(GRAM["part"])
PARTS = tl.constexpr(GRAM["parts"])
FACTOR = tl.constexpr(GRAM["factor"])
WIDTHS = tl.constexpr(GRAM_WIDTHS)
ALONG = tl.constexpr(len(GRAM_WIDTHS))
ROWS = tl.constexpr(GRAM_ROWS)
TENSOR_COLUMNS = tl.constexpr(len(TENSOR))
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
BETA_S = tl.constexpr(OPTIONS["beta_s"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])


@triton.jit(do_not_specialize=["n_tiles"])
def gram(
    records,  # [n, COLUMNS] int64
    tensors,
    option_rows,
    scalars,
    partials,  # float32
    n_tiles,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Whether a tile's tensor is taken, and the tile's kind, are known before the tile begins; its
    # tensor is known one tile earlier.
    step = tl.num_programs(0)
    first = tl.program_id(0)
    coming = scalars + tl.load(records + first * COLUMNS + TENSOR_) * SCALAR_COLUMNS
    taken = tl.load(coming + TAKEN)
    next_kind = tl.load(records + first * COLUMNS + KIND)
    after = tl.minimum(first + step, n_tiles - 1)
    coming = tl.load(records + after * COLUMNS + TENSOR_).to(tl.int32)
    for tile in tl.range(first, n_tiles, step, disable_licm=True):
        record = records + tile * COLUMNS
        now, kind = taken, next_kind
        following = tl.minimum(tile + step, n_tiles - 1)
        next_kind = tl.load(records + following * COLUMNS + KIND)
        taken = tl.load(scalars + coming * SCALAR_COLUMNS + TAKEN)
        after = tl.minimum(tile + 2 * step, n_tiles - 1)
        coming = tl.load(records + after * COLUMNS + TENSOR_).to(tl.int32)
        if now != 0.0:
            tables = (tensors, option_rows, partials)
            for number in tl.static_range(ALONG):
                if kind == number:
                    acc = _along(record, WIDTHS[number], PRECISION, BK, STAGES)
                    _finish(acc, record, tables)
            for number in tl.static_range(ALONG):
                if kind == ALONG + number:
                    acc = _across(record, WIDTHS[number], PRECISION, BK)
                    _finish(acc, record, tables)


@triton.jit
def _along(
    record, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr
):
    """Sums along the contiguous axis. Beyond the edges the last row is read again."""
    k = tl.arange(0, BK)
    last = tl.load(record + SIZE).to(tl.int32) - 1
    m = tl.minimum(tl.arange(0, ROWS), last - tl.load(record + M0).to(tl.int32))
    n = tl.minimum(tl.arange(0, WIDTH), last - tl.load(record + N0).to(tl.int32))
    stride = tl.multiple_of(tl.load(record + ROW_STRIDE).to(tl.int32), 4)
    run_stride = tl.multiple_of(tl.load(record + RUN_STRIDE).to(tl.int32), 4)
    length = tl.multiple_of(tl.load(record + LENGTH).to(tl.int32), 4)
    a_at = operand(tl.load(record + A)) + (m[:, None] * stride + k[None, :])
    b_at = operand(tl.load(record + B)) + (n[:, None] * stride + k[None, :])
    start = tl.multiple_of(tl.load(record + START).to(tl.int32), 4)  # in its run
    run = tl.full((), 0, tl.int32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for _ in tl.range(0, tl.load(record + CHUNKS).to(tl.int32), num_stages=STAGES):
        left = k[None, :] < length - start
        at = run + start
        a = tl.load(a_at + at, mask=left, other=0.0)  # [ROWS, BK]
        b = tl.load(b_at + at, mask=left, other=0.0)  # [WIDTH, BK]
        acc = add_product(acc, a, b, PRECISION, True)
        start += BK
        ends = start >= length
        run = tl.where(ends, run + run_stride, run)
        start = tl.where(ends, 0, start)
    return acc


@triton.jit
def _across(record, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr):
    """Sums over rows, of which the next are on their way in registers while some are multiplied.

    Copied ahead to shared memory they would be transposed in pieces of 4 bytes (sm_80, 90).
    Without tensor cores the next ones would spill.
    """
    AHEAD: tl.constexpr = 0 if PRECISION == "ieee" else 1
    k = tl.arange(0, BK)
    stride = tl.multiple_of(tl.load(record + ROW_STRIDE).to(tl.int32), 4)  # size, padded
    m = tl.arange(0, ROWS)
    n = tl.arange(0, WIDTH)
    m_inside = (m < stride - tl.multiple_of(tl.load(record + M0).to(tl.int32), 16))[None, :]
    n_inside = (n < stride - tl.multiple_of(tl.load(record + N0).to(tl.int32), 16))[None, :]
    chunks = tl.load(record + CHUNKS).to(tl.int32)
    rows = tl.load(record + LENGTH).to(tl.int32)
    rows -= tl.load(record + START).to(tl.int32)
    rows = tl.minimum(rows, chunks * BK)
    a_at = operand(tl.load(record + A)) + (k[:, None] * stride + m[None, :])
    b_at = operand(tl.load(record + B)) + (k[:, None] * stride + n[None, :])
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    a = tl.zeros((BK, ROWS), tl.float32)
    b = tl.zeros((BK, WIDTH), tl.float32)
    if AHEAD:
        first = (k < rows)[:, None]
        a = tl.load(a_at, mask=first & m_inside, other=0.0)
        b = tl.load(b_at, mask=first & n_inside, other=0.0)
    for chunk in tl.range(AHEAD, chunks + AHEAD, num_stages=1):
        left = (k < rows - chunk * BK)[:, None]
        at = chunk * (BK * stride)
        a_next = tl.load(a_at + at, mask=left & m_inside, other=0.0)  # [BK, ROWS]
        b_next = tl.load(b_at + at, mask=left & n_inside, other=0.0)  # [BK, WIDTH]
        if not AHEAD:
            a, b = a_next, b_next
        acc = add_product(acc, tl.trans(a), tl.trans(b), PRECISION, False)
        a, b = a_next, b_next
    return acc


@triton.jit
def _finish(acc, record, tables):
    tensors, option_rows, partials = tables
    if tl.load(record + PARTS) == 1:
        _follow(acc, record, tensors, option_rows)
    else:
        WIDTH: tl.constexpr = acc.shape[1]
        entry = tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        part = tl.multiple_of(tl.load(record + PART), 16)
        tl.store(partials + part + entry, acc)


@triton.jit
def _follow(acc, record, tensors, option_rows):
    """K = beta_s K + (1 - beta_s) acc, for the lower triangle and its mirror."""
    tensor = tensors + tl.load(record + TENSOR_) * TENSOR_COLUMNS
    options = option_rows + tl.load(tensor + OPTIONS_ROW) * OPTION_COLUMNS
    beta = tl.load(options + BETA_S)
    m0 = tl.load(record + M0).to(tl.int32)
    n0 = tl.load(record + N0).to(tl.int32)
    m = m0 + tl.arange(0, acc.shape[0])
    n = n0 + tl.arange(0, acc.shape[1])
    size = tl.load(record + SIZE).to(tl.int32)
    factor = floats(tl.load(record + FACTOR))
    inside = (m < size)[:, None] & (n < size)[None, :]
    first = tl.where(m0 == n0, n, 0)  # of a tile on the diagonal the lower half
    kept = inside & (m[:, None] >= first[None, :])
    at = factor + (m[:, None] * size + n[None, :])
    old = tl.load(at, mask=kept, other=0.0)
    new = beta.to(tl.float32) * old + (1.0 - beta).to(tl.float32) * acc
    tl.store(at, new, mask=kept)
    mirror = factor + (n[:, None] * size + m[None, :])
    mirrored = kept & (m[:, None] != n[None, :])
    tl.store(mirror, tl.trans(new), mask=tl.trans(mirrored))


@triton.jit(do_not_specialize=["n_tiles"])
def gram_reduce(
    records,  # [n, COLUMNS] int64, those of gram but for the parts that they sum
    tensors,
    option_rows,
    scalars,
    partials,
    n_tiles,
):
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        record = records + tile * COLUMNS
        index = tl.load(record + TENSOR_)
        if tl.load(scalars + index * SCALAR_COLUMNS + TAKEN) != 0.0:
            kind = tl.load(record + KIND) % ALONG
            for number in tl.static_range(ALONG):
                if kind == number:
                    _add_parts(record, tensors, option_rows, partials, WIDTHS[number])


@triton.jit
def _add_parts(record, tensors, option_rows, partials, WIDTH: tl.constexpr):
    entry = tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    part = partials + tl.multiple_of(tl.load(record + PART), 16) + entry
    acc = tl.load(part)
    for _ in range(1, tl.load(record + PARTS).to(tl.int32)):
        part += ROWS * WIDTH
        acc += tl.load(part)
    _follow(acc, record, tensors, option_rows)
