"""How far from the exact result a test lets one be: every tolerance, and from what it follows.

A dict is for `torch.testing.assert_close` and `torch.allclose`. `pytest.approx` without a tolerance
compares numbers of Python that two formulas give, to its own 1e-6. Bounds that a test counts entry
by entry stand there, in units of `U`.
"""

from __future__ import annotations

import torch

U = 2.0**-24  # unit roundoff of float32: half the distance from 1 to the next number


def unit(dtype: torch.dtype) -> float:
    """Unit roundoff of a dtype."""
    return torch.finfo(dtype).eps / 2


# One operation, by a count of its roundings ------------------------------------------------------


def sums(dtype: torch.dtype, terms: int) -> float:
    """Of sum |a| |b|: each of so many products and sums rounds once, and the result."""
    return 2 * (terms + 1) * unit(dtype)


def decays(times: int) -> float:
    """Relative: each time 1 - lr wd and the product with it round, and the expected value once."""
    return (2 * times + 1) * U


def qr(dtype: torch.dtype, d: int) -> float:
    """Entries of QᵀQ - I: QR leaves about sqrt(d) + 1 roundings; four times that."""
    return 4 * unit(dtype) * (d**0.5 + 1)


def eigensolver(dtype: torch.dtype, d: int) -> float:
    """Shares of a factor's norm: stable solvers leave some sqrt(d) roundings; forty times that."""
    return 40 * unit(dtype) * d**0.5


PRODUCTS_64 = 1e-13  # relative norm, float64: products over at most 60,000 elements
EXACT_64 = {"rtol": 1e-12, "atol": 1e-14}  # entries of order 1 after a chain of float64 products
PERMUTED_64 = {"rtol": 1e-15, "atol": 0.0}  # float64, scaled once and permuted: 9 roundings
PLAIN = {"rtol": 1.3e-6, "atol": 1e-5}  # torch's own for float32
PLAIN_64 = {"rtol": 1e-7, "atol": 1e-7}  # torch's own for float64
TF32X3 = 2**-20  # of sum |a| |b|: what is left out, a_low b_low, is 2^-22 of it
RECORDED_GRAM = 16 * U  # of the largest entry: a Gram matrix that the reference summed in float32
IDENTITY = {"rtol": 1e-6, "atol": 1e-9}  # a product by the identity: 16 U of the entry itself
ADAM = 3 * U  # absolute, values up to 2: direction, size and difference round once each
DIFFERENCE = {"rtol": 1e-5, "atol": 1e-6}  # of two values up to 4: 16 U
BFLOAT16 = 2.0**-7  # relative: a bfloat16 that is cut off instead of rounded, as interpreted

# Bases -------------------------------------------------------------------------------------------

# torch.linalg.eigh in units of eps sqrt(d), the worst of d = 1 to 130, 700 and 1300 and both
# dtypes: 4.4, 4.0, 1.5 and 2.7. Twice that.
EIGH = {"reconstruction": 9.0, "diagonal": 8.0, "off_diagonal": 3.0, "eigenvalues": 5.5}
NATIVE_EIGH = 2.0  # errors over those of torch.linalg.eigh: other blocks, threads; 0.8 to 1.35
ORTHOGONAL = 1e-5  # entries of QᵀQ - I in float32, whatever the factor: what refreshes promise
ORTHOGONAL_64 = 1e-12  # the same in float64, d up to 700
DIAGONAL = 0.01  # off the diagonal, over what a refresh in float64 leaves: as good a basis
SHARE = 1e-3  # of the share off the diagonal in float32: U over shares from 1e-4 on
SHARE_SCALED = 1e-4  # of the same share for a factor scaled by a number that is no power of two
SHARE_64 = 1e-6  # of a share that was summed in float64 but kept in float32: 16 U
SAME_GRADIENT = 1e-5  # share off the diagonal, float32, of a factor of the gradients of its basis
NO_SHARE_64 = 1e-12  # the same in float64
BASES = 1e-4  # entries of bases up to signs, float32: U times 1e3, the inverse of relative gaps
BASES_64 = {"rtol": 1e-6, "atol": 1e-6}  # the same in float64 by Cholesky, of condition 1e8
COLUMN_64 = 1e-5  # 1 - |cos| of columns that the factor determines: gaps from 1e-6 on, float64

