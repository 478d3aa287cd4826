"""What a refresh on CUDA consists of, by the operator's own planning code, and its cost."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import tolerances
import torch
from factors import random_factor, random_orthogonal
from streams import assert_same_bits, needs_native

from soap_fast.inspect.refresh_cost import LAUNCH, cost, costs_of, phase_name, refresh_plans
from soap_fast.step.grouped_matmul import LEFT_UPPER, RIGHT_LOWER, ROUNDED, SUBTRACT, SYMMETRIC
from soap_fast.step.refresh import refresh_by_cholesky, refresh_launches, refresh_times
from soap_fast.step.refresh_plan import PHASES, PRODUCTS, refresh_plan

SEQUENCE = Path(__file__).parent.parent / "csrc" / "refresh" / "phases" / "sequence.h"
SIZES = {5: 3, 33: 2, 64: 1, 100: 2, 130: 1}
LARGE = {d: n for d, n in SIZES.items() if d > 32}


def test_names_are_those_of_the_source():
    """`kFactorColumns` is `factor_columns`."""
    text = SEQUENCE.read_text()
    for kind, names in (("Phase", PHASES), ("Product", PRODUCTS)):
        body = re.search(rf"enum class {kind} \{{(.*?)\}};", text, re.DOTALL)[1]
        found = re.findall(r"^\s*k(\w+),", body, re.MULTILINE)
        assert tuple(re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower() for name in found) == names


@needs_native
def test_every_factor_goes_through_every_phase():
    plan = refresh_plan(SIZES.items())
    assert [launch.number for launch in plan] == sorted({launch.number for launch in plan})
    for name in ("gather", "decide", "commit", *PRODUCTS):
        (launch,) = (launch for launch in plan if launch.name == name)
        assert {share.size: share.factors for share in launch.shares} == LARGE
    (small,) = (launch for launch in plan if launch.name == "small")
    assert [share[:2] for share in small.shares] == [(5, 3)]


@needs_native
def test_factorisations_end_where_their_factors_do():
    steps = [x for x in refresh_plan(SIZES.items()) if x.name == "factor_columns" and x.round == 0]
    by_step = [{share.size: share.parts for share in launch.shares} for launch in steps]
    # Tiles of 64 rows below the diagonal one, and one at least; behind the first step's the tiles
    # that are left of the triangle.
    assert by_step == [{33: 1, 64: 1, 100: 1, 130: 2}, {100: 1, 130: 1 + 1}, {130: 1}]


@needs_native
def test_more_factors_than_the_workspace_holds_go_in_rounds():
    plan = refresh_plan([(2560, 12), (64, 1)])
    gathered = [launch.shares for launch in plan if launch.name == "gather"]
    assert [[share[:2] for share in shares] for shares in gathered] == [
        [(2560, 8)], [(2560, 4), (64, 1)],
    ]  # fmt: skip


@needs_native
def test_launches_are_counted_by_dtype():
    stacks = [torch.empty(3, 40, 40), torch.empty(2, 70, 70, dtype=torch.float64)]
    chosen = [torch.empty(3, dtype=torch.int32), torch.empty(2, dtype=torch.int32)]
    single = refresh_plan([(40, 3)], torch.float32), refresh_plan([(70, 2)], torch.float64)
    assert refresh_launches(stacks, chosen) == sum(map(len, single))


@needs_native
def test_what_cannot_be_planned():
    with pytest.raises(RuntimeError, match="element_bytes=2 is neither 4, float32, nor 8, float64"):
        refresh_plan([(40, 3)], torch.bfloat16)


@needs_native
def test_times_are_of_the_plans_launches_and_change_nothing():
    generator = torch.Generator().manual_seed(0)
    factors = [random_factor(d, d, generator).float()[None] for d in SIZES]
    bases = [random_orthogonal(d, generator).float()[None].contiguous() for d in SIZES]
    others = [q.clone() for q in bases]
    given = [torch.zeros(1, dtype=torch.int32)] * len(SIZES), [torch.ones(1) > 0] * len(SIZES), 0.0
    times = refresh_times(factors, bases, *given)
    refresh_by_cholesky(factors, others, *given)
    assert_same_bits(bases, others)
    plan = refresh_plan((d, 1) for d in SIZES)
    assert len(times) > plan[-1].number
    assert all(times[launch.number] > 0 for launch in plan)


@needs_native
def test_costs_by_phase_are_those_of_their_launches():
    factors = [(d, torch.float32) for d, n in SIZES.items() for _ in range(n)]
    plan = refresh_plans(factors)
    assert plan == refresh_plan(SIZES.items())
    phases = costs_of(plan)
    assert Counter(p.phase for p in phases) == Counter({phase_name(launch) for launch in plan})
    assert sum(phase.launches for phase in phases) == len(plan)
    assert sum(p.seconds for p in phases) == pytest.approx(sum(cost(x).seconds for x in plan))
    assert all(phase.seconds >= phase.launches * LAUNCH for phase in phases)


@needs_native
def test_structure_is_told_by_the_plan():
    plan = {launch.name: launch.structure for launch in refresh_plan([(40, 1)])}
    assert {name: plan[name] for name in PRODUCTS} == {
        "times_factor": 0, "rotate": SYMMETRIC, "expand": RIGHT_LOWER, "basis_gram": SYMMETRIC,
        "column_gram": SYMMETRIC | RIGHT_LOWER | LEFT_UPPER,
        "series": SYMMETRIC | SUBTRACT | ROUNDED, "correction": SUBTRACT, "carry": 0,
    }  # fmt: skip
    assert not any(of for name, of in plan.items() if name not in PRODUCTS)


@needs_native
def test_a_factorisation_has_its_flops():
    """d³ / 3 each, d³ of the solve; of products what docs/decisions.md says: 10 and a third."""
    d = 1280
    by_phase = {phase.phase: phase.flops for phase in costs_of(refresh_plan([(d, 1)]))}
    factored = sum(x for name, x in by_phase.items() if name.startswith("factor"))
    assert factored == pytest.approx(2 * d**3 / 3, rel=tolerances.COUNTED_FLOPS)
    assert by_phase["solve"] == d**3
    assert sum(by_phase[name] for name in PRODUCTS) == pytest.approx(
        (10 + 1 / 3) * d**3, rel=tolerances.COUNTED_FLOPS
    )
