"""rotate: one product per tensor along one mode, and in the last one Adam.

    out[m, n] = sum_k a[m, k] b[n, k]

One operand is the basis, the other the rows of a plane; both are contiguous along k. The output has
its new mode as the slowest axis behind the fold (`Level` in soap_fast/fused/layout.py says where).
With ADAM the product g' = out is not stored; what is, is

    m = beta1 m + (1 - beta1) g' ;  v = beta2 v + (1 - beta2) g'^2 ;  out = n = m / (sqrt(v) + eps)

and n = 0 where sqrt(v) is below the tensor's noise floor.
"""

import triton
import triton.language as tl

from soap_fast.fused.columns import OPTIONS, ROTATE, SCALARS, TENSOR
from soap_fast.triton_kernels.table import floats, operand

COLUMNS = tl.constexpr(len(ROTATE))
TENSOR_ = tl.constexpr(ROTATE["tensor"])
A = tl.constexpr(ROTATE["a"])
B = tl.constexpr(ROTATE["b"])
OUT = tl.constexpr(ROTATE["out"])
LDA = tl.constexpr(ROTATE["lda"])
LDB = tl.constexpr(ROTATE["ldb"])
M = tl.constexpr(ROTATE["m"])
N = tl.constexpr(ROTATE["n"])
K = tl.constexpr(ROTATE["k"])
INNER = tl.constexpr(ROTATE["inner"])
PITCH = tl.constexpr(ROTATE["pitch"])
BLOCK = tl.constexpr(ROTATE["block"])
BLOCK_STRIDE = tl.constexpr(ROTATE["block_stride"])
ROW_STRIDE = tl.constexpr(ROTATE["row_stride"])
EXP_AVG = tl.constexpr(ROTATE["exp_avg"])
EXP_AVG_SQ = tl.constexpr(ROTATE["exp_avg_sq"])
STATE_BLOCK_STRIDE = tl.constexpr(ROTATE["state_block_stride"])
STATE_ROW_STRIDE = tl.constexpr(ROTATE["state_row_stride"])
FIRST_TILE = tl.constexpr(ROTATE["first_tile"])
TENSOR_COLUMNS = tl.constexpr(len(TENSOR))
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
FIRST_DIRECTION = tl.constexpr(TENSOR["first_direction"])
HELD_BACK = tl.constexpr(TENSOR["held_back"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
BETA1 = tl.constexpr(OPTIONS["beta1"])
BETA2 = tl.constexpr(OPTIONS["beta2"])
EPS = tl.constexpr(OPTIONS["eps"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])
FLOOR = tl.constexpr(SCALARS["floor"])


@triton.jit(do_not_specialize=["n_tiles"])
def rotate(
    tiles,  # [n, 4] int32: task, class, first row of a, first position of b
    tasks,  # [m, COLUMNS] int64
    tensors,  # [tensors, TENSOR_COLUMNS] int64
    option_rows,  # [groups, OPTION_COLUMNS] float64
    scalars,  # [tensors, SCALAR_COLUMNS] float32
    directions,  # sums of n^2, float32
    n_tiles,
    ADAM: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    for tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), disable_licm=True):
        at = tiles + 4 * tile
        task = tasks + tl.load(at).to(tl.int64) * COLUMNS
        kind = tl.load(at + 1)
        index = tl.load(task + TENSOR_)
        if tl.load(scalars + index * SCALAR_COLUMNS + TAKEN) != 0.0:
            tensor = tensors + index * TENSOR_COLUMNS
            row = option_rows + tl.load(tensor + OPTIONS_ROW) * OPTION_COLUMNS
            place = tl.load(tensor + FIRST_DIRECTION) + tile - tl.load(task + FIRST_TILE)
            sums = directions + place
            own = scalars + index * SCALAR_COLUMNS
            if not ADAM:  # with the moments a tile of 64 rows spills
                if kind == 0:
                    _tile(at, task, tensor, row, own, sums, 64, 64, ADAM, PRECISION, BK, STAGES)
                if kind == 3:
                    _tile(at, task, tensor, row, own, sums, 64, 16, ADAM, PRECISION, BK, STAGES)
            if kind == 1:
                _tile(at, task, tensor, row, own, sums, 32, 64, ADAM, PRECISION, BK, STAGES)
            if kind == 2:
                _tile(at, task, tensor, row, own, sums, 16, 64, ADAM, PRECISION, BK, STAGES)
            if kind == 4:
                _tile(at, task, tensor, row, own, sums, 32, 16, ADAM, PRECISION, BK, STAGES)
            if kind == 5:
                _tile(at, task, tensor, row, own, sums, 16, 16, ADAM, PRECISION, BK, STAGES)


@triton.jit
def _tile(
    at, task, tensor, options, own, sums,
    BM: tl.constexpr, BN: tl.constexpr, ADAM: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    m = tl.load(at + 2) + tl.arange(0, BM)
    position = tl.load(at + 3) + tl.arange(0, BN)
    inner = tl.load(task + INNER).to(tl.int32)
    pitch = tl.load(task + PITCH).to(tl.int32)
    m_end = tl.load(task + M).to(tl.int32)
    n_end = tl.load(task + N).to(tl.int32)
    m_inside = m < m_end
    n_inside = position < n_end
    real = n_inside & (position % pitch < inner)
    # Beyond the edges the last row is read again: masks would take registers in the product's loop.
    m_row = tl.minimum(m, m_end - 1)
    n_row = tl.minimum(position // pitch * inner + position % pitch, n_end // pitch * inner - 1)

    acc = _product(task, m_row, n_row, BM, BN, PRECISION, BK, STAGES)  # [BM, BN]

    block = tl.load(task + BLOCK).to(tl.int32)
    within = position % block
    outer = position // block
    column = outer * tl.load(task + BLOCK_STRIDE).to(tl.int32) + within
    if ADAM:
        state_column = outer * tl.load(task + STATE_BLOCK_STRIDE).to(tl.int32)
        state_column += within // pitch * inner + within % pitch
        state = m[:, None] * tl.load(task + STATE_ROW_STRIDE).to(tl.int32) + state_column[None, :]
        exp_avg = floats(tl.load(task + EXP_AVG)) + state
        exp_avg_sq = floats(tl.load(task + EXP_AVG_SQ)) + state
        inside = m_inside[:, None] & real[None, :]
        floor = tl.load(own + FLOOR)
        held_back = tl.load(tensor + HELD_BACK).to(tl.pointer_type(tl.int64))
        acc = adam_direction(acc, exp_avg, exp_avg_sq, inside, options, floor, held_back)
        tl.store(sums, tl.sum(acc * acc))
    else:
        acc = tl.where(real[None, :], acc, 0.0)
    entry = m[:, None] * tl.load(task + ROW_STRIDE).to(tl.int32) + column[None, :]
    tl.store(floats(tl.load(task + OUT)) + entry, acc, mask=m_inside[:, None] & n_inside[None, :])


@triton.jit
def _product(
    task, m, n, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, BK)
    length = tl.multiple_of(tl.load(task + K).to(tl.int32), 4)
    lda = tl.multiple_of(tl.load(task + LDA).to(tl.int32), 4)
    ldb = tl.multiple_of(tl.load(task + LDB).to(tl.int32), 4)
    a_at = operand(tl.load(task + A)) + (m[:, None] * lda + k[None, :])
    b_at = operand(tl.load(task + B)) + (n[:, None] * ldb + k[None, :])
    acc = tl.zeros((BM, BN), tl.float32)
    for start in tl.range(0, length, BK, num_stages=STAGES):
        left = k[None, :] < length - start
        a = tl.load(a_at + start, mask=left, other=0.0)  # [BM, BK]
        b = tl.load(b_at + start, mask=left, other=0.0)  # [BN, BK]
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    return acc


@triton.jit
def adam_direction(g, exp_avg_at, exp_avg_sq_at, inside, options, floor, held_back):
    """Moments follow g in place; returns m / (sqrt(v) + eps), 0 outside and where both are 0.

    It is 0 where sqrt(v) is below the floor as well; `held_back` counts these up.
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
    root = tl.sqrt_rn(exp_avg_sq)
    held = inside & (root < floor)
    exp_avg = tl.where(held, 0.0, exp_avg)
    count = tl.sum(held.to(tl.int32))
    if count != 0:
        tl.atomic_add(held_back, count.to(tl.int64), sem="relaxed")
    denominator = root + eps
    usable = inside & (denominator != 0.0)
    return tl.where(usable, exp_avg / tl.where(usable, denominator, 1.0), 0.0)