# Several steps -----------------------------------------------------------------------------------

# Of the displacement. The reference rerun in float64, or with gradients perturbed by 1e-7, ends up
# to 7e-5 away; an honest float32 implementation stays within seven times that.
TRACE = 5e-4
PERTURBED = 1e-3  # of lr: gradients of full rank whose last bit is another, six calls
ONE_STEP_64 = 1e-12  # relative norm, float64: a step from one state, whatever the options
TRAJECTORY_64 = 1e-8  # float64: 1e-16 over gaps of at worst 1e-6, and two digits more
TEN_CALLS_64 = {"rtol": 1e-9, "atol": 1e-9}  # float64, factors of full rank
FEW_CALLS = {"rtol": 1e-4, "atol": 1e-5}  # nine float32 calls, lr 3e-3: a third of 1 % of a step
LR_IN_FLOAT32 = {"rtol": 1e-6, "atol": 1e-7}  # five calls by an lr that float32 has rounded: U lr
AFTER_A_CHANGE = {"rtol": 2e-4, "atol": 1e-6}  # four calls at lr 0.1 by another backend
DIRECTION = {"rtol": 1e-4, "atol": 1e-4}  # (old - new) / lr: values of 4 and lr 0.5 leave 16 U
FUSED = 50 * U  # of a tensor's largest entry: a fused step against eager, sums of up to 50 terms
CPU_STEP = 200 * U  # of the largest entry: sums over up to 200 in another order
# Where v is small n = m / sqrt(v) amplifies rounding, up to a step of lr = 3e-3: parts of that.
FUSED_PARAM, CPU_STEP_PARAM = 2e-4, 1e-4
SCHEDULED = 1e-4 * 28 * 7e-3  # a part in 1e4 of seven steps at rates that add up to 28e-3
# Refreshes at frequency 2 to 4: relative gaps of 1e-3 turn rounding of 2e-6 into this much.
FUSED_REFRESH = 2e-3
FUSED_SHARE = {"rtol": 1e-3, "atol": 1e-5}  # a share off the diagonal after such refreshes

# The noise floor: what moves where no gradient points, over what moves where some do. ------------

OUT_OF_SPAN = 1e-5  # float32, however long: 160 U
OUT_OF_SPAN_GROWING = 1e-4  # gradients grow tenthousandfold, and so does what they round by
OUT_OF_SPAN_64 = 1e-14
ROUNDED_OTHERWISE = 1e-4  # ends of runs whose gradients differ by 1e-7, eigenvalues 4 times apart
SEPARATED = 1e-5  # of a run's end in float64: eigenvalues 2.25 times apart, 60 calls

# Diagnostics -------------------------------------------------------------------------------------

COSINE = 1e-5  # of entries summed in float64 from gradients that differ by roundings of float32
COSINE_HALF = 0.01  # of updates that are kept in bfloat16: two of its roundings of 2^-8
COSINE_AUTOCAST = 0.1  # of gradients that bfloat16 has computed through two layers
MOMENTS = 1e-5  # relative, fourth powers of float32 values: 4 roundings and float64 sums
MOMENTS_OFFSET = 1e-4  # the same where a mean of 100 cancels before powers are taken
PROCESSES = 1e-4  # of two processes' sums in float32 after AdamW steps on half of a batch each
THREADS = 1e-5  # relative, sums of one thread and of two
KNOWN_KURTOSIS = 0.03  # of a million samples of a known distribution: some standard errors
KNOWN_TAIL = {"rel": 0.3, "abs": 3e-6}  # of the few beyond six sigma in a million samples

# Models and machines -----------------------------------------------------------------------------

