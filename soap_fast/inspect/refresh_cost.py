"""What the operator of a refresh computes on a GPU and how long that takes, by a small model.

    time of a kernel  = launch + max(longest team, all teams / places for teams, what keeps a
                        multiprocessor busy, bytes / copy)
    time of a product = launch + tiles / programs, each of them begun and then summed

What there is to do comes from the operator's own plan (`soap_fast/step/refresh_plan.py`), how long
it takes from the constants below, which are of an NVIDIA H100 80GB HBM3. docs/cost.md says how far
off the model is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import NamedTuple

import torch

from soap_fast.step.refresh_plan import PlannedLaunch, Share, refresh_plan

__all__ = ["Cost", "PhaseCost", "cost", "costs_of", "phase_name", "refresh_plans"]

# Measured: the roofs `copy` and `launch`, multiprocessors and their clock under load.
COPY = 3.01e12  # bytes a second, read + written
LAUNCH = 5.9e-6  # seconds from one launch to the next
MULTIPROCESSORS, CLOCK = 132, 1.8e9
RESIDENT = 3  # blocks of 256 threads on a multiprocessor
FLOAT = 4  # bytes
TILE, STAGED = 64, 16  # kTile and kStagedDepth of csrc in float32
WARPS = 8  # of a block

# Cycles of a block alone.
COLUMN = 3000.0  # of a factorisation
SUBSTITUTION = 24.0  # of a lone thread: a multiply-add that waits for the one before it
STAGE = 2000.0  # of a tile's product: 16 columns of both operands are fetched and multiplied
BUSY_STAGE = 1024.0  # of it, loads from shared memory: 8 words for 16 products, 128 bytes a cycle
COMPARISON = 25.0  # of two eigenvalues, for an order
PASS = 150.0  # of a thread over one row: a load that others overlap

# Grouped products: cycles that a program takes for a tile beside its sum, and for 32 terms of it.
PRODUCT_TILE, PRODUCT_BLOCK, PRODUCT_PROGRAMS = 8000.0, 3000.0, 2 * MULTIPROCESSORS
BLOCK = 32

# Matrices of a factor that a phase by rows reads and writes.
MOVED = {
    "gather": 4, "examine": 1, "arrange": 4, "normalise": 2, "residual": 3, "add_correction": 3,
    "commit": 2,
}  # fmt: skip


class Cost(NamedTuple):
    """Floating point operations of the mathematics, and seconds."""

    flops: float
    seconds: float


class Team(NamedTuple):
    """Cycles of one part of a factor alone, and how many of them keep its multiprocessor busy."""

    cycles: float
    busy: float = 0.0


class PhaseCost(NamedTuple):
    """All launches of one phase in a refresh."""

    phase: str
    launches: int
    flops: float
    seconds: float


def products(shares: Sequence[Share]) -> float:
    """Seconds of a grouped product without its launch."""
    cycles = sum(
        share.factors
        * ceil(share.size / TILE) ** 2
        * (PRODUCT_TILE + ceil(share.size / BLOCK) * PRODUCT_BLOCK)
        for share in shares
    )
    return cycles / PRODUCT_PROGRAMS / CLOCK


def cost(launch: PlannedLaunch, products: Callable[[Sequence[Share]], float] = products) -> Cost:
    """Of one launch.

    Args:
        products: seconds of a product, where another kernel makes them.
    """
    shares = launch.shares
    flops = sum(share.factors * _flops(launch, share.size) for share in shares)
    if launch.is_product:
        return Cost(flops, LAUNCH + products(shares))
    teams = [(_team(launch, share.size), share.factors * share.parts) for share in shares]
    by_warp = WARPS if launch.name == "small" else 1
    places = MULTIPROCESSORS * RESIDENT * by_warp
    longest = max(team.cycles for team, _ in teams)
    shared = sum(team.cycles * count for team, count in teams) / places
    busy = sum(team.busy * count for team, count in teams) / MULTIPROCESSORS
    matrices = sum(share.factors * share.size**2 for share in shares)
    moved = FLOAT * MOVED.get(launch.name, 0) * matrices / COPY
    return Cost(flops, LAUNCH + max(max(longest, shared, busy) / CLOCK, moved))


def refresh_plans(factors: Iterable[tuple[int, torch.dtype]]) -> list[PlannedLaunch]:
    """The operator's launches for factors of these sizes and dtypes."""
    counted = Counter(factors)
    plans = []
    for dtype in (torch.float32, torch.float64):
        stacks = [(size, count) for (size, of), count in counted.items() if of == dtype]
        plans += refresh_plan(stacks, dtype)
    return plans


def costs_of(
    plan: Sequence[PlannedLaunch], products: Callable[[Sequence[Share]], float] = products
) -> list[PhaseCost]:
    """The launches of a plan put together by phase, in the order in which phases first come."""
    found: dict[str, list[Cost]] = {}
    for launch in plan:
        found.setdefault(phase_name(launch), []).append(cost(launch, products))
    return [
        PhaseCost(phase, len(of), sum(one.flops for one in of), sum(one.seconds for one in of))
        for phase, of in found.items()
    ]


# By round of a factorisation: of H, of H where a pivot failed, of the Gram matrix of B's columns.
ROUNDS = ("", " again", " of columns")
SECOND_TRY = 1


def phase_name(launch: PlannedLaunch) -> str:
    return launch.name + ROUNDS[launch.round]


def _flops(launch: PlannedLaunch, d: int) -> float:
    """Of one factor; a second try has none, since no pivot is expected to fail."""
    if launch.is_product:
        return 2 * d**3
    below = max(0, d - (launch.step + 1) * TILE)
    width = min(TILE, d - launch.step * TILE)
    if launch.round == SECOND_TRY:
        return 0
    if launch.name == "factor_panel":
        return width**3 / 3 + below * width**2
    if launch.name == "update_trailing":
        return below * (below + 1) * width
    return {"small": 20 / 3 * d**3, "solve": d**3}.get(launch.name, 0)


def _team(launch: PlannedLaunch, d: int) -> Team:
    """What a team does with one part of a factor, beside what it moves."""
    if launch.round == SECOND_TRY:
        return Team(0)
    return TEAMS.get(launch.name, lambda d, step: Team(0))(d, launch.step)


def _panel(d: int, step: int) -> Team:
    width = min(TILE, d - step * TILE)
    is_last = (step + 1) * TILE >= d
    return Team(COLUMN * width + SUBSTITUTION * (0 if is_last else width**2 / 2))


def _stages(n: float) -> Team:
    return Team(n * STAGE, n * BUSY_STAGE)


def _solve(d: int, step: int) -> Team:
    """A tile of rows from its first column to its last."""
    tiles = ceil(d / TILE)
    product = _stages(tiles * (tiles - 1) / 2 * TILE / STAGED)
    return Team(product.cycles + tiles * SUBSTITUTION * TILE**2 / 2, product.busy)


# Three products of d terms, then a reflection and its application there and back for each column,
# a lane for each.
TEAMS: dict[str, Callable[[int, int], Team]] = {
    "small": lambda d, step: Team(SUBSTITUTION * (3 * d**2 + 4 * d**2)),
    "decide": lambda d, step: Team(ceil(d / (32 * WARPS)) * d * COMPARISON),
    "factor_panel": _panel,
    "update_trailing": lambda d, step: _stages(TILE / STAGED),
    "normalise": lambda d, step: Team(d / 4 * 2 * PASS),
    "solve": _solve,
}
