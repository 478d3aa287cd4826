"""What a plain step has to multiply, and how fast this machine multiplies."""

from __future__ import annotations

import time
from collections.abc import Iterable
from math import prod

import torch

from soap_fast.options import PlanOptions
from soap_fast.plan import plan_tensor


def plain_flops(shapes: Iterable[tuple[int, ...]], options: PlanOptions) -> int:
    """Floating point operations of the products of one plain step of soap_fast.

    Per tensor of n elements and rotated group of size d (small neighbouring modes are one group):
    the gradient there and the direction back, 2 n d each, and the lower triangle of a Gram matrix
    with its diagonal, n (d + 1). Elementwise work is not counted.
    """
    flops = 0
    for shape in shapes:
        widths = [group.size for group in plan_tensor(shape, options).groups if group.rotated]
        flops += sum(prod(shape) * (4 * d + d + 1) for d in widths)
    return flops


def sgemm_gflops(device: str, size: int = 2048, repeats: int = 7) -> float:
    """GFLOP/s of a float32 product of two [size, size]: the fastest of `repeats` after a warm-up.

    With torch's threads as they are set, into memory that is already there. Other work on the
    machine can only slow a product down.
    """
    a, b = torch.randn(2, size, size, device=device)  # [size, size] each
    out = torch.empty_like(a)
    synchronize = torch.cuda.synchronize if a.is_cuda else lambda: None
    seconds = []
    for _ in range(1 + repeats):
        synchronize()
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:]) / 1e9
