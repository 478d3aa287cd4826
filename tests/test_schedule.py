"""Staggered refreshes: every factor every f calls, no step much dearer than others, for good."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from streams import backends, needs_native, parameters, set_gradients, through_a_file, train

from bench import shapes
from soap_fast import SOAP
from soap_fast.inspect.refresh_cost import costs_of, refresh_plans
from soap_fast.options import PlanOptions, step_options
from soap_fast.step.call import TensorCall
from soap_fast.step.phases import assign_phases
from soap_fast.step.plan import plan_tensor

FREQUENCY = 10
RECORDED = Path(__file__).parent.parent / "bench" / "results" / "launches" / "recorded.json"
FLOORS = {  # of a plain step on an H100, seconds
    row["model"]: 1e-3 * row["floor_ms"] for row in json.loads(RECORDED.read_text())["results"]
}
PLAN = PlanOptions(10000, False, False, "channels_first")
DEFAULTS = {**SOAP(parameters()).defaults, "refresh_schedule": "staggered"}


def begun(shape, calls=1, frequency=FREQUENCY) -> TensorCall:
    plan = plan_tensor(tuple(shape), PLAN)
    factors = [None if d is None else torch.empty(d, d, device="meta") for d in plan.factors]
    state = {"calls": calls, "GG": factors}
    options = step_options({**DEFAULTS, "precondition_frequency": frequency})
    return TensorCall(torch.empty(0), torch.empty(0), state, plan, options)


def costs_per_step(calls: list[TensorCall]) -> list[int]:
    """Sum of d³ over the factors due at each of f steps."""
    costs = []
    for _ in range(FREQUENCY):
        for call in calls:
            call.state["calls"] += 1
        costs.append(sum(c.plan.factors[m] ** 3 for c in calls for m in c.modes_due()))
    return costs


@pytest.mark.parametrize("model", ["elic", "tcm_128", "lalic", "dcae", "hyperprior"])
def test_cost_is_balanced_over_the_steps(model):
    calls = [begun(entry.shape) for entry in shapes.load(model).entries]
    assign_phases(calls, [])
    costs = costs_per_step(calls)
    largest = max(d**3 for call in calls for d in call.plan.factors if d)
    share = sum(costs) / FREQUENCY
    # No step is dearer than its share by more than the largest thing that cannot be divided.
    tensors = [sum(d**3 for d in c.plan.factors if d and d**3 <= share) for c in calls]
    assert max(costs) <= max(largest, share + max(tensors))
    assert costs_per_step(calls) == costs, "every f calls"


@needs_native
@pytest.mark.parametrize("frequency", [5, 10, 20, 50])
@pytest.mark.parametrize("model", ["elic", "tcm_128", "lalic", "dcae"])
def test_no_step_on_a_gpu_is_much_slower_than_the_mean(model, frequency):
    """By the model of a refresh's time, with the floor of a plain step; or slower than the largest
    factor alone makes it.
    """
    calls = [begun(entry.shape, frequency=frequency) for entry in shapes.load(model).entries]
    assign_phases(calls, [])
    plain, times = FLOORS[model], []
    for _ in range(frequency):
        for call in calls:
            call.state["calls"] += 1
        times.append(plain + seconds(c.plan.factors[m] for c in calls for m in c.modes_due()))
    largest = max(d for call in calls for d in call.plan.factors if d)
    assert max(times) <= max(1.5 * sum(times) / frequency, plain + seconds([largest]))


def seconds(sizes) -> float:
    """Of a refresh of such factors on CUDA."""
    plans = refresh_plans((size, torch.float32) for size in sizes)
    return sum(phase.seconds for phase in costs_of(plans))


def test_every_factor_has_its_turn_once_in_f_calls():
    calls = [begun(shape) for shape in ((64, 64), (64, 3, 5, 5), (7,), (1, 9), (300, 4))]
    assign_phases(calls, [])
    turns = {}
    for step in range(FREQUENCY):
        for index, call in enumerate(calls):
            call.state["calls"] += 1
            for mode in call.modes_due():
                turns.setdefault((index, mode), []).append(step)
    expected = {(i, m) for i, c in enumerate(calls) for m, d in enumerate(c.plan.factors) if d}
    assert set(turns) == expected
    assert all(len(steps) == 1 for steps in turns.values())
    # 300 alone exceeds a step's share; all factors of the others go together.
    assert turns[4, 0] != turns[4, 1]
    assert len({tuple(turns[1, mode]) for mode in range(4)}) == 1


def test_phases_do_not_depend_on_chance():
    given = []
    for _ in range(2):
        calls = [begun(entry.shape) for entry in shapes.load("elic").entries]
        assign_phases(calls, [])
        given.append([call.state["phases"] for call in calls])
    assert given[0] == given[1]


def test_tensors_that_come_later_move_nobody_and_fill_the_cheap_steps():
    early = [begun((40, 40), calls=7) for _ in range(12)]  # as if they had begun six calls before
    assign_phases(early, [])
    before = copy.deepcopy([call.state["phases"] for call in early])
    late = [begun((40, 40)) for _ in range(8)]
    assign_phases(late, [call.state for call in early])
    assert [call.state["phases"] for call in early] == before
    assert costs_per_step(early + late) == [2 * 2 * 40**3] * FREQUENCY


@pytest.mark.parametrize("backend", backends())
def test_a_staggered_run(backend):
    """First refresh at the phase, later ones every f calls; saved, resumed, and trains."""
    params = parameters(((8, 8), (6, 4, 3, 3), (5,), (12, 3)))
    options = {"precondition_frequency": 4, "refresh_schedule": "staggered", "backend": backend}
    optimizer = SOAP(params, **options)
    changed = {}
    for call in range(1, 15):
        before = copy.deepcopy([optimizer.state[p].get("Q") if call > 1 else None for p in params])
        set_gradients(params, call)
        optimizer.step()
        for i, param in enumerate(params):
            for mode, q in enumerate(optimizer.state[param]["Q"]):
                if call > 1 and q is not None and not torch.equal(q, before[i][mode]):
                    changed.setdefault((i, mode), []).append(call - 1)
    for (i, mode), calls in changed.items():
        phase = optimizer.state[params[i]]["phases"][mode]
        assert calls == [n for n in range(1, 14) if n >= phase and (n - phase) % 4 == 0]
    assert len(changed) == 2 + 4 + 2
    assert len({calls[0] for calls in changed.values()}) > 1

    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    train(optimizer, params, range(15, 22))
    train(other, resumed, range(15, 22))
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)


def test_switching_to_staggered_and_back():
    params = parameters(((8, 8), (6, 6)))
    optimizer = SOAP(params, precondition_frequency=3)
    train(optimizer, params, range(4))
    optimizer.param_groups[0]["refresh_schedule"] = "staggered"
    train(optimizer, params, range(4, 8))
    phases = [optimizer.state[p]["phases"] for p in params]
    assert phases[0] != phases[1]
    optimizer.param_groups[0]["refresh_schedule"] = "periodic"
    train(optimizer, params, range(8, 12))
    assert all(p.isfinite().all() for p in params)


def test_a_damaged_phase_is_refused():
    params = parameters(((8, 8),))
    optimizer = SOAP(params, refresh_schedule="staggered")
    train(optimizer, params, range(3))
    saved = optimizer.state_dict()
    saved["state"][0]["phases"] = [0, None]
    with pytest.raises(ValueError, match=r"phases=\[0, None\]"):
        SOAP(parameters(((8, 8),))).load_state_dict(saved)
