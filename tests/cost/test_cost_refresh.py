"""The model of a refresh's time against what an H100 took, on the operator of that day.

tests/data/cost/refresh_plans.json.xz has the launches of that operator: phase, round, step, and
size, number of factors and parts of each stack. They differ from today's in what this file says.
"""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from math import ceil, hypot
from pathlib import Path

import pytest
import tolerances
from streams import needs_native

from bench.cost.refresh import carry_of, in_rounds, plan_of, together, total, with_times
from bench.recorded import record
from bench.shapes import load
from soap_fast.inspect import refresh_cost
from soap_fast.inspect.refresh_cost import CLOCK, LAUNCH, PROGRAMS, costs_of
from soap_fast.step.refresh_plan import PlannedLaunch, Share

ROOT = Path(__file__).parent.parent.parent
PLANS = Path(__file__).parent.parent / "data" / "cost" / "refresh_plans.json.xz"
# Launches that `python -m bench launches` counted, without one per round that came later.
COUNTED = {"elic": 125, "dcae": 765, "lalic": 843}


# A phase of other needs than today's of that name: three blocks of it shared a multiprocessor.
RENAMED = {"solve": "substitute"}


def plan(model: str) -> list[PlannedLaunch]:
    rows = json.loads(lzma.decompress(PLANS.read_bytes()))[model]
    return [
        PlannedLaunch(number, RENAMED.get(name, name), of, step, 0, [Share(*s) for s in shares])
        for number, (name, of, step, shares) in enumerate(rows)
    ]


# Of that operator's machine code, and of the scale that is fitted: cycles of a block.
SLOWER = 1.6  # its products took so much longer than the model says
COLUMN = 2400.0  # of a factorisation: three barriers, a root, divisions in every update
COMPARISON = 60.0  # of two eigenvalues in memory, in float64
STAGE = 3600.0  # of a tile's product: 16 columns, element by element, and no fetch ahead


def panel(share: Share, step: int) -> list[tuple[float, int]]:
    """Column by column, then every row below the diagonal tile by one thread."""
    width = min(64, share.size - step * 64)
    is_last = (step + 1) * 64 >= share.size
    solved = 0 if is_last else width**2 / 2
    return [(COLUMN * width + refresh_cost.SUBSTITUTION * solved, share.parts)]


def solve(d: int) -> float:
    """A tile of rows from its first column to its last, of each tile a row by one thread."""
    tiles = ceil(d / 64)
    stages = tiles * (tiles - 1) / 2 * 4
    return stages * STAGE + tiles * refresh_cost.SUBSTITUTION * 64**2 / 2


TEAMS = {
    "small": refresh_cost.TEAMS["small"],
    "decide": refresh_cost.alike(lambda d: ceil(d / 256) * d * COMPARISON),
    "normalise": refresh_cost.alike(lambda d: d / 4 * 2 * refresh_cost.PASS),
    "factor_panel": panel,
    "update_trailing": refresh_cost.alike(lambda d: 4 * STAGE),
    "substitute": refresh_cost.alike(solve),
}


def by_cublas(launch: PlannedLaunch) -> float:
    """A batched product of each size, 37 TFLOP/s: 37 to 40 were measured with 192 and 320 terms."""
    flops = sum(2 * share.factors * share.size**3 for share in launch.shares)
    return flops / 37e12 + LAUNCH * (len(launch.shares) - 1)


def by_triton(launch: PlannedLaunch) -> float:
    """The kernel of that day, whose stores took a sector for each element.

    Cycles are those of `bench/cost/` for tiles of 64 x 64 and of 32 x 32, sectors those of the L2
    (`bench.cost.constants.PARTIAL_SECTORS`).
    """
    cycles = sectors = 0.0
    for d, factors, _ in launch.shares:
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
def test_the_operator_takes_what_was_measured(monkeypatch, model, products, measured):
    """The scale of the cycles is fitted on the first, SLOWER on the others."""
    monkeypatch.setitem(refresh_cost.MOVED, "add_correction", 3)
    predicted = 1e3 * sum(phase.seconds for phase in costs_of(plan(model), products, TEAMS))
    assert predicted == pytest.approx(measured, rel=tolerances.REFRESH_TIME)


@pytest.mark.parametrize("model", COUNTED)
def test_launches_are_those_that_were_counted(model):
    assert len(plan(model)) == COUNTED[model]


