"""Grouped matmul: batched products of many sizes in one call.

    products[g] = a[g] @ b[g]    for every group g, or -= where it is to be subtracted

The extension makes a batched product of torch's per group.

A refresh on a GPU hands over a table that names its matrices by address, to `grouped_matmul_at_`,
which torch's dispatcher looks up by device. A faster kernel takes over by
`torch.library.Library("soap_fast", "IMPL").impl("grouped_matmul_at_", kernel, "CUDA")`. Elsewhere
the extension makes tensors of the table, and these go to `grouped_matmul_`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from soap_fast import extension

__all__ = [
    "GROUP_COLUMNS",
    "LEFT_UPPER",
    "RIGHT_LOWER",
    "ROUNDED",
    "SUBTRACT",
    "SYMMETRIC",
    "grouped_matmul_as_tensors",
    "grouped_matmul_at",
    "grouped_matmul_eager",
    "grouped_matmul_native",
    "groups_of",
    "multiply",
]

# What a caller knows of all groups, in any combination, and a kernel may make use of: products are
# symmetric but for rounding, and so is what they are taken from; they may then be so to the last
# bit. Entries of b above its diagonal, or of a below it, are zero. And what the caller asks for:
# that products are subtracted from what is there, that operands may be rounded to tf32.
# csrc/linalg/product_structure.h names the same numbers.
SYMMETRIC, RIGHT_LOWER, LEFT_UPPER, SUBTRACT, ROUNDED = 1, 2, 4, 8, 16

# Of a row of the table: number of matrices, m, n and k; then of a [m, k], b [k, n] and the product
# [m, n] the address, and elements from one matrix, row and column to the next
# (csrc/linalg/grouped_matmul.h).
GROUP_COLUMNS = 16


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


def groups_of(
    a: Sequence[Tensor], b: Sequence[Tensor], products: Sequence[Tensor]
) -> Tensor:  # [groups, GROUP_COLUMNS] int64
    """The table that names these matrices, which must live as long as it is used."""
    rows = []
    for left, right, product in zip(a, b, products, strict=True):
        (count, m, k), n = left.shape, right.shape[2]
        places = ((x.data_ptr(), *x.stride()) for x in (left, right, product))
        rows.append([count, m, n, k, *chain.from_iterable(places)])
    return torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, GROUP_COLUMNS)


def grouped_matmul_at(memory: Tensor, groups: Tensor, structure: int = 0) -> None:
    """The same by the extension for the matrices that a table names, or by who has taken over.

    Args:
        memory: any of the dtype and on the device of all matrices; which device decides who.
        groups: [groups, GROUP_COLUMNS] int64 on the CPU, see `groups_of`.
    """
    torch.ops.soap_fast.grouped_matmul_at_.default(memory, groups, structure)


def grouped_matmul_as_tensors(memory: Tensor, groups: Tensor, structure: int = 0) -> None:
    """The same as `grouped_matmul_at`, always by `grouped_matmul_`.

    Raises:
        RuntimeError: for a table of another form.
    """
    torch.ops.soap_fast.grouped_matmul_as_tensors_.default(memory, groups, structure)


def _fake(*_: object) -> None:
    """For torch.compile: everything is written in place, nothing is returned."""


if extension.available():
    for name in ("grouped_matmul_", "grouped_matmul_at_", "grouped_matmul_as_tensors_"):
        torch.library.register_fake(f"soap_fast::{name}")(_fake)
