"""The model of a refresh's time against what an H100 took, on the operator of that day.

tests/data/cost/refresh_plans.json.xz has the launches of that operator: phase, round, step, and
size, number of factors and parts of each stack. They differ from today's in what this file says.
"""

from __future__ import annotations

import json
import lzma
from math import ceil, hypot
from pathlib import Path

import pytest

from soap_fast.inspect import refresh_cost
from soap_fast.inspect.refresh_cost import CLOCK, LAUNCH, PROGRAMS, SLOWER, costs_of
from soap_fast.step.refresh_plan import PlannedLaunch, Share

ROOT = Path(__file__).parent.parent.parent
PLANS = Path(__file__).parent.parent / "data" / "cost" / "refresh_plans.json.xz"
# Launches that `python -m bench launches` counted, without one per round that came later.
COUNTED = {"elic": 125, "dcae": 765, "lalic": 843}


def plan(model: str) -> list[PlannedLaunch]:
    rows = json.loads(lzma.decompress(PLANS.read_bytes()))[model]
    return [
        PlannedLaunch(number, name, of, step, [Share(*share) for share in shares])
        for number, (name, of, step, shares) in enumerate(rows)
    ]


# Of the same instructions and the same scale as the model's own constants.
COLUMN = 2400.0  # of a factorisation: three barriers, a root, divisions in every update


def panel(d: int, step: int) -> float:
    """Column by column, then every row below the diagonal block by one thread."""
    width = min(64, d - step * 64)
    is_last = (step + 1) * 64 >= d
    solved = 0 if is_last else width**2 / 2
    return COLUMN * width + refresh_cost.SUBSTITUTION * solved


def solve(d: int, step: int) -> float:
    """A tile of rows from its first column to its last, of each block a row by one thread."""
    tiles = ceil(d / 64)
    stages = tiles * (tiles - 1) / 2 * 4
    return stages * refresh_cost.STAGE + tiles * refresh_cost.SUBSTITUTION * 64**2 / 2


TEAMS = {**refresh_cost.TEAMS, "factor_panel": panel, "solve": solve}


def by_cublas(shares: list[Share]) -> float:
    """A batched product of each size, 37 TFLOP/s: 37 to 40 were measured with 192 and 320 terms."""
    flops = sum(2 * share.factors * share.size**3 for share in shares)
    return flops / 37e12 + LAUNCH * (len(shares) - 1)


def by_triton(shares: list[Share]) -> float:
    """The kernel of that day, whose stores took a sector for each element.

    Cycles are those of `bench/cost/` for tiles of 64 x 64 and of 32 x 32, sectors those of the L2
    (`bench.cost.constants.PARTIAL_SECTORS`).
    """
    cycles = sectors = 0.0
    for d, factors, _ in shares:
        wide, narrow = ceil(d / 64) ** 2, ceil(d / 32) ** 2
        if narrow * 32**2 <= 0.8 * wide * 64**2 or d % 4:
            cycles += factors * narrow * (1500 + 2600 * ceil(d / 32))
        else:
            cycles += factors * wide * (2400 + 2970 * ceil(d / 32))
        sectors += factors * d**2
    return SLOWER * hypot(1.17 * cycles / PROGRAMS / CLOCK, sectors / 50e9)


@pytest.mark.parametrize(
    ("model", "products", "measured"),
    [
        ("elic", by_cublas, 12.28),  # `python -m bench refresh`: the operator by itself
        ("elic", by_triton, 19.79),  # `python -m bench kernels`: within a step
        ("dcae", by_triton, 292.7),
    ],
)
def test_the_operator_takes_what_was_measured(model, products, measured):
    """The scale of the cycles is fitted on the first, SLOWER on the others."""
    predicted = 1e3 * sum(phase.seconds for phase in costs_of(plan(model), products, TEAMS))
    assert predicted == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("model", COUNTED)
def test_launches_are_those_that_were_counted(model):
    assert len(plan(model)) == COUNTED[model]
