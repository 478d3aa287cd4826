"""What a refresh on CUDA consists of, by the operator's own planning code, and its cost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tolerances
import torch
from streams import needs_native

from soap_fast.inspect.refresh_cost import (
    PANEL,
    TILE,
    cost,
    costs_of,
    products,
)
from soap_fast.step.grouped_matmul import SUBTRACT, grouped_matmul_eager
from soap_fast.step.refresh import refresh_by_cholesky, refresh_launches
from soap_fast.step.refresh_plan import (
    PANEL_PRODUCTS,
    PHASES,
    PRODUCTS,
    PlannedLaunch,
    Share,
    refresh_plan,
)

PHASES_OF_CSRC = Path(__file__).parent.parent / "csrc" / "refresh" / "phases"
SIZES = {5: 3, 33: 2, 64: 1, 100: 2, 130: 1}
LARGE = {d: n for d, n in SIZES.items() if d > 32}


def test_names_are_those_of_the_source():
    """`kFactorColumns` is `factor_columns`."""
    for file, kind, names in (
        ("sequence.h", "Phase", PHASES),
        ("sequence.h", "Product", PRODUCTS),
        ("panels.h", "PanelProduct", PANEL_PRODUCTS),
    ):
        text = (PHASES_OF_CSRC / file).read_text()
        body = re.search(rf"enum class {kind} \{{(.*?)\}};", text, re.DOTALL)[1]
        found = re.findall(r"^\s*k(\w+),", body, re.MULTILINE)
        assert tuple(re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower() for name in found) == names


@needs_native
def test_every_factor_goes_through_every_phase():
    plan = refresh_plan(SIZES.items())
    numbers = [launch.number for launch in plan if not launch.goes_on]
    assert numbers == sorted({launch.number for launch in plan})
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


# Around a panel's width, and several of them.
WIDE = {PANEL * TILE: 2, PANEL * TILE + 1: 1, 3 * PANEL * TILE - 5: 3, 64: 1}


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_panels_cover_each_factor_once(dtype):
    """Behind the first panel, products make every entry from every column of panels before it."""
    plan = [launch for launch in refresh_plan(WIDE.items(), dtype) if launch.panel]
    assert {(launch.name, launch.round) for launch in plan} == {
        ("update_panel", 0), ("update_panel", 1), ("solve_panel", 0),
    }  # fmt: skip
    assert all(launch.shares and launch.structure == SUBTRACT for launch in plan)
    for d, factors in WIDE.items():
        for name, of in {(launch.name, launch.round) for launch in plan}:
            mine = [
                launch for launch in plan
                if (launch.name, launch.round) == (name, of)
                and any(share == (d, factors, 0) for share in launch.shares)
            ]  # fmt: skip
            panels = range(PANEL * TILE, d, PANEL * TILE)
            assert [launch.shape(d) for launch in mine] == [
                (d if name == "solve_panel" else d - first, min(PANEL * TILE, d - first), first)
                for first in panels
            ]


@needs_native
def test_panels_are_the_only_products_of_a_part():
    plan = refresh_plan(WIDE.items())
    assert {launch.name for launch in plan if launch.panel} == set(PANEL_PRODUCTS)
    assert all(x.shape(100) == (100, 100, 100) for x in plan if x.name in PRODUCTS)


@needs_native
def test_steps_update_their_own_panel_alone():
    d = 2 * PANEL * TILE
    parts = [x.shares[0].parts for x in refresh_plan([(d, 1)]) if x.name == "factor_columns"]
    tiles, expected = 2 * PANEL, []
    for step in range(tiles):
        below, within = tiles - step - 1, step % PANEL
        behind = range(min(below, PANEL - 1 - within) if within else 0)
        expected.append(max(1, below) + sum(below - column for column in behind))
    assert parts == 2 * expected


@needs_native
def test_steps_of_a_panel_are_one_launch():
    steps = [x for x in refresh_plan(WIDE.items()) if x.name == "factor_columns"]
    assert all(step.goes_on == (step.step % PANEL > 0) for step in steps)
    assert [cost(step).launches for step in steps] == [0 if x.goes_on else 1 for x in steps]
    assert len({step.number for step in steps}) == 2 * 3  # of each factorisation


@needs_native
def test_the_solve_goes_by_panels():
    d = 2 * PANEL * TILE + 1
    steps = [x for x in refresh_plan([(d, 1), (64, 2)]) if x.name == "solve"]
    assert [x.step for x in steps] == [0, PANEL, 2 * PANEL]
    tiles = 2 * PANEL + 1
    shares = [(d, 1, tiles), (64, 2, 1)]
    assert [x.shares for x in steps] == [shares, shares[:1], shares[:1]]


def test_a_product_takes_as_long_as_its_longest_tile():
    lone = [
        products(PlannedLaunch(0, "expand", 0, 0, 0, [Share(d, n, 0)]))
        for d, n in ((64, 1), (64, 100), (640, 1))
    ]
    assert lone[0] == lone[1] < lone[2]


def test_rows_that_are_no_quads_are_in_one_launch_with_the_others():
    """In workspace they are."""
    counted = [
        cost(PlannedLaunch(0, "expand", 0, 0, 0, [Share(d, 1, 0) for d in sizes])).launches
        for sizes in ((64, 100), (65, 99), (64, 65, 66))
    ]
    assert counted == [1, 1, 1]


@needs_native
def test_products_are_of_whole_quads():
    """Of the refresh itself, its sizes multiples of 4 or not: what the kernel of products needs."""
    sizes, seen = (33, 34, 35, 36, 70, 2 * PANEL * TILE - 3), []

    def multiply(a, b, products, structure=0):
        grouped_matmul_eager(a, b, products, structure)
        for x in (*a, *(x.mT for x in b), *products):
            steps = (x.shape[2], x.stride(0), x.stride(1), x.data_ptr() // x.element_size())
            seen.append((x.stride(2), *(step % 4 for step in steps)))

    stacks = [torch.eye(d)[None].contiguous() for d in sizes]
    library = torch.library.Library("soap_fast", "IMPL")
    library.impl("grouped_matmul_", multiply, "CPU")
    try:
        one = torch.zeros(1, dtype=torch.int32)
        few = [[x.clone() for x in stacks], [one] * len(sizes), [one == 0] * len(sizes)]
        refresh_by_cholesky(stacks, *few, 0.0)
    finally:
        library._destroy()
    assert set(seen) == {(1, 0, 0, 0, 0)}


@needs_native
def test_more_factors_than_the_workspace_holds_go_in_rounds():
    plan = refresh_plan([(2560, 12), (64, 1)])
    gathered = [launch.shares for launch in plan if launch.name == "gather"]
    assert [[share[:2] for share in shares] for shares in gathered] == [
        [(2560, 10)], [(2560, 2), (64, 1)],
    ]  # fmt: skip


@needs_native
def test_launches_are_counted_by_dtype():
    stacks = [torch.empty(3, 40, 40), torch.empty(2, 70, 70, dtype=torch.float64)]
    chosen = [torch.empty(3, dtype=torch.int32), torch.empty(2, dtype=torch.int32)]
    single = refresh_plan([(40, 3)], torch.float32), refresh_plan([(70, 2)], torch.float64)
    counted = [sum(not launch.goes_on for launch in plan) for plan in single]
    assert refresh_launches(stacks, chosen) == sum(counted)


@needs_native
def test_a_factorisation_has_its_flops():
    """d³ / 3 each, d³ of the solve; of products what docs/decisions.md says: 10 and a third.

    Most of them as products: all but what a panel has of its own.
    """
    d = 1280
    by_phase = {phase.phase: phase.flops for phase in costs_of(refresh_plan([(d, 1)]))}
    by_tiles = sum(x for name, x in by_phase.items() if name.startswith("factor"))
    by_products = sum(x for name, x in by_phase.items() if name.startswith("update_panel"))
    assert by_tiles + by_products == pytest.approx(2 * d**3 / 3, rel=tolerances.COUNTED_FLOPS)
    assert by_phase["solve"] + by_phase["solve_panel"] == d**3
    width = PANEL * TILE
    assert by_tiles < d**2 * width
    assert by_phase["solve"] <= d**2 * width
    assert sum(by_phase[name] for name in PRODUCTS) == pytest.approx(
        (10 + 1 / 3) * d**3, rel=tolerances.COUNTED_FLOPS
    )