FLOPS = 1e-3  # what a count by the formula leaves out, of millions
INSTRUCTIONS, SECTORS = 0.15, 0.20  # of an H100's counters: the compiler of that day was another
LAUNCH_TIME = {"elic": 0.25, "dcae": 0.30}  # of the H100's times, launches above 500 us
REFRESH_TIME = 0.25  # of the H100's: the scale is fitted on elic
COUNTED_FLOPS = 0.01  # of d³, d = 1280: edges of 64-wide tiles
STEP_TIME = {"elic": 0.15, "dcae": 0.30}  # of the H100's: constants are fitted on elic alone
SAMPLED_INSTRUCTIONS, SAMPLED_SECTORS = 0.02, 0.10  # tiles that stand for others of their kind
PEAK_MEMORY = 0.1  # the caching allocator's blocks, beside another optimizer or alone
HALF_LOSSES = 0.1  # of losses in bfloat16 or float16: 2^-8 through some ten layers
CUDNN = 1e-2  # of losses after a few steps: cuDNN adds gradients in any order
QUANTIZED_RATIO = 0.05  # absolute, of errors after 50 rounds of adaptive rounding on a GPU
QUANTIZED_SCALE, QUANTIZED_ERROR = 1e-2, 0.1  # activations of the two devices differ by rounding
PUBLIC_STEPS = 1e-3  # of the displacement: 12 calls of another float32 SOAP, twice a TRACE

# Compression models ------------------------------------------------------------------------------

ALLCLOSE = {"rtol": 1e-5, "atol": 1e-8}  # torch.allclose's own: some 100 U
LAYERS_64 = {"rtol": 1e-9, "atol": 1e-12}  # float64 through layers or products, in another order
GDN = {"rtol": 1e-5, "atol": 1e-6}  # a root and a product of float32: 16 U
DENSITY = 1e-6  # relative, midpoint rule of 4000 points over a unit interval
DENSITY_Z = {"rtol": 1e-4, "atol": 1e-8}  # the same of fewer points, over a learned density
DENSITY_Y = {"rtol": 1e-3, "atol": 1e-8}  # the same of a normal density as narrow as 0.11
LEAST_LIKELIHOOD = 1e-9  # what each of so many likelihoods may be too large by: their bound
TAIL = 1e-2  # relative, a likelihood of 1e-7 in float32: its logits of 16 round by 1e-6
SCALE_BOUND = 1e-4  # of a likelihood of 0.5 under the least scale, 0.11
NOISE_MEAN, NOISE_VARIANCE = 4e-3, 0.02  # of 100,000 uniform samples: four standard errors, more
AT_THE_TARGETS = 1e-8  # a loss that is 0 where 100 bisections of float64 have ended
CODED = 0.01  # of bits estimated: tables of 16 bits, and whole bytes
BPP = 1e-5  # relative, logarithms of likelihoods summed in float32
BD_RATE, BD_RATE_PART = 1e-6, 0.1  # per cent: interpolation of straight lines, of half a curve
AMP_LOSSES = 0.05  # of losses of a few steps in bfloat16 or float16 on a CPU
CHANNELS_LAST = 1e-3  # of losses of a few steps: convolutions in another order, latents rounded
COMPILED = 1e-4  # the same traced, in bfloat16
SHARED = 1e-3  # of a run's way and losses: sums of two processes, latents rounded another way
HELD_BACK = 1e-3  # of lr: masked weights, whose gradients are 0 but for rounding
ON_GRID = 1e-9  # of the ends of a range, in float64
INT8 = {"rtol": 1e-5, "atol": 1e-5}  # sums of integers, exact, times two scales of float32
ERROR_SHARE = 1e-3  # of an error that is the small difference of two outputs in float32
SAME_SCALE = 1e-6  # 16 U
CHANGE_64 = 1e-12  # a quotient of two numbers that JSON holds whole
RATES = 1e-9  # of rates by two formulas in float64
RATES_WRITTEN = 1e-5  # of rates that are written with seven digits
CLIPPED = 1e-3  # of a norm that clipping adds 1e-6 to, summed in float32
FIRST_STEP = {"rtol": 0.01, "atol": 1e-8}  # Adam's first step is lr g / (|g| + eps), eps below 1 %
THIRTY_STEPS = 1e-3  # of 30 steps of Adam that go one way at 1e-3 each
RATE_STEP = 0.01  # of a logarithm: rates are kept to three digits
NEAREST_RATE = 0.04  # of a rate: half a step of the grid's logarithms would be 0.17
WKV_64, WKV_GRADIENT_64 = 1e-13, 1e-12  # float64, weighted means and their gradients
WKV = 2e-5  # per spread: an exponent of 50 in float32 is off by 2e-6, and so is its weight
