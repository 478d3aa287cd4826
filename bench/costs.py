"""What the operators and stations of a step have to compute and to move, by their names.

Flops are those of the mathematics in products; bytes are operands read once and results written
once, in float32. n is a tensor's elements, d the size of a rotated group of modes or of a factor.
Two modes of a convolution's kernel, 3 x 3 or 5 x 5, count one by one, as the fused step takes them:

- a rotation: 2 n d per group; a Gram matrix: its triangle with the diagonal, n (d + 1);
- `step_`, or an update: the gradient there, the direction back, and the Gram matrices; p, exp_avg,
  exp_avg_sq and K are read and written, g and Q read;
- a refresh: K Q and QᵀQ 2 d³ each, Householder's QR with its Q 8/3 d³; K and Q are read, Q and the
  carrying matrix written; an eigendecomposition: 9 d³, as is customary;
- a carry: exp_avg there and back is one rotation; both moments are read and written.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from soap_fast.options import PlanOptions
from soap_fast.step.layout import layout_of
from soap_fast.step.plan import plan_tensor

FLOAT = 4  # bytes
# What `bench` steps by: soap_fast's defaults.
PLAN = PlanOptions(10000, merge_dims=False, precondition_1d=False, data_format="channels_first")


class Cost(NamedTuple):
    flops: float
    bytes: float


def costs(shapes: Iterable[tuple[int, ...]], options: PlanOptions) -> dict[str, Cost]:
    """Of one pass over all tensors of a model."""
    numel = rotated = products = triangles = squares = cubes = 0  # sums over tensors
    for shape in shapes:
        plan, n = plan_tensor(shape, options), prod(shape)
        layout, widths = layout_of(plan), []
        for group in plan.groups:
            if group.rotated:
                pair = layout.pair and group is layout.folded
                widths += layout.fold_sizes if pair else (group.size,)
        factors = [size for size in plan.factors if size is not None]
        numel += n
        rotated += n if widths else 0
        products += sum(n * d for d in widths)
        triangles += sum(n * (d + 1) for d in widths)
        squares += sum(d**2 for d in factors)
        cubes += sum(d**3 for d in factors)
    step = Cost(4 * products + triangles, FLOAT * (7 * numel + 3 * squares))
    rotation = Cost(2 * products, FLOAT * (2 * rotated + squares))
    refresh = Cost(20 / 3 * cubes, FLOAT * 4 * squares)
    carry = Cost(2 * products, FLOAT * (4 * rotated + squares))
    eigh = Cost(9 * cubes, FLOAT * 2 * squares)
    return {
        **dict.fromkeys(("update", "step_"), step),
        **dict.fromkeys(("rotate", "rotate_back"), rotation),
        "grams": Cost(triangles, FLOAT * (rotated + squares)),
        "adam_direction": Cost(0, FLOAT * 3 * numel),
        "commit": Cost(0, FLOAT * 2 * (3 * numel + squares)),
        **dict.fromkeys(("refresh_", "refresh_eager"), refresh),
        **dict.fromkeys(("carry_", "carry"), carry),
        **dict.fromkeys(("eigh", "eigh_eager"), eigh),
    }
