"""Which kernels and products a refresh on CUDA consists of, told by its own planning code.

The extension must be available, a GPU need not be. `csrc/refresh/phases/sequence.h` has the order
of phases and says what each does.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import torch

__all__ = [
    "PANEL_PRODUCTS",
    "PHASES",
    "PRODUCTS",
    "Panel",
    "PlannedLaunch",
    "Share",
    "refresh_plan",
]

# By number, as `Phase`, `Product` and `PanelProduct` count them.
PHASES = (
    "small", "gather", "set_apart", "examine", "decide", "arrange", "factor_columns", "normalise",
    "solve", "residual", "judge", "commit",
)  # fmt: skip
PRODUCTS = (
    "times_factor", "rotate", "column_gram", "expand", "basis_gram", "series", "correction",
    "carry",
)  # fmt: skip
PANEL_PRODUCTS = ("update_panel", "solve_panel")
COLUMNS, OF_SHARE = 11, 3  # kPlanColumns, and those that are of a stack


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


class Panel(NamedTuple):
    """What a product makes of a factor of size d: columns from `first` on, at most `width` of them,
    of the rows from `top` on, by sums over the columns before `first`.
    """

    top: int
    first: int
    width: int


class PlannedLaunch(NamedTuple):
    """A step of one kernel, or one product of all factors.

    Attributes:
        number: of the kernel among all, those that have nothing to do included; its steps have one.
        name: of its phase or product.
        round: of a factorisation: 0 of H, 1 of BᵀB; else 0.
        step: of that factorisation, its block of columns; of the solve, a panel's first one.
        structure: of a product, see `soap_fast/step/grouped_matmul.py`.
        shares: of each stack that has a share in it.
        panel: of a product that makes no whole matrix.
        goes_on: whether the step before it is of the same kernel.
    """

    number: int
    name: str
    round: int
    step: int
    structure: int
    shares: list[Share]
    panel: Panel | None = None
    goes_on: bool = False

    @property
    def is_product(self) -> bool:
        return self.name in PRODUCTS or self.name in PANEL_PRODUCTS

    @property
    def kernels(self) -> int:
        """1, or 0 of a further step."""
        return 0 if self.goes_on else 1

    def shape(self, d: int) -> tuple[int, int, int]:
        """Rows, columns and terms of a sum of a factor's product."""
        if self.panel is None:
            return d, d, d
        top, first, width = self.panel
        return d - top, min(width, d - first), first


def refresh_plan(
    stacks: Iterable[tuple[int, int]], dtype: torch.dtype = torch.float32, lent: int = 0
) -> list[PlannedLaunch]:
    """All launches of a refresh on CUDA in their order, each step of one.

    Args:
        stacks: size and number of the factors that are selected of each stack.
        dtype: of all of them, float32 or float64.
        lent: bytes of workspace that the caller lends, where it does.

    Raises:
        RuntimeError: for another dtype.
    """
    sizes, counts = [], []
    for size, count in stacks:
        sizes.append(size)
        counts.append(count)
    flat = torch.ops.soap_fast.refresh_plan.default(sizes, counts, dtype.itemsize, lent)
    rows = (flat[first : first + COLUMNS] for first in range(0, len(flat), COLUMNS))
    names = (*PHASES, *PRODUCTS, *PANEL_PRODUCTS)
    plan: list[PlannedLaunch] = []
    for launch, same in groupby(rows, key=lambda row: row[:-OF_SHARE]):
        number, what, of, step, structure, *panel = launch
        shares = [Share(*row[-OF_SHARE:]) for row in same]
        covers = Panel(*panel) if names[what] in PANEL_PRODUCTS else None
        goes_on = bool(plan) and plan[-1].number == number
        plan.append(
            PlannedLaunch(number, names[what], of, step, structure, shares, covers, goes_on)
        )
    return plan
