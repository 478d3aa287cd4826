"""How products of tiles are made: float32 accuracy from tensor cores that keep 10 bits.

tf32x3 cuts an operand in two, x = high + low, and adds three products:

    a b = a_high b_high + a_high b_low + a_low b_high        a_low b_low is left out

high of a is a without its last 13 bits, so |a_low| < 2^-10 |a|; that of b is rounded to nearest, so
|b_low| <= 2^-11 |b|. What is left out is below 2^-21 |a| |b|, and what tensor cores cut off from
the two lows below 2^-21 |a| |b| and 2^-23 |a| |b|: 18 units of 2^-24, where tests allow 21 (see
tests/tf32.py). Nothing asks for NaN or inf: a tensor with any of them takes no step.

In tf32 tensor cores cut operands off; "rounded" is tf32 with operands that are rounded to nearest,
half the error.
"""

import triton
import triton.language as tl

CUT = tl.constexpr(-(1 << 13))  # clears the bits of float32's mantissa that tf32 has not
WHOLE = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter's products are float32's
HALF = tl.constexpr(1 << 12)  # half a unit of those that it has


@triton.jit
def add_product(acc, a, b, PRECISION: tl.constexpr, IN_SHARED: tl.constexpr):
    """acc [M, N] + a [M, K] b [N, K]^T.

    The three products of tf32x3 go into an accumulator of their own, which is added outside. Never
    chain them through `acc`: on sm_90 a register operand is then overwritten before the product has
    read it (triton-lang/triton#9433), and on sm_103 two chained products are wrong (#10821).
    `python -m bench kernels --aot --check` fails where a running sum goes through two products.

    Args:
        IN_SHARED: whether a lies in shared memory by rows, where tensor cores can read it.
    """
    if PRECISION == "tf32x3" and not WHOLE:
        a_high = (a.to(tl.int32, bitcast=True) & CUT).to(tl.float32, bitcast=True)
        a_low = a - a_high
        if IN_SHARED:  # a is a_high to tensor cores, and need not be in registers as well
            a_high = a
        b_high = ((b.to(tl.int32, bitcast=True) + HALF) & CUT).to(tl.float32, bitcast=True)
        b_low = tl.trans(b - b_high)
        b_high = tl.trans(b_high)
        part = tl.dot(a_low, b_high, input_precision="tf32")
        part = tl.dot(a_high, b_low, part, input_precision="tf32")
        part = tl.dot(a_high, b_high, part, input_precision="tf32")
        acc += part
    elif PRECISION == "rounded" and not WHOLE:
        a = ((a.to(tl.int32, bitcast=True) + HALF) & CUT).to(tl.float32, bitcast=True)
        b = ((b.to(tl.int32, bitcast=True) + HALF) & CUT).to(tl.float32, bitcast=True)
        acc = tl.dot(a, tl.trans(b), acc, input_precision="tf32")
    else:
        PLAIN: tl.constexpr = "tf32" if PRECISION == "rounded" else PRECISION
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PLAIN)
    return acc


@triton.jit
def product_of_rows(
    a_at, b_at, length,
    PRECISION: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """sum_k a[i, k] b[j, k] over `length` terms: [BM, BN] float32.

    What is known of the operands says how much is copied at once: 16 bytes where rows lie at
    multiples of 16 and their length is a multiple of 4.

    Args:
        a_at, b_at: [BM, BK] and [BN, BK], where the first BK terms of each row lie.
    """
    k = tl.arange(0, BK)
    acc = tl.zeros((a_at.shape[0], b_at.shape[0]), tl.float32)
    for start in tl.range(0, length, BK, num_stages=STAGES):
        left = k[None, :] < length - start
        a = tl.load(a_at + start, mask=left, other=0.0)
        b = tl.load(b_at + start, mask=left, other=0.0)
        acc = add_product(acc, a, b, PRECISION, True)
    return acc
