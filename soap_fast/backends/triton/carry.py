"""How moments are carried over to new bases: the launches of `CARRY` for the tensors of a refresh.

Tables and tiles, nothing on a device yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soap_fast.backends.triton.address_slots import AddressSlots, PatchableTable
from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.memory import Memory
from soap_fast.backends.triton.ops.count import count_rows, mode_rows
from soap_fast.backends.triton.ops.derive import Operand, derive_work
from soap_fast.backends.triton.ops.gather import gather_work
from soap_fast.backends.triton.ops.permute import permute_work
from soap_fast.backends.triton.ops.settle import carrying_work, is_gathered, settle_work
from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.ops.work import Member, Work
from soap_fast.backends.triton.programs import CARRY, Planned, in_order
from soap_fast.step.refresh import LEFT_OUT, REFRESHED
from soap_fast.triton_kernels.columns import (
    COUNT,
    COUNT_MODE,
    DERIVE,
    PERMUTE,
    PERMUTE_AXIS,
    PLANE,
)

ORDERS, CARRIES, OUTCOMES, SHARES = range(4)  # results of each batch, as in `Refreshed`
LONG = 8  # bytes

# Tables that hold addresses of results: rows of `count`'s modes, of `permute`'s axes, and the tasks
# of `derive` for carrying matrices.
MODES, AXES, DERIVED = range(3)
LATE_COLUMNS = (len(COUNT_MODE), len(PERMUTE_AXIS), len(DERIVE))

# Columns of the tasks that tiles name.
TASKS = {
    "derive": DERIVE,
    "permute": PERMUTE,
    "gather": PLANE,
}

Results = Mapping[int, Mapping[int, list[int]]]  # by place of a tensor and mode: its address slots


@dataclass(frozen=True)
class CarryPlan:
    """The launches of one set of tensors, and the tables that wait for addresses of results."""

    launches: list[Planned]
    late: tuple[PatchableTable, PatchableTable, PatchableTable]  # MODES, AXES, DERIVED


@dataclass(frozen=True)
class RefreshContext:
    """What launches of a refresh read besides tables of their own.

    Attributes:
        states: of all tensors of the engine.
        squares: scratch of `gather`.
        step_tables: tensors, options and directions, which `rotate` takes and does not need here.
        precision: of products.
        workspace: bytes of the operator's for tensors that are refreshed together, at most.
        by_free: whether it is less where less is free; ranks that share must have the same rounds.
    """

    states: Sequence[dict[str, Any]]
    memory: Memory
    squares: torch.Tensor
    step_tables: tuple[torch.Tensor, ...]
    precision: str
    workspace: int
    by_free: bool


def plan_carry(context: RefreshContext, due: Results, slots: AddressSlots) -> CarryPlan:
    """Plan the launches for some tensors.

    Args:
        due: the slots of each mode's results.
        slots: that made them.
    """
    members = [context.memory.members[place] for place in sorted(due)]
    counting, modes = _count(context, due)
    derived, derive = _derive(context, due, carrying=True)
    permute, axes = _permute(context, members, due)
    launches = [
        counting,
        derive,
        _gather(context, [member for member in members if is_gathered(member.layout)]),
        *_rotate(context, members),
        permute,
        _settle(context, members),
        _derive(context, due, carrying=False)[1],
    ]
    late = (slots.table(modes), slots.table(axes), slots.table(derived))
    return CarryPlan(in_order(launches, CARRY), late)


def slots_of(slots: AddressSlots, batch: int, batches: int, position: int, d: int) -> list[int]:
    """Slots of one factor's results: batch number `batch` of `batches`, at `position` in it."""
    sizes = (LONG * d, FLOAT * d * d, LONG, FLOAT)
    return [slots.add(kind * batches + batch, position * size) for kind, size in enumerate(sizes)]


