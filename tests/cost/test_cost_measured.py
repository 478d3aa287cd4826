"""The model of cost against what an H100 has counted and timed, on the kernels of that day."""

from __future__ import annotations

from functools import cache

import pytest
import tolerances
from cost_data import load, measured

from bench.cost.case import Case, Walked, walked
from bench.cost.time import seconds

MEASURED = measured()
LONG = 500  # us; shorter launches are mostly latency and the launch itself
COUNTERS = MEASURED["counters"]
# Launches that write less than this differ by the counter's own noise of some hundred sectors.
FEW = 10_000


@cache
def walks(model: str) -> dict[str, tuple[Case, Walked]]:
    return {case.name: (case, walked(case)) for case in load(model)}


@pytest.mark.parametrize("name", COUNTERS)
def test_instructions_are_those_that_were_executed(name):
    """Predicted before they were counted: no constant is fitted to them."""
    _, walk = walks("elic")[name]
    counted = COUNTERS[name]["executed_instructions"]
    assert walk.instructions == pytest.approx(counted, rel=tolerances.INSTRUCTIONS)


@pytest.mark.parametrize("name", [n for n, c in COUNTERS.items() if c["sectors_written"] > FEW])
def test_sectors_are_those_that_were_written(name):
    _, walk = walks("elic")[name]
    counted = COUNTERS[name]["sectors_written"]
    assert walk.sectors["store"] == pytest.approx(counted, rel=tolerances.SECTORS)


@pytest.mark.parametrize("model", tolerances.LAUNCH_TIME)
def test_long_launches_take_the_time_that_was_measured(model):
    """Constants are fitted on elic; dcae is what they are checked on."""
    times, long = MEASURED["us"][model], 0
    for name, (case, walk) in walks(model).items():
        if times[name] > LONG:
            predicted = 1e6 * seconds(case, walk, "tf32x3")
            assert predicted == pytest.approx(times[name], rel=tolerances.LAUNCH_TIME[model]), name
            long += 1
    assert long == 7


@pytest.mark.parametrize("model", tolerances.STEP_TIME)
def test_a_step_takes_the_time_that_was_measured(model):
    found = walks(model)
    predicted = sum(1e6 * seconds(case, walk, "tf32x3") for case, walk in found.values())
    expected = sum(MEASURED["us"][model][name] for name in found)
    assert predicted == pytest.approx(expected, rel=tolerances.STEP_TIME[model])
