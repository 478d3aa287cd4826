"""gram: factors follow the gradient.

    K = beta_s K + (1 - beta_s) sum_k x[i, k] x[j, k]

Only tiles at and below the diagonal are computed; K gets a tile and its mirror. A long sum is cut
into parts, whose tiles `gram_reduce` adds in their order. x is a plane, or one of its modes: the
sum runs along the contiguous axis, run by run, or for the contiguous mode over the rows.
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import GRAM, OPTIONS, SCALARS, TENSOR
from soap_fast.triton_kernels.table import floats, operand

COLUMNS = tl.constexpr(len(GRAM))
TILE = tl.constexpr(7)
REDUCE_TILE = tl.constexpr(6)
UNIT = tl.constexpr(256)  # partial tiles lie at multiples of this many elements
TENSOR_ = tl.constexpr(GRAM["tensor"])
X = tl.constexpr(GRAM["x"])
SIZE = tl.constexpr(GRAM["size"])
ROW_STRIDE = tl.constexpr(GRAM["row_stride"])
CHUNKS_PER_RUN = tl.constexpr(GRAM["chunks_per_run"])
RUN_STRIDE = tl.constexpr(GRAM["run_stride"])
LENGTH = tl.constexpr(GRAM["length"])
FACTOR = tl.constexpr(GRAM["factor"])
TENSOR_COLUMNS = tl.constexpr(len(TENSOR))
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
BETA_S = tl.constexpr(OPTIONS["beta_s"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])


@triton.jit(do_not_specialize=["n_tiles"])
def gram(
    tiles,  # [n, TILE] int32: task, class, m0, n0, chunks from, to, unit of its part or -1
    tasks,  # [m, COLUMNS] int64
    tensors,
    option_rows,
    scalars,
    partials,  # float32
    n_tiles,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        at = tiles + TILE * tile
        task = tasks + tl.load(at).to(tl.int64) * COLUMNS
        index = tl.load(task + TENSOR_)
        if tl.load(scalars + index * SCALAR_COLUMNS + TAKEN) != 0.0:
            tensor = tensors + index * TENSOR_COLUMNS
            row = option_rows + tl.load(tensor + OPTIONS_ROW) * OPTION_COLUMNS
            kind = tl.load(at + 1)
            if kind == 0:
                _along(at, task, row, partials, 64, 64, PRECISION, BK, STAGES)
            if kind == 1:
                _along(at, task, row, partials, 32, 32, PRECISION, BK, STAGES)
            if kind == 2:
                _along(at, task, row, partials, 16, 64, PRECISION, BK, STAGES)
            if kind == 3:
                _along(at, task, row, partials, 16, 16, PRECISION, BK, STAGES)
            if kind == 4:
                _across(at, task, row, partials, 64, 64, PRECISION, BK)
            if kind == 5:
                _across(at, task, row, partials, 32, 32, PRECISION, BK)
            if kind == 6:
                _across(at, task, row, partials, 16, 64, PRECISION, BK)
            if kind == 7:
                _across(at, task, row, partials, 16, 16, PRECISION, BK)


@triton.jit
def _along(
    tile, task, options, partials,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sums along the contiguous axis."""
    m = tl.load(tile + 2) + tl.arange(0, BM)
    n = tl.load(tile + 3) + tl.arange(0, BN)
    k = tl.arange(0, BK)
    size = tl.load(task + SIZE).to(tl.int32)
    stride = tl.multiple_of(tl.load(task + ROW_STRIDE).to(tl.int32), 4)
    run_stride = tl.multiple_of(tl.load(task + RUN_STRIDE).to(tl.int32), 4)
    length = tl.multiple_of(tl.load(task + LENGTH).to(tl.int32), 4)
    chunks_per_run = tl.load(task + CHUNKS_PER_RUN).to(tl.int32)
    x = operand(tl.load(task + X))
    a_at = m[:, None] * stride + k[None, :]
    b_at = n[:, None] * stride + k[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for chunk in tl.range(tl.load(tile + 4), tl.load(tile + 5), num_stages=STAGES):
        run = chunk // chunks_per_run
        start = (chunk - run * chunks_per_run) * BK
        base = x + (run * run_stride + start)
        left = k[None, :] < length - start
        a = tl.load(base + a_at, mask=(m < size)[:, None] & left, other=0.0)  # [BM, BK]
        b = tl.load(base + b_at, mask=(n < size)[:, None] & left, other=0.0)  # [BN, BK]
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    _finish(acc, tile, task, options, partials, BM, BN)


@triton.jit
def _across(
    tile, task, options, partials,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Sums over rows. One stage: copying ahead would transpose in pieces of 4 bytes (sm_80, 90)."""
    m = tl.multiple_of(tl.load(tile + 2), 16) + tl.arange(0, BM)
    n = tl.multiple_of(tl.load(tile + 3), 16) + tl.arange(0, BN)
    k = tl.arange(0, BK)
    stride = tl.multiple_of(tl.load(task + ROW_STRIDE).to(tl.int32), 4)  # size, padded
    length = tl.load(task + LENGTH).to(tl.int32)
    x = operand(tl.load(task + X))
    acc = tl.zeros((BM, BN), tl.float32)
    for chunk in tl.range(tl.load(tile + 4), tl.load(tile + 5), num_stages=1):
        row = chunk * BK + k
        at = row[:, None] * stride
        left = (row < length)[:, None]
        a = tl.load(x + (at + m[None, :]), mask=left & (m < stride)[None, :], other=0.0)  # [BK, BM]
        b = tl.load(x + (at + n[None, :]), mask=left & (n < stride)[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
    _finish(acc, tile, task, options, partials, BM, BN)


@triton.jit
def _finish(acc, tile, task, options, partials, BM: tl.constexpr, BN: tl.constexpr):
    unit = tl.load(tile + 6)
    if unit < 0:
        _follow(acc, tl.load(tile + 2), tl.load(tile + 3), task, options, BM, BN)
    else:
        entry = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        tl.store(partials + unit.to(tl.int64) * UNIT + entry, acc)


@triton.jit
def _follow(acc, m0, n0, task, options, BM: tl.constexpr, BN: tl.constexpr):
    """K = beta_s K + (1 - beta_s) acc, for the lower triangle and its mirror."""
    beta = tl.load(options + BETA_S)
    m = m0 + tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    size = tl.load(task + SIZE).to(tl.int32)
    factor = floats(tl.load(task + FACTOR))
    lower = (m < size)[:, None] & (m[:, None] >= n[None, :])
    at = factor + (m[:, None] * size + n[None, :])
    old = tl.load(at, mask=lower, other=0.0)
    new = beta.to(tl.float32) * old + (1.0 - beta).to(tl.float32) * acc
    tl.store(at, new, mask=lower)
    mirror = factor + (n[:, None] * size + m[None, :])
    strictly = (m < size)[None, :] & (n[:, None] < m[None, :])
    tl.store(mirror, tl.trans(new), mask=strictly)


@triton.jit(do_not_specialize=["n_tiles"])
def gram_reduce(
    tiles,  # [n, REDUCE_TILE] int32: task, class, m0, n0, unit of the first part, parts
    tasks,  # [m, COLUMNS] int64
    tensors,
    option_rows,
    scalars,
    partials,
    n_tiles,
):
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        at = tiles + REDUCE_TILE * tile
        task = tasks + tl.load(at).to(tl.int64) * COLUMNS
        index = tl.load(task + TENSOR_)
        if tl.load(scalars + index * SCALAR_COLUMNS + TAKEN) != 0.0:
            tensor = tensors + index * TENSOR_COLUMNS
            row = option_rows + tl.load(tensor + OPTIONS_ROW) * OPTION_COLUMNS
            kind = tl.load(at + 1) % 4
            if kind == 0:
                _add_parts(at, task, row, partials, 64, 64)
            if kind == 1:
                _add_parts(at, task, row, partials, 32, 32)
            if kind == 2:
                _add_parts(at, task, row, partials, 16, 64)
            if kind == 3:
                _add_parts(at, task, row, partials, 16, 16)


@triton.jit
def _add_parts(tile, task, options, partials, BM: tl.constexpr, BN: tl.constexpr):
    entry = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    part = partials + tl.load(tile + 4).to(tl.int64) * UNIT + entry
    acc = tl.load(part)
    for _ in range(1, tl.load(tile + 5)):
        part += BM * BN
        acc += tl.load(part)
    _follow(acc, tl.load(tile + 2), tl.load(tile + 3), task, options, BM, BN)
