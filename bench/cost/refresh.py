"""What a refreshing call does beyond a plain step, phase by phase: launches, flops, predicted time.

The operator's phases are told by its own plan and timed by the model of
`soap_fast/inspect/refresh_cost.py`. The launches that carry moments over and derive operands are
walked as those of a step are (`docs/cost.md`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from bench.command import Row, progress
from bench.cost.case import walked
from bench.cost.launches import case
from bench.cost.time import SM, seconds
from bench.costs import PLAN
from bench.recorded import Recorded, record
from bench.shapes import Inventory
from soap_fast.backends.triton.address_slots import AddressSlots
from soap_fast.backends.triton.carry import plan_carry, slots_of
from soap_fast.backends.triton.programs import Planned
from soap_fast.inspect.refresh_cost import costs_of, phase_name, refresh_plans
from soap_fast.step.plan import plan_tensor
from soap_fast.step.refresh_plan import PlannedLaunch

PRECISION = "tf32x3"


def plan_of(inventory: Inventory) -> list[PlannedLaunch]:
    """The operator's launches for all factors of a model."""
    plans = (plan_tensor(entry.shape, PLAN) for entry in inventory.entries)
    return refresh_plans((size, torch.float32) for plan in plans for size in plan.factors if size)


def rows(inventory: Inventory) -> list[Row]:
    """A row for each phase of the operator and each launch of the carry, and one of all."""
    operator = [
        _row(one.phase, one.launches, one.flops, one.seconds)
        for one in costs_of(plan_of(inventory))
    ]
    return [*operator, *_carry(record(inventory, precision=PRECISION))]


def with_times(
    rows: Sequence[Row], plan: Sequence[PlannedLaunch], operator: Sequence[float],
    carry: Sequence[float],
) -> list[Row]:  # fmt: skip
    """Rows with what a GPU took.

    Args:
        operator: microseconds of each launch, by its number in the plan.
        carry: of each launch after the operator.
    """
    taken: dict[str, float] = {}
    for launch in plan:
        if launch.goes_on:
            continue
        phase = phase_name(launch)
        taken[phase] = taken.get(phase, 0.0) + operator[launch.number]
    later = iter(carry)
    return [{**row, "us": taken.get(row["phase"]) or next(later)} for row in rows]


def total(rows: Sequence[Row]) -> Row:
    """Of all that a refreshing call does beyond a plain step."""
    taken = [row["us"] for row in rows]
    predicted = sum(row["predicted_us"] for row in rows)
    return {
        "phase": "all",
        "launches": sum(row["launches"] for row in rows),
        "gflop": sum(row["gflop"] for row in rows),
        "predicted_us": predicted,
        "predicted_ms": 1e-3 * predicted,
        "us": None if None in taken else sum(taken),
    }


def _row(phase: str, launches: int, flops: float, taken: float) -> Row:
    return {
        "phase": phase,
        "launches": launches,
        "gflop": 1e-9 * flops,
        "predicted_us": 1e6 * taken,
        "us": None,
    }


def _carry(recorded: Recorded) -> Iterator[Row]:
    """The launches that follow the operator."""
    plain = recorded.step()
    recorded.refreshing_step()
    launched = recorded.launcher.launched[plain:]
    planned = [one for one in _planned(recorded) if one.count]
    pairs = list(zip(launched, planned, strict=True))
    for launch, one in progress(pairs, "carry", "launch"):
        assert launch.op == one.op
        made = case(one.name, launch, one.work, SM)
        taken = seconds(made, walked(made), PRECISION)
        yield _row(one.name, 1, one.work.needed, taken)


def _planned(recorded: Recorded) -> list[Planned]:
    """Those launches as they were planned, which tells what they move and compute."""
    refresher = recorded.engine.refresher
    (found,) = refresher.sets.values()
    slots, due = AddressSlots(), dict[int, dict[int, list[int]]]()
    for number, batch in enumerate(found.batches):
        d = batch.K.shape[1]
        for position, (index, mode) in enumerate(batch.owners):
            values = slots_of(slots, number, len(found.batches), position, d)
            due.setdefault(index, {})[mode] = values
    return plan_carry(refresher.context, due, slots).launches
