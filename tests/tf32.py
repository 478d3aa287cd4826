"""A GPU's float32 products on the CPU: how tensor cores make them, and how far off they may be.

Triton's precisions are ieee, tf32x3 (three products in tf32) and tf32 (one).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt

import torch
from tolerances import U
from torch.utils._python_dispatch import TorchDispatchMode

from soap_fast.step.grouped_matmul import SUBTRACT

PRECISIONS = ("ieee", "tf32x3", "tf32")


def product_error(precision: str, k: int) -> float:
    """c such that a sum of k products of float32 numbers has |error| <= c sum |a| |b|.

    Operands. tf32 keeps 10 bits of mantissa. Rounding to nearest errs by 2^-11 |a|, cutting off,
    which is what tensor cores do to a float32 operand, by 2^-10 |a|.
      tf32    both operands cut off: 2 * 2^-10 + 2^-20 < 2^-9 + 2^-20
      tf32x3  a = high + low + rest with high to nearest, |low| <= 2^-11 |a|, and low cut off,
              |rest| <= 2^-21 |a|. Left out are low low, rest b and a rest: 2^-22 + 2 * 2^-21, 20 U,
              and products of those.
    Sums. Of fused multiply-adds to nearest each errs by U times a partial sum, at most
    U sum |a| |b|; signs being independent, k of them err by more than 6 sqrt(k) U once in 3e7
    entries (Higham and Mary 2019, theorem 3.1, with lambda = 6). Tensor cores cut off, always
    towards zero, so errors add up; but an instruction adds four products or more at a time and
    cuts off once, by 2 U (Fasi, Higham, Mikaitis and Pranesh 2021): 2 U (k / 4 + 1). The first two
    products of tf32x3 are 2^-11 of the last and of no account here.
    """
    if precision == "ieee":
        return 6 * sqrt(k) * U
    cut_off = (k / 2 + 2) * U
    return cut_off + (2**-9 + 2**-20 if precision == "tf32" else 21 * U)


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Rounded to the 10 bits of mantissa that tf32 keeps of float32's 23, ties away from zero."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def cut_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """The same towards zero: what tensor cores see of a float32 number."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def matmul_tf32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b with the operands cut off; sums in float32."""
    return cut_to_tf32(a) @ cut_to_tf32(b)


def matmul_tf32x3(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b with a = a_high + a_low and b likewise, but for a_low b_low; sums in float32."""
    a_high, b_high = to_tf32(a), to_tf32(b)
    a_low, b_low = cut_to_tf32(a - a_high), cut_to_tf32(b - b_high)
    return (a_low @ b_high + a_high @ b_low) + a_high @ b_high


EMULATED = {"ieee": torch.matmul, "tf32x3": matmul_tf32x3, "tf32": matmul_tf32}


@contextmanager
def products_in_tf32x3() -> Iterator[None]:
    """Within it the operators of soap_fast multiply float32 matrices in emulated tf32x3."""

    def grouped_matmul(a, b, products, structure=0):
        for left, right, product in zip(a, b, products, strict=True):
            found = matmul_tf32x3(left, right)
            product.copy_(product - found if structure & SUBTRACT else found)

    library = torch.library.Library("soap_fast", "IMPL")
    library.impl("grouped_matmul_", grouped_matmul, "CPU")
    try:
        yield
    finally:
        library._destroy()


class TorchProductsInTf32x3(TorchDispatchMode):
    """Within it torch multiplies float32 matrices in emulated tf32x3; `count` says how many."""

    count = 0
    products = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op in self.products and args[0].dtype == torch.float32:
            self.count += 1
            return matmul_tf32x3(*args)
        return op(*args, **(kwargs or {}))
