"""tf32x3 on the CPU: float32 products as a GPU's tensor cores make them from three in tf32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Rounded to the 10 bits of mantissa that tf32 keeps of float32's 23, ties away from zero."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def matmul_tf32x3(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b with a = a_high + a_low and b likewise, but for a_low b_low; sums in float32."""
    a_high, b_high = to_tf32(a), to_tf32(b)
    a_low, b_low = to_tf32(a - a_high), to_tf32(b - b_high)
    return (a_low @ b_high + a_high @ b_low) + a_high @ b_high


@contextmanager
def products_in_tf32x3() -> Iterator[None]:
    """Within it the operators of soap_fast multiply float32 matrices in emulated tf32x3."""

    def grouped_matmul(a, b, products):
        for left, right, product in zip(a, b, products, strict=True):
            product.copy_(matmul_tf32x3(left, right))

    library = torch.library.Library("soap_fast", "IMPL")
    library.impl("grouped_matmul_", grouped_matmul, "CPU")
    try:
        yield
    finally:
        library._destroy()
