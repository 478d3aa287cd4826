"""Grouped matmul: batched products of many sizes in one call.

    products[g] = a[g] @ b[g]    for every group g, or -= where it is to be subtracted

The products of a refresh on a GPU all go through this operator, which torch's dispatcher looks up
by device. The extension serves it with a batched product of torch's per group; a faster kernel
takes over by `torch.library.Library("soap_fast", "IMPL").impl("grouped_matmul_", kernel, "CUDA")`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from soap_fast import extension

__all__ = [
    "LEFT_UPPER",
    "RIGHT_LOWER",
    "ROUNDED",
    "SUBTRACT",
    "SYMMETRIC",
    "grouped_matmul_eager",
    "grouped_matmul_native",
    "multiply",
]

# What a caller knows of all groups, in any combination, and a kernel may make use of: products are
# symmetric but for rounding, and so is what they are taken from; they may then be so to the last
# bit. Entries of b above its diagonal, or of a below it, are zero. And what the caller asks for:
# that products are subtracted from what is there, that operands may be rounded to tf32.
# csrc/linalg/product_structure.h names the same numbers.
SYMMETRIC, RIGHT_LOWER, LEFT_UPPER, SUBTRACT, ROUNDED = 1, 2, 4, 8, 16


def grouped_matmul_eager(
    a: Sequence[Tensor], b: Sequence[Tensor], products: Sequence[Tensor], structure: int = 0
) -> None:
    """The definition, in plain torch.

    Args:
        a: [n, rows, k] per group, float32 or float64, of any strides: a transpose is a view.
        b: [n, k, columns] per group, likewise.
        products: [n, rows, columns] per group, written; may not overlap with a or b, though they
            may be parts of one matrix. With SUBTRACT a @ b is taken from what they hold.
        structure: of the constants above, or 0.
    """
    for left, right, product in zip(a, b, products, strict=True):
        multiply(left, right, product, structure)


def multiply(left: Tensor, right: Tensor, product: Tensor, structure: int) -> None:
    """One group by torch."""
    if structure & SUBTRACT:
        product.baddbmm_(left, right, alpha=-1)
    else:
        product.copy_(left @ right)


def grouped_matmul_native(
    a: Sequence[Tensor], b: Sequence[Tensor], products: Sequence[Tensor], structure: int = 0
) -> None:
    """The same by the extension, which must be available.

    Raises:
        RuntimeError: for lists of different lengths, and for shapes or dtypes that do not fit.
    """
    torch.ops.soap_fast.grouped_matmul_.default(a, b, products, structure)


def _grouped_matmul_fake(
    a: Sequence[Tensor], b: Sequence[Tensor], products: Sequence[Tensor], structure: int = 0
) -> None:
    """For torch.compile: everything is written in place, nothing is returned."""


if extension.available():
    torch.library.register_fake("soap_fast::grouped_matmul_")(_grouped_matmul_fake)
