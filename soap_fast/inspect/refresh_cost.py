"""What the operator of a refresh computes on a GPU and how long that takes, by a small model.

    time of a kernel  = launch + max(longest team, all teams / places for teams, bytes / copy)
    of a further step = as of a kernel, with what it is to wait for the step before as its launch
    time of a product = launch + tiles / programs, each of them begun and then summed

What there is to do comes from the operator's own plan (`soap_fast/step/refresh_plan.py`), how long
it takes from the constants below, which are of an NVIDIA H100 80GB HBM3. docs/cost.md says how far
off the model is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import NamedTuple

import torch

from soap_fast.backends.triton.ops.grouped_tiles import kind_of, tile_cycles
from soap_fast.step.grouped_matmul import LEFT_UPPER, RIGHT_LOWER, SYMMETRIC
from soap_fast.step.refresh_plan import PlannedLaunch, Share, refresh_plan
from soap_fast.triton_kernels.columns import GROUPED_CLASSES

__all__ = ["Cost", "PhaseCost", "cost", "costs_of", "phase_name", "refresh_plans"]

# Measured: the roofs `copy` and `launch`, multiprocessors and their clock under load.
COPY = 3.01e12  # bytes a second, read + written
LAUNCH = 5.9e-6  # seconds from one launch to the next
WAIT = 2e-6  # seconds from a step's end to the next within a launch: an estimate
MULTIPROCESSORS, CLOCK = 132, 1.8e9
RESIDENT = 3  # blocks of 256 threads on a multiprocessor, by ptxas's registers for sm_90
FEWER = {"factor_columns": 2, "solve": 2}  # which take more than 80
FLOAT = 4  # bytes
TILE, STAGED = 64, 16  # kTile and kStagedDepth of csrc in float32
PANEL = 6  # kPanelTiles there
WARPS = 8  # of a block

# Cycles of a block. Their relation is that of the instructions that sm_90's machine code has for
# each; their scale is fitted to one measurement: ELIC's operator took 12.28 ms with products of
# cuBLAS, 4.0 ms of them by its measured rate (tests/cost/test_cost_refresh.py).
#
# STAGE and SHARED are what two blocks leave each other: a stage has some 380 instructions in a warp
# and a shared one 280, two warps of a block share a scheduler, and nine of ten cycles issue. The
# kernel that was fitted had 660 for a stage; its 3600 cycles were 0.9 of what three blocks needed.
#
# A column is a chain in one warp: 126 cycles, where a barrier takes 40, a root 40, shared memory 30
# and a product 4. Two columns hand over two rows and take two roots one after the other, 157; the
# rest is what comes before and after 16 of them. The kernel before had 615 by the same count, and
# 840 by the fitted scale, of which this has as much more.
COLUMN = 175.0  # of a tile's factor and inverse
SUBSTITUTION = 29.0  # of a lone thread: a multiply-add that waits for the one before it
STAGE = 1700.0  # of a tile's product: 16 columns of both operands are fetched and multiplied
SHARED = 1240.0  # of a tile's product whose operands are in shared memory: 16 columns
COMPARISON = 18.0  # of two eigenvalues, for an order: 29 instructions and a fetch for four of them
PASS = 360.0  # of a thread over one row: a load that others overlap

TURN = 1800.0  # of a tile that is transposed: an estimate, of 16 entries a thread there and back

PROGRAMS = 2 * MULTIPROCESSORS  # of a grouped product

# Matrices of a factor that a phase by rows reads and writes.
MOVED = {
    "gather": 4,
    "examine": 1,
    "arrange": 4,
    "normalise": 2,
    "residual": 3,
    "commit": 2,
}


Timed = Callable[[PlannedLaunch], float]  # seconds
# By phase, of a factor's share and a step: cycles of its teams, and how many take so long.
Teams = Mapping[str, Callable[[Share, int], Sequence[tuple[float, int]]]]


class Cost(NamedTuple):
    """Kernels, floating point operations of the mathematics, and seconds."""

    launches: int
    flops: float
    seconds: float


class PhaseCost(NamedTuple):
    """All launches of one phase in a refresh."""

    phase: str
    launches: int
    flops: float
    seconds: float


def products(launch: PlannedLaunch) -> float:
    """Seconds of a grouped product without its launch."""
    tiles = [(share.factors, _product_tiles(launch, share.size)) for share in launch.shares]
    together = sum(factors * sum(of_one) for factors, of_one in tiles) / PROGRAMS
    return max(together, *(max(of_one) for _, of_one in tiles)) / CLOCK


def _product_tiles(launch: PlannedLaunch, d: int) -> list[float]:
    """Cycles of each tile of one factor's product."""
    structure, (rows, columns, terms) = launch.structure, launch.shape(d)
    kind = kind_of(rows, columns, terms)
    height, width = GROUPED_CLASSES[kind]
    found = []
    for n in range(0, columns, width):
        for m in range(n // height * height if structure & SYMMETRIC else 0, rows, height):
            first = max(
                m if structure & LEFT_UPPER else 0,
                n if structure & RIGHT_LOWER else 0,
            )
            found.append(tile_cycles(kind, terms - first, structure))
    return found


def cost(launch: PlannedLaunch, products: Timed = products, teams: Teams | None = None) -> Cost:
    """Of one launch, or of one step of it.

    Args:
        products: seconds of a product, where another kernel makes them.
        teams: cycles of teams, where phases are others.
    """
    shares = launch.shares
    flops = sum(share.factors * _flops(launch, share.size) for share in shares)
    if launch.is_product:
        return Cost(launch.kernels, flops, launch.kernels * LAUNCH + products(launch))
    of_phase = (TEAMS if teams is None else teams).get(launch.name, _nothing)
    counted = [(share, of_phase(share, launch.step)) for share in shares]
    places = MULTIPROCESSORS * FEWER.get(launch.name, RESIDENT)
    places *= WARPS if launch.name == "small" else 1
    together = sum(s.factors * cycles * n for s, alike in counted for cycles, n in alike) / places
    longest = max(cycles for _, alike in counted for cycles, _ in alike)
    matrices = sum(share.factors * share.size**2 for share in shares)
    moved = FLOAT * MOVED.get(launch.name, 0) * matrices / COPY
    begun = WAIT if launch.goes_on else LAUNCH
    return Cost(launch.kernels, flops, begun + max(max(longest, together) / CLOCK, moved))


def refresh_plans(factors: Iterable[tuple[int, torch.dtype]]) -> list[PlannedLaunch]:
    """The operator's launches for factors of these sizes and dtypes."""
    counted = Counter(factors)
    plans = []
    for dtype in (torch.float32, torch.float64):
        stacks = [(size, count) for (size, of), count in counted.items() if of == dtype]
        plans += refresh_plan(stacks, dtype)
    return plans


def costs_of(
    plan: Sequence[PlannedLaunch], products: Timed = products, teams: Teams | None = None
) -> list[PhaseCost]:
    """The launches of a plan put together by phase, in the order in which phases first come."""
    found: dict[str, list[Cost]] = {}
    for launch in plan:
        found.setdefault(phase_name(launch), []).append(cost(launch, products, teams))
    return [
        PhaseCost(phase, *(sum(numbers) for numbers in zip(*of, strict=True)))
        for phase, of in found.items()
    ]


ROUNDS = ("", " of columns")  # of a factorisation: of H, of the Gram matrix of B's columns


def phase_name(launch: PlannedLaunch) -> str:
    return launch.name + ROUNDS[launch.round]


def _flops(launch: PlannedLaunch, d: int) -> float:
    """Of one factor."""
    if launch.is_product:
        return _product_flops(launch, d)
    left = d - launch.step * TILE  # rows and columns from this step's on
    if launch.name == "factor_columns":
        width, within = min(TILE, left), launch.step % PANEL
        updated = _trapezoid(left, min(left, (PANEL - within) * TILE)) if within else 0
        return width**3 / 3 + (left - width) * width**2 + 2 * updated * TILE
    return {"small": 20 / 3 * d**3, "solve": d * min(left, PANEL * TILE) ** 2}.get(launch.name, 0)


def _trapezoid(rows: int, columns: int) -> float:
    """Entries on the diagonal of the first columns and below."""
    return columns * (rows - (columns - 1) / 2)


def _product_flops(launch: PlannedLaunch, d: int) -> float:
    """Entries of one half where both are alike or one is not read; terms that no triangle of zeros
    makes zero.
    """
    structure = launch.structure
    if launch.panel:
        rows, columns, terms = launch.shape(d)
        of_lower = launch.name == "update_panel"
        return 2 * terms * (_trapezoid(rows, columns) if of_lower else rows * columns)
    if structure & SYMMETRIC:
        zeros = structure & (RIGHT_LOWER | LEFT_UPPER)
        return d * (d + 1) * (d + 2) / 3 if zeros else d**2 * (d + 1)
    return d**2 * (d + 1) if structure & (RIGHT_LOWER | LEFT_UPPER) else 2 * d**3


def _nothing(share: Share, step: int) -> Sequence[tuple[float, int]]:
    """Beside what it moves."""
    return [(0.0, share.parts)]


def alike(cycles: Callable[[int], float]) -> Callable[[Share, int], Sequence[tuple[float, int]]]:
    """All teams of a factor take so many cycles, by its size."""
    return lambda share, step: [(cycles(share.size), share.parts)]


def _columns(share: Share, step: int) -> Sequence[tuple[float, int]]:
    """Teams that make a block of columns: they bring the diagonal tile and their own up to date,
    factor the one and multiply the other. The rest bring a tile up to date each.
    """
    width, below = min(TILE, share.size - step * TILE), share.size - (step + 1) * TILE
    product = TILE / STAGED * STAGE
    made = COLUMN * width + (SHARED / STAGED * width if below > 0 else 0)
    updated = product * ((below > 0) + 1) if step % PANEL else 0.0
    teams = max(1, ceil(below / TILE))
    return [(updated + made, teams), (product, share.parts - teams)]


def _solve(share: Share, step: int) -> Sequence[tuple[float, int]]:
    """A tile of rows from a panel's first column to its last."""
    tiles = min(PANEL, ceil(share.size / TILE) - step)
    stages = tiles * (tiles - 1) / 2 * TILE / STAGED
    return [(stages * STAGE + tiles * (TILE / STAGED * SHARED + TURN), share.parts)]


TEAMS: Teams = {
    # Three products of d terms, then for each column a reflection there and back, a lane for each.
    "small": alike(lambda d: SUBSTITUTION * (3 * d**2 + 4 * d**2)),
    "decide": alike(lambda d: ceil(d / (32 * WARPS)) * d * COMPARISON),
    "factor_columns": _columns,
    "gather": alike(lambda d: ceil(d / TILE) * TURN),
    "arrange": alike(lambda d: ceil(d / TILE) * 1.5 * TURN),  # H beside
    "normalise": alike(lambda d: d / 4 * PASS + ceil(d / TILE) * TURN),
    "commit": alike(lambda d: ceil(d / TILE) * TURN),
    "solve": _solve,
}
