"""Which kernels and products a refresh on CUDA consists of, told by its own planning code.

The extension must be available, a GPU need not be. `csrc/refresh/phases/sequence.h` has the order
of phases and says what each does.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import torch

__all__ = ["PHASES", "PRODUCTS", "PlannedLaunch", "Share", "refresh_plan"]

# By number, as `Phase` and `Product` count them.
PHASES = (
    "small", "gather", "set_apart", "examine", "decide", "arrange", "factor_columns", "normalise",
    "solve", "residual", "judge", "commit",
)  # fmt: skip
PRODUCTS = (
    "times_factor", "rotate", "column_gram", "expand", "basis_gram", "series", "correction",
    "carry",
)  # fmt: skip
COLUMNS = 8  # kPlanColumns


class Share(NamedTuple):
    """What a launch does of one stack.

    Attributes:
        size: d of its factors.
        factors: how many.
        parts: into which a phase divides each, a team's work; 0 of a product.
    """

    size: int
    factors: int
    parts: int


class PlannedLaunch(NamedTuple):
    """One kernel, or one product of all factors.

    Attributes:
        number: of it among all, those that have nothing to do included.
        name: of its phase or product.
        round: of a factorisation: 0 of H, 1 of BᵀB; else 0.
        step: of that factorisation, its block of columns.
        structure: of a product, see `soap_fast/step/grouped_matmul.py`.
        shares: of each stack that has a share in it.
    """

    number: int
    name: str
    round: int
    step: int
    structure: int
    shares: list[Share]

    @property
    def is_product(self) -> bool:
        return self.name in PRODUCTS


def refresh_plan(
    stacks: Iterable[tuple[int, int]], dtype: torch.dtype = torch.float32
) -> list[PlannedLaunch]:
    """All launches of a refresh on CUDA in their order.

    Args:
        stacks: size and number of the factors that are selected of each stack.
        dtype: of all of them, float32 or float64.

    Raises:
        RuntimeError: for another dtype.
    """
    sizes, counts = [], []
    for size, count in stacks:
        sizes.append(size)
        counts.append(count)
    flat = torch.ops.soap_fast.refresh_plan.default(sizes, counts, dtype.itemsize)
    rows = (flat[first : first + COLUMNS] for first in range(0, len(flat), COLUMNS))
    names = (*PHASES, *PRODUCTS)
    return [
        PlannedLaunch(number, names[what], of, step, structure, [Share(*row[5:]) for row in same])
        for (number, what, of, step, structure), same in groupby(rows, key=lambda row: row[:5])
    ]