def _count(context: RefreshContext, due: Results) -> tuple[Planned, list[list[int]]]:
    """Outcomes into the counters, and the rows of the modes."""
    states = context.states
    counters = [(s["refreshes"].data_ptr(), s["off_diagonal"].data_ptr()) for s in states]
    counts = [len(due.get(place, ())) for place in range(len(states))]
    rows = mode_rows(
        (mode, values[OUTCOMES], values[SHARES])
        for place in sorted(due)
        for mode, values in sorted(due[place].items())
    )
    tasks = _table(count_rows(counters, counts), COUNT)
    constants = {**TUNING["count"].constants, "LEFT_OUT": LEFT_OUT, "REFRESHED": REFRESHED}
    carried = (context.memory.carried,)
    n = len(states)
    return Planned("count", "count", "count", Work(), (tasks, MODES), carried, constants, n), rows


def _derive(
    context: RefreshContext, due: Results, *, carrying: bool
) -> tuple[list[list[int]], Planned]:
    """Derived matrices of these tensors, and their tasks."""
    operands = _operands(context.memory, due, carrying=carrying)
    work = derive_work(operands, TUNING["derive"].constants["BLOCK"])
    place = "derive carries" if carrying else "derive"
    table = DERIVED if carrying else _table(work.tasks, DERIVE)
    constants = TUNING["derive"].constants
    return work.tasks, Planned(place, place, "derive", work, (table,), (), constants)


def _operands(memory: Memory, due: Results, *, carrying: bool) -> Iterator[Operand]:
    """The carrying ones take the transposed bases' place."""
    for operand in memory.operands.derived:
        if operand.index not in due:
            continue
        if not carrying:
            yield operand
        elif operand.transposed:
            yield operand.of({mode: v[CARRIES] for mode, v in due[operand.index].items()})


def _permute(
    context: RefreshContext, members: Sequence[Member], due: Results
) -> tuple[Planned, list[list[int]]]:
    """exp_avg_sq into planes that are not in use, and the rows of its axes."""
    orders = [{m: values[ORDERS] for m, values in due[member.index].items()} for member in members]
    constants = TUNING["permute"].constants
    work, axes = permute_work(members, orders, constants["ELEMENTS"])
    tables = (_table(work.tasks, PERMUTE), AXES)
    carried = (context.memory.carried,)
    return Planned("permute", "permute", "permute", work, tables, carried, constants), axes


def _settle(context: RefreshContext, members: Sequence[Member]) -> Planned:
    """Both moments to their places."""
    constants = {**TUNING["settle"].constants, "PRECISION": context.precision}
    work = settle_work(members, constants["ROWS"])
    return Planned("settle", "settle", "settle", work, (), (context.memory.carried,), constants)


def _gather(context: RefreshContext, members: Sequence[Member]) -> Planned:
    """exp_avg into the planes, its folded mode carried over."""
    constants = TUNING["gather"].constants
    strided = [(member.layout.state_strides, torch.float32) for member in members]
    work = gather_work(members, strided, constants)
    # One more than there are tasks, for the task of padding.
    sources = torch.tensor([*(m.exp_avg for m in members), 0], dtype=torch.int64).view(-1, 1)
    tables = (_table(work.tasks, PLANE), sources)
    scratch = (torch.ones_like(context.memory.inverse_scale), context.squares)
    place = "gather exp_avg"
    return Planned(place, place, "gather", work, tables, scratch, constants)


def _rotate(context: RefreshContext, members: Sequence[Member]) -> Iterator[Planned]:
    """Products of exp_avg but the last."""
    deepest = max(len(member.layout.levels) for member in context.memory.members)
    tensors, options, directions = context.step_tables
    arguments = (tensors, options, context.memory.carried, directions)
    own = {"ADAM": False, "PRECISION": context.precision}
    constants = {**TUNING["rotate"].constants, **own}
    for number in range(deepest - 1):
        work = carrying_work(members, number, deepest)
        name = f"rotate exp_avg {number}"
        yield Planned("rotate exp_avg", name, "rotate", work, (), arguments, constants)


def _table(rows: Sequence[Sequence[int]], columns: dict[str, int]) -> torch.Tensor:
    """[rows, columns] int64, rows or none."""
    return torch.tensor(rows, dtype=torch.int64).view(-1, len(columns))
