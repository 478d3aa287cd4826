"""Columns of the tables that kernels read, named once for the host that fills and the kernel.

A table is int64 in memory, one row per task. Kernels take the numbers as `tl.constexpr`.
"""

from __future__ import annotations

from collections.abc import Iterable

# Axes of a strided tensor that a kernel can walk, after collapsing: of lines, columns, the fold.
LINE_AXES, COLUMN_AXES, FOLD_AXES = 4, 4, 3


def columns(*names: str) -> dict[str, int]:
    return {name: index for index, name in enumerate(names)}


def _axes(name: str, count: int) -> Iterable[str]:
    """Size and stride per axis, the innermost first."""
    return (f"{name}{axis}_{what}" for axis in range(count) for what in ("size", "stride"))


# Per tensor: where its clocks lie, and its shares of what launches before reduced.
TENSOR = columns(
    "step",  # address, float32
    "skipped",  # address, int64
    "factor", "factor_size",  # address of some mode's K, its trace the square of the gradient
    "options",  # row of the options table
    "first_square",  # sums of squares of the gradient, one per gather tile
    "squares",
    "first_direction",  # sums of squares of n, one per tile of the last rotation
    "directions",
    "numel",
)  # fmt: skip

# Per row of options, float64: what `StepOptions` holds, lr behind an address where it is on the
# device, and noise_scale of soap_fast/step/rounding.py.
OPTIONS = columns(
    "lr", "lr_address", "lr_double", "beta1", "beta2", "beta_s", "eps", "weight_decay",
    "correct_bias", "normalize", "noise",
)  # fmt: skip

# Per tensor, float32: what a step decides once and every later launch reads.
SCALARS = columns("taken", "size", "decay", "floor")

# Between a strided tensor and its plane [fold, positions], in lines of `pitch`: gather, apply.
PLANE = columns(
    "kind",  # see PLANE_KINDS
    "plane",  # address of [fold, positions] float32
    "fold",  # size of the folded mode, 1 without
    "positions",  # padding included
    "linear",  # whether the tensor's elements lie in the order of positions, the fold innermost
    "planar",  # whether those with a folded pair lie as the plane does: float32, nothing padded
    "inner",  # size of the contiguous axis
    "pitch",  # the same, padded to a multiple of 4
    "dtype",  # of the strided tensor, see DTYPES
    "matrix",  # address of the folded mode's basis [S, S], zeros around [fold, fold]; or, of a pair
    # that is rotated in registers, of both bases [d, padded d] behind each other
    "partials",  # address of [tiles, S, S], Gram of the folded mode; or of [tiles, sums], of a pair
    "first_tile",
    "pair0_stride",
    "pair1_stride",  # of the modes of such a pair
    *_axes("line", LINE_AXES),
    *_axes("column", COLUMN_AXES),
    *_axes("fold", FOLD_AXES),
)

# What gather and apply walk: without a fold; with one of d x d that is rotated in registers; with
# any other that is padded to 16 or to 32.
PLANE_KINDS = {"flat": 0, "fold_3_3": 1, "fold_5_5": 2, "fold_16": 3, "fold_32": 4}

DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}

# out[n, i] = sum_k b[n, k] a[i, k], a record per tile, see triton_kernels/rotate.py.
ROTATE = columns(
    "tensor",
    "kind",  # see ROTATE_CLASSES
    "a", "b",  # addresses of the first row
    "out", "exp_avg", "exp_avg_sq",  # addresses of the first entry
    "k",  # terms, padded: from a row to the next
    "rows", "modes",  # how many rows of a and of b are left
    "stored",  # what is left of the axis that out is written along, padding included
    "step",  # from an entry of out to its neighbour on the other axis
    # Positions of a tile lie in blocks, which lie `block + block_jump` apart in out, and in runs of
    # `run_pitch`, of which the first `run_inner` are rows of a. `place` is that of the first
    # position in its block or run, `inverse` is 2^32 / size, rounded up.
    "block_place", "block", "block_inverse", "block_jump",
    "run_place", "run_pitch", "run_inverse", "run_inner",
)  # fmt: skip
# Rows, modes, and whether out is written along its rows or, after a single product, its modes. On
# tensor cores a product of at least 64 rows is one instruction of a group of four warps (sm_90).
ROTATE_CLASSES = (
    (128, 64, True),
    (128, 32, True),
    (64, 64, True),
    (64, 32, True),
    (64, 16, True),
    (64, 64, False),
    (64, 16, False),
)

