"""What a refreshing call does beyond a plain step, phase by phase: launches, flops, predicted time.

The operator's phases are told by its own plan and timed by the model of
`soap_fast/inspect/refresh_cost.py`. The launches that carry moments over and derive operands are
walked as those of a step are (`docs/cost.md`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bench.command import Row, progress
from bench.cost.case import walked
from bench.cost.launches import case
from bench.cost.time import SM, seconds
from bench.costs import PLAN
from bench.recorded import Recorded, record
from bench.shapes import Entry, Inventory
from soap_fast.backends.triton.address_slots import AddressSlots
from soap_fast.backends.triton.carry import plan_carry, slots_of
from soap_fast.backends.triton.engine import Engine
from soap_fast.backends.triton.launch.launcher import Launch
from soap_fast.backends.triton.memory import planes_of
from soap_fast.backends.triton.ops.derive import derived_elements
from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.programs import Planned
from soap_fast.backends.triton.refresh import DERIVE, DueSet
from soap_fast.backends.triton.rounds import WORKSPACE, rounds_of, workspace_within
from soap_fast.inspect.refresh_cost import costs_of, phase_name
from soap_fast.step.layout import layout_of
from soap_fast.step.plan import plan_tensor
from soap_fast.step.refresh_plan import PlannedLaunch, refresh_plan

PRECISION = "tf32x3"
SUMMED = ("launches", "gflop", "predicted_us", "us")


def in_rounds(inventory: Inventory, workspace: int = WORKSPACE) -> list[Inventory]:
    """The tensors that are refreshed together, round by round."""
    entries = inventory.entries
    sizes = {number: _sizes(entry) for number, entry in enumerate(entries) if _sizes(entry)}
    return [
        Inventory(inventory.model, tuple(entries[number] for number in found))
        for found in rounds_of(sizes, workspace)
    ]


def lent_to(inventory: Inventory, each: Inventory) -> int:
    """Bytes of workspace that a step of a model lends to the operator for one of its rounds."""
    layouts = [layout_of(plan_tensor(entry.shape, PLAN)) for entry in inventory.entries]
    there = planes_of(layouts).elements + sum(map(derived_elements, layouts))
    return workspace_within([d for entry in each.entries for d in _sizes(entry)], FLOAT * there)


def plan_of(inventory: Inventory, workspace: int = WORKSPACE) -> list[PlannedLaunch]:
    """The operator's launches for all factors of a model, numbered through all rounds."""
    launches: list[PlannedLaunch] = []
    for each in in_rounds(inventory, workspace):
        stacks = Counter(d for entry in each.entries for d in _sizes(entry))
        plan = refresh_plan(stacks.items(), lent=lent_to(inventory, each))
        start = launches[-1].number + 1 if launches else 0
        launches += (launch._replace(number=start + launch.number) for launch in plan)
    return launches


def _sizes(entry: Entry) -> list[int]:
    return [size for size in plan_tensor(entry.shape, PLAN).factors if size]


def rows(inventory: Inventory) -> list[Row]:
    """A row for each phase of the operator, and one for each launch of the carry, in order."""
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


def together(rows: Sequence[Row]) -> list[Row]:
    """One row a phase, in the order in which they first come."""
    found: dict[str, Row] = {}
    for row in rows:
        same = found.setdefault(row["phase"], {**row, **dict.fromkeys(SUMMED, 0)})
        for name in SUMMED:
            same[name] = None if row[name] is None else same[name] + row[name]
    return list(found.values())


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
    """The launches that follow the operator, round by round."""
    for launch, one in progress(carry_of(recorded), "carry", "launch"):
        made = case(one.name, launch, one.work, SM)
        taken = seconds(made, walked(made), PRECISION)
        yield _row(one.name, 1, one.work.needed, taken)


def carry_of(recorded: Recorded) -> list[tuple[Launch, Planned]]:
    """Those launches, and how they were planned, which tells what they move and compute."""
    plain = recorded.step()
    recorded.refreshing_step()
    launched = recorded.launcher.launched[plain:]
    engine = recorded.engine
    sets = engine.refresher.sets.values()
    planned = [one for found in sets for one in _planned(engine, found) if one.name != DERIVE]
    planned.append(Planned(DERIVE, DERIVE, DERIVE, engine.works[DERIVE]))  # of all, at the end
    pairs = list(zip(launched, (one for one in planned if one.count), strict=True))
    assert all(launch.op == one.op for launch, one in pairs)
    return pairs


def _planned(engine: Engine, found: DueSet) -> list[Planned]:
    places = [engine.places[id(call.param)] for call in found.calls]
    slots, due = AddressSlots(), {place: dict[int, list[int]]() for place in places}
    for number, batch in enumerate(found.batches):
        d = batch.K.shape[1]
        for position, (index, mode) in enumerate(batch.owners):
            values = slots_of(slots, number, len(found.batches), position, d)
            due[places[index]][mode] = values
    return plan_carry(engine.refresher.context, due, slots).launches
