"""What a step launches, as recorded; test_recorded.py holds that to the optimizer's own tables."""

from __future__ import annotations

import pytest
import tolerances
from test_recorded import BY_MODEL

from bench import shapes
from bench.cost.refresh import in_rounds

MOST = {"hyperprior": 80, "elic": 80, "lalic": 250}  # launches of a step with a refresh


@pytest.fixture
def measured():
    return {name: BY_MODEL[name] for name in ("hyperprior", "elic", "lalic")}


def test_a_handful_of_launches_for_any_model(measured):
    assert {result["launches_plain"] for result in measured.values()} == {11}


def test_a_refresh_adds_launches_by_sizes_and_not_by_factors(measured):
    """Ours are the same for all, in each round that memory makes, and one at the end; the
    extension's depend on the largest factor and on memory. Public ones have 3700 to 10600 launches
    on a model like ELIC.
    """
    for name, result in measured.items():
        rounds = len(in_rounds(shapes.load(name)))
        assert rounds == (2 if name == "lalic" else 1)
        assert result["launches_refresh_by"]["triton"] == 6 * rounds + 1  # derive is of all
        assert result["launches_refresh"] <= MOST[name]


def test_little_is_computed_or_moved_twice(measured):
    for result in measured.values():
        assert result["padding"] <= 0.10
        assert result["bytes_ratio"] <= 2.8
        assert result["workspace_ratio"] <= 2.001


def test_flops_are_those_of_the_mathematics(measured):
    """Rotations there and back, 4 n sum(d), and the triangles of Gram matrices, mode by mode."""
    inventory = shapes.load("hyperprior")
    from soap_fast.options import PlanOptions
    from soap_fast.step.plan import plan_tensor

    options = PlanOptions(10000, False, False, "channels_first")
    expected = 0
    for entry in inventory.entries:
        plan = plan_tensor(entry.shape, options)
        numel = 1
        for size in entry.shape:
            numel *= size
        widths = [
            plan.modes[mode] for group in plan.groups if group.rotated for mode in group.modes
        ]
        expected += sum(4 * numel * d + numel * (d + 1) for d in widths)
    assert measured["hyperprior"]["flops"] == pytest.approx(expected, rel=tolerances.FLOPS)
