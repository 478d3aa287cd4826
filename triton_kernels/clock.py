"""clock: which tensors take a step, their step counts and step sizes.

taken = sum g^2 is finite                       not without a gradient
step += taken ; skipped += not taken, where there is a gradient
size  = lr sqrt(1 - beta2^step) / (1 - beta1^step), or lr without correct_bias
decay = lr weight_decay
floor = noise sqrt(beta_s trace K + (1 - beta_s) sum g^2)         0 without a factor

K is that before this gradient, of some mode; see soap_fast/step/rounding.py.
"""

import triton
import triton.language as tl

from soap_fast.triton_kernels.columns import OPTIONS, SCALARS, TENSOR

COLUMNS = tl.constexpr(len(TENSOR))
STEP = tl.constexpr(TENSOR["step"])
SKIPPED = tl.constexpr(TENSOR["skipped"])
OPTIONS_ROW = tl.constexpr(TENSOR["options"])
FACTOR = tl.constexpr(TENSOR["factor"])
FACTOR_SIZE = tl.constexpr(TENSOR["factor_size"])
FIRST_SQUARE = tl.constexpr(TENSOR["first_square"])
SQUARES = tl.constexpr(TENSOR["squares"])
OPTION_COLUMNS = tl.constexpr(len(OPTIONS))
LR = tl.constexpr(OPTIONS["lr"])
LR_ADDRESS = tl.constexpr(OPTIONS["lr_address"])
LR_DOUBLE = tl.constexpr(OPTIONS["lr_double"])
BETA1 = tl.constexpr(OPTIONS["beta1"])
BETA2 = tl.constexpr(OPTIONS["beta2"])
WEIGHT_DECAY = tl.constexpr(OPTIONS["weight_decay"])
BETA_S = tl.constexpr(OPTIONS["beta_s"])
NOISE = tl.constexpr(OPTIONS["noise"])
CORRECT_BIAS = tl.constexpr(OPTIONS["correct_bias"])
SCALAR_COLUMNS = tl.constexpr(len(SCALARS))
TAKEN = tl.constexpr(SCALARS["taken"])
SIZE = tl.constexpr(SCALARS["size"])
DECAY = tl.constexpr(SCALARS["decay"])
FLOOR = tl.constexpr(SCALARS["floor"])


@triton.jit(do_not_specialize=["n_tensors"])
def clock(
    tensors,  # [n, COLUMNS] int64
    option_rows,  # [groups, OPTION_COLUMNS] float64
    gradients,  # [n] int64, addresses; 0 without a gradient
    squares,  # [tiles] float32
    found_inf,  # [1] float32, not zero: no tensor takes a step
    scalars,  # [n, SCALAR_COLUMNS] float32
    calls,  # [1] int64, counted up
    n_tensors,
    BLOCK: tl.constexpr,
):
    if tl.program_id(0) == 0:
        tl.store(calls, tl.load(calls) + 1)
    for index in range(tl.program_id(0), n_tensors, tl.num_programs(0)):
        tensor = tensors + index * COLUMNS
        row = option_rows + tl.load(tensor + OPTIONS_ROW) * OPTION_COLUMNS
        first = tl.load(tensor + FIRST_SQUARE)
        count = tl.load(tensor + SQUARES)
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, count, BLOCK):
            place = start + tl.arange(0, BLOCK)
            sums += tl.load(squares + first + place, mask=place < count, other=0.0)
        total = tl.sum(sums)
        present = (tl.load(gradients + index) != 0).to(tl.int64)
        usable = (tl.abs(total) < float("inf")) & (tl.load(found_inf) == 0.0)
        taken = usable.to(tl.int64) * present

        step_at = tl.load(tensor + STEP).to(tl.pointer_type(tl.float32))
        skipped_at = tl.load(tensor + SKIPPED).to(tl.pointer_type(tl.int64))
        step = tl.load(step_at) + taken.to(tl.float32)
        tl.store(step_at, step)
        tl.store(skipped_at, tl.load(skipped_at) + (1 - taken) * present)

        lr = _learning_rate(row)
        t = step.to(tl.float64)
        size = lr
        if (tl.load(row + CORRECT_BIAS) != 0.0) & (step > 0.0):
            bias1 = 1.0 - _power(tl.load(row + BETA1), t)
            bias2 = 1.0 - _power(tl.load(row + BETA2), t)
            size = lr * tl.sqrt(bias2) / bias1
        out = scalars + index * SCALAR_COLUMNS
        tl.store(out + TAKEN, taken.to(tl.float32))
        tl.store(out + SIZE, size.to(tl.float32))
        tl.store(out + DECAY, (lr * tl.load(row + WEIGHT_DECAY)).to(tl.float32))
        tl.store(out + FLOOR, _noise_floor(tensor, row, total, BLOCK))


@triton.jit
def _noise_floor(tensor, row, square, BLOCK: tl.constexpr):
    """Of a tensor whose gradient's sum of squares is given."""
    size = tl.load(tensor + FACTOR_SIZE)
    factor = tl.load(tensor + FACTOR).to(tl.pointer_type(tl.float32))
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(factor + i * (size + 1), mask=i < size, other=0.0)
    beta_s = tl.load(row + BETA_S)
    trace = beta_s.to(tl.float32) * tl.sum(sums) + (1.0 - beta_s).to(tl.float32) * square
    return tl.where(size != 0, tl.load(row + NOISE).to(tl.float32) * tl.sqrt(trace), 0.0)


@triton.jit
def _learning_rate(row):
    """lr of a group, float64: a number, or read from the user's tensor on the device."""
    lr = tl.load(row + LR)
    address = tl.load(row.to(tl.pointer_type(tl.int64)) + LR_ADDRESS)
    if address != 0:
        if tl.load(row + LR_DOUBLE) != 0.0:
            lr = tl.load(address.to(tl.pointer_type(tl.float64)))
        else:
            lr = tl.load(address.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return lr


@triton.jit
def _power(base, exponent):
    """base^exponent of float64 for 0 <= base < 1 and exponent > 0."""
    safe = tl.where(base > 0.0, base, 0.5)
    return tl.where(base > 0.0, tl.exp(exponent * tl.log(safe)), 0.0)
