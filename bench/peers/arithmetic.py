"""What a plain step has to multiply, and how fast this machine multiplies."""

from __future__ import annotations

from collections.abc import Iterable

from bench.roofline.costs import sums
from bench.roofline.roofs import gemm_row
from soap_fast.options import PlanOptions


def plain_flops(shapes: Iterable[tuple[int, ...]], options: PlanOptions) -> int:
    """Floating point operations of the products of one plain step of soap_fast.

    Per tensor of n elements and rotated group of size d (small neighbouring modes are one group):
    the gradient there and the direction back, 2 n d each, and the lower triangle of a Gram matrix
    with its diagonal, n (d + 1). Elementwise work is not counted.
    """
    found = sums(shapes, options)
    return 4 * found.products + found.triangles


def sgemm_gflops(device: str, size: int = 2048, repeats: int = 7) -> float:
    """GFLOP/s of a float32 product of two [size, size]: the fastest of `repeats` after a warm-up.

    With torch's threads as they are set, into memory that is already there. Other work on the
    machine can only slow a product down.
    """
    return float(gemm_row("gemm_float32", device, size, repeats)["value"])