# A tile of a Gram matrix, or one part of its sum, see triton_kernels/gram.py.
GRAM = columns(
    "tensor",
    "kind",  # number of its width, and so many more where it sums over rows
    "m0", "n0",  # first row and column; equal on the diagonal
    "a", "b",  # addresses of the first term of that row and column
    "size", "row_stride", "run_stride", "length",  # as of `GramTask`
    "start",  # of the sum in its run
    "chunks",  # of the sum
    "part", "parts",  # where the tile goes among `partials`, where there are more parts than one
    "factor",
)  # fmt: skip
GRAM_ROWS, GRAM_WIDTHS = 64, (64, 32, 16)  # of tiles: a product for tensor cores has 64 rows

# One factor of a folded mode: a partial trace of the joint Gram matrix, or a triangle of a pair.
FOLD_GRAM = columns(
    "tensor",
    "partials",  # address of [count, sums]
    "count", "sums",
    "first",  # sum where a triangle begins
    "triangle",  # whether there is one
    "padded",  # width of the joint matrix
    "size", "rest", "inner",  # of the mode, of all other folded modes, of those behind it
    "factor",
)  # fmt: skip

# Elementwise Adam on a plane.
ADAM = columns("tensor", "plane", "inner", "pitch", "elements", "exp_avg", "exp_avg_sq")

# What became of a tensor's bases at a refresh, and of each mode that was due.
COUNT = columns(
    "refreshes",  # address of [3] int64, see soap_fast/step/state.py
    "off_diagonal",  # address of [modes] float32
    "first_mode",  # row of the table of modes that were due
    "modes",
)
COUNT_MODE = columns("mode", "outcome", "share")  # index, addresses of int64 and float32

# A second moment whose columns change places: rows of `pitch`, of which `inner` are entries. Of its
# axes the contiguous one is the first, the others follow it, the innermost first. "order" is the
# address of [size] int64, 0 for the identity, "step" an axis's stride in memory. "kind" is the
# number of the width of its tiles.
PERMUTE = columns(
    "tensor", "kind", "source", "target", "rows", "inner", "pitch", "first_axis", "axes",
)  # fmt: skip
PERMUTE_AXIS = columns("size", "step", "order")
PERMUTE_WIDTHS = (128, 32, 4)

# products[g] = a[g] @ b[g] for the matrices of one group, see triton_kernels/grouped_matmul.py.
GROUPED_MATMUL = columns(
    "first_tile", "last_tile",  # of all tiles, those of this group; the last one not included
    "kind",  # see GROUPED_CLASSES
    "m", "n", "k", "tiles_m", "tiles_n", "per_matrix",
    # Whether a product is symmetric, so that half of its tiles are others mirrored, whether its
    # sums begin at a tile's first row, or at its first column, and whether it is subtracted.
    "symmetric", "from_row", "from_column", "subtract",
    *(f"{x}_{what}" for x in ("a", "b", "out") for what in ("address", "matrix", "row")),
)  # fmt: skip
# Height and width of tiles.
GROUPED_CLASSES = ((128, 64), (64, 64), (64, 32))
GROUPED_NARROW = 2  # from here on

# A matrix derived from bases: their Kronecker product, as it is or transposed, padded by zeros.
# A basis of size 0 is none, one at address 0 is the identity.
SUB_BASES = 5  # 2^5 = 32
DERIVE = columns(
    "out", "rows", "row_stride", "columns", "size", "transposed",
    *(f"{what}{i}" for i in range(SUB_BASES) for what in ("basis", "basis_size", "basis_inner")),
)  # fmt: skip

# By op, the columns of tiles that are records: each holds all that a kernel reads of it.
RECORDS = {"rotate": ROTATE, "settle": ROTATE, "gram": GRAM, "gram_reduce": GRAM}