def small_model(tmp_path: Path) -> Path:
    file = tmp_path / "small.json"
    params = [{"name": name, "shape": shape} for name, shape in SHAPES.items()]
    file.write_text(json.dumps({"model": "small", "params": params}))
    return file


SHAPES = {"conv": [48, 40, 3, 3], "linear": [100, 36], "bias": [48]}


@needs_native
def test_a_row_for_each_phase_and_one_of_all(tmp_path):
    """Of the operator and of what follows it, without a GPU; `us` is what one would have taken."""
    command = [sys.executable, "-m", "bench", "refresh", "--phases", "--device", "cpu"]
    command += ["--shapes", str(small_model(tmp_path)), "--json", "-"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *each, whole = json.loads(done.stdout)["results"]
    phases = [row["phase"] for row in each]
    assert len(set(phases)) == len(phases)
    assert {"small", "factor_columns", "times_factor", "carry", "derive carries"} <= set(phases)
    assert phases[-1] == "derive"
    assert all(row["us"] is None and row["predicted_us"] > 0 for row in each)
    assert whole["phase"] == "all"
    for name in ("launches", "gflop", "predicted_us"):
        assert whole[name] == pytest.approx(sum(row[name] for row in each))
    assert whole["predicted_ms"] == pytest.approx(1e-3 * whole["predicted_us"])


@needs_native
def test_a_model_in_rounds_has_the_launches_of_each():
    """Numbers of the operator's go through all rounds; carries are planned as they are launched."""
    inventory = load("hyperprior")
    whole, most = plan_of(inventory), 4 * 4 * 2 * 400**2
    rounds, plan = in_rounds(inventory, most), plan_of(inventory, most)
    assert len(rounds) > 1
    names = sorted(entry.name for each in rounds for entry in each.entries)
    assert names == sorted({entry.name for each in in_rounds(inventory) for entry in each.entries})
    assert [x.number for x in plan] == sorted(x.number for x in plan)
    assert len({x.number for x in plan}) == sum(not x.goes_on for x in plan) > len(whole) // 2
    factors = [
        sum(share.factors for launch in of if launch.name in ("small", "gather")
            for share in launch.shares) for of in (whole, plan)
    ]  # fmt: skip
    assert factors[0] == factors[1]
    recorded = record(inventory)
    recorded.backend.refresh_workspace = most
    recorded.backend.forget()
    recorded.step()
    carried = [planned.name for _, planned in carry_of(recorded)]
    assert carried.count("count") == len(rounds)


@needs_native
@pytest.mark.parametrize("model", ["hyperprior", "tcm_128", "lalic"])
def test_the_plan_is_that_of_a_step(model):
    """Its workspace lent as by a step: of TCM's the operator has two rounds in place of one."""
    inventory = load(model)
    launched = record(inventory).refresh()["extension"]
    assert sum(launch.kernels for launch in plan_of(inventory)) == launched


def test_rows_of_rounds_are_put_together():
    one = {"launches": 1, "gflop": 0.5, "predicted_us": 2.0, "us": None}
    rows = [{"phase": name, **one} for name in ("small", "count", "derive", "count", "derive")]
    for us, expected in ((None, None), (3.0, 6.0)):
        found = together([{**row, "us": us} for row in rows])
        assert [row["phase"] for row in found] == ["small", "count", "derive"]
        assert found[0] == {**rows[0], "us": us}
        twice = {"launches": 2, "gflop": 1.0, "predicted_us": 4.0, "us": expected}
        assert found[1] == {"phase": "count", **twice}


def test_times_of_a_gpu_join_the_rows_of_their_phases():
    rows = [{"phase": name, "us": None} for name in ("decide", "factor_columns", "count", "derive")]
    shares = [Share(40, 2, 1)]
    launches = [
        PlannedLaunch(number, name, 0, 0, 0, shares)
        for number, name in ((0, "decide"), (2, "factor_columns"), (3, "factor_columns"))
    ]
    found = with_times(rows, launches, [5.0, 0.1, 7.0, 8.0], [2.0, 3.0])
    assert [row["us"] for row in found] == [5.0, 15.0, 2.0, 3.0]
    more = {"launches": 1, "gflop": 0.0, "predicted_us": 1.0}
    assert total([{**row, **more} for row in found])["us"] == 25.0
