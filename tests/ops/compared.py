"""What a kernel wrote against its twin in float64, on what the kernel found in memory.

Bounds are those of `tf32.product_error` for products, and for the rest a count of roundings, each
of U = 2^-24 of the terms it rounds. The interpreter's products are float32 whatever the precision;
on a GPU the same tests run the real ones.
"""

from __future__ import annotations

import dataclasses

import torch
from kernel_cases import POISONED, WITHOUT_GRADIENT
from launched import LaunchedAlone
from tf32 import product_error
from tolerances import U

from soap_fast.backends.triton.ops import adam
from soap_fast.backends.triton.ops.plane import to_plane

MOMENTS = ("exp_avg", "exp_avg_sq")


def stepped(alone: LaunchedAlone) -> list[int]:
    """The tensors that take the step."""
    faulty = (POISONED, WITHOUT_GRADIENT)
    return [index for index in range(len(alone.calls)) if index not in faulty]


def close(found, expected, bound, where) -> None:
    error = (found.double() - expected).abs()
    assert (error <= bound).all(), f"{where}: {(error - bound).max():.1e} beyond the bound"


def accurate(alone: LaunchedAlone) -> str:
    """The precision of Gram matrices and of what gather computes: tf32 would be too little."""
    return "ieee" if alone.engine.precision == "ieee" else "tf32x3"


def check_adam(alone, index, before, after, rotated, bound, found) -> None:
    """Moments follow from g', which is known to within `bound`; n follows from them as they are.

    n = m / (sqrt(v) + eps): the root and the sum round once, eps once on its way to float32, and a
    division may be off by 2 ulp, 4 U, on a GPU: 8 U with one to spare.
    """
    options, layout = alone.options[index], alone.layouts[index]
    old, new = (
        [to_plane(memory[f"{name} {index}"].double(), layout) for name in MOMENTS]
        for memory in (before, after)
    )
    exp_avg, exp_avg_sq, _ = adam.adam(rotated, *old, options)
    sizes = [options.beta1 * old[0].abs(), options.beta2 * old[1]]
    grown = [(1 - options.beta1) * rotated.abs(), (1 - options.beta2) * rotated.square()]
    slopes = [(1 - options.beta1), (1 - options.beta2) * (2 * rotated.abs() + bound)]
    for name, kept, added, slope, mine, theirs in zip(
        MOMENTS, sizes, grown, slopes, new, (exp_avg, exp_avg_sq), strict=True
    ):
        close(mine, theirs, slope * bound + 6 * U * (kept + added), (index, name))
    follow = dataclasses.replace(options, beta1=1.0, beta2=1.0)
    floor = alone.scalar(before, index, "floor")
    n, whole = (adam.adam(rotated, *new, follow, least)[2] for least in (floor, 0.0))
    near = (new[1].sqrt() - floor).abs() <= 8 * U * floor  # where roots decide as they round
    n = torch.where(near & (found == 0), 0, torch.where(near, whole, n))
    close(found, n, 8 * U * n.abs(), (index, "direction"))
    square = found.square().sum()
    sums = alone.sums(after, index, "directions").sum()
    close(sums, square, (product_error("ieee", layout.numel) + U) * square, index)
