"""What a refresh launches for the tensors that are due: tables and tiles, nothing on a device yet.

count               outcomes into the counters; whose moments follow
derive              carrying matrices in place of the transposed bases
permute, settle     exp_avg_sq
gather, rotate .., settle     exp_avg
derive              operands from the new bases
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soap_fast.fused import carry_tables, plane_tables, tables
from soap_fast.fused.carry_tables import Template, Tokens
from soap_fast.fused.columns import (
    COUNT,
    COUNT_MODE,
    DERIVE,
    PERMUTE,
    PERMUTE_AXIS,
    PLANE,
    SETTLE,
)
from soap_fast.fused.memory import Memory
from soap_fast.fused.operands import Operand
from soap_fast.fused.rotations import rotate_work
from soap_fast.fused.tuning import TUNING
from soap_fast.fused.work import Work
from soap_fast.refresh import LEFT_OUT, REFRESHED

ORDERS, CARRIES, OUTCOMES, SHARES = range(4)  # results of each batch, as in `Refreshed`
FLOAT, LONG = 4, 8  # bytes

# Tables that hold addresses of results: rows of `count`'s modes, of `permute`'s axes, and the tasks
# of `derive` for carrying matrices.
MODES, AXES, DERIVED = range(3)
LATE_COLUMNS = (len(COUNT_MODE), len(PERMUTE_AXIS), len(DERIVE))


# Columns of the tasks that tiles name.
TASKS = {
    "derive": DERIVE,
    "permute": PERMUTE,
    "settle": SETTLE,
    "gather": PLANE,
}


@dataclass(frozen=True)
class Planned:
    """A launch without its tables' memory.

    Attributes:
        name, op: of the launch, of its kernel.
        work: what it costs.
        tiles: [n, fields] int32, or records int64; None where a kernel walks tensors.
        tables: what follows the tiles, each [rows, columns] int64 or the number of a late one.
        arguments: what follows the tables, without the count.
        constants: `tl.constexpr` arguments.
        count: of tiles or tensors.
    """

    name: str
    op: str
    work: Work
    tiles: torch.Tensor | None
    tables: tuple[torch.Tensor | int, ...]
    arguments: tuple[torch.Tensor, ...]
    constants: dict[str, Any]
    count: int


@dataclass(frozen=True)
class Plan:
    """The launches of one set of tensors, and the rows that wait for addresses of results."""

    launches: list[Planned]
    late: tuple[Template, Template, Template]  # MODES, AXES, DERIVED


@dataclass(frozen=True)
class Surroundings:
    """What launches of a refresh read besides tables of their own.

    Attributes:
        states: of all tensors of the engine.
        squares: scratch of `gather`.
        step_tables: tensors, options and directions, which `rotate` takes and does not need here.
        precision: of products.
    """

    states: Sequence[dict[str, Any]]
    memory: Memory
    squares: torch.Tensor
    step_tables: tuple[torch.Tensor, ...]
    precision: str


def plan(around: Surroundings, due: Mapping[int, Mapping[int, list[int]]], tokens: Tokens) -> Plan:
    """Plan the launches for some tensors.

    Args:
        due: by place of the tensor and by mode, the tokens of the mode's results.
        tokens: that made them.
    """
    places = sorted(due)
    memory = around.memory
    members = [memory.members[place] for place in places]
    carried = memory.carried
    launches = []

    def add(
        name: str, op: str, work: Work, *tables_: Any, then: Any = (), **constants: Any
    ) -> None:
        all_constants = {**TUNING[op].constants, **constants}
        tiles = torch.cat(work.tiles) if work.tiles else torch.empty((0, 4), dtype=torch.int32)
        launches.append(Planned(name, op, work, tiles, tables_, then, all_constants, work.count))

    def tasks(work: Work, op: str) -> torch.Tensor:
        return _table(work.tasks, TASKS[op])

    counters, modes = _count(around, due)
    n = len(around.states)
    outcomes = {**TUNING["count"].constants, "LEFT_OUT": LEFT_OUT, "REFRESHED": REFRESHED}
    counting = Work()
    launches.append(
        Planned("count", "count", counting, None, (counters, MODES), (carried,), outcomes, n)
    )

    block = TUNING["derive"].constants["BLOCK"]
    derive = tables.derive_work(_operands(memory, due, carrying=True), block)
    add("derive carries", "derive", derive, DERIVED)

    orders = [{mode: values[ORDERS] for mode, values in due[p].items()} for p in places]
    work, axes = carry_tables.permute_work(members, orders, TUNING["permute"].constants["ROWS"])
    add("permute", "permute", work, tasks(work, "permute"), AXES, then=(carried,))
    rows = TUNING["settle"].constants["ROWS"]
    work = carry_tables.settle_permuted_work(members, rows)
    add("settle exp_avg_sq", "settle", work, tasks(work, "settle"), then=(carried,))

    strided = [(member.layout.state_strides, torch.float32) for member in members]
    work = plane_tables.gather_work(members, strided, TUNING["gather"].constants)
    sources = torch.zeros(n + 1, 1, dtype=torch.int64)  # one more for the task of padding
    addresses = [member.exp_avg for member in members]
    sources[places, 0] = torch.tensor(addresses, dtype=torch.int64)
    one = torch.ones_like(memory.inverse_scale)
    precision = {"PRECISION": around.precision}
    scratch = (one, around.squares)
    add("gather exp_avg", "gather", work, tasks(work, "gather"), sources, then=scratch)
    deepest = max(len(member.layout.levels) for member in memory.members)
    tensors, options, directions = around.step_tables
    for place in range(deepest):
        work = rotate_work(members, place, deepest, back=False)
        then = (tensors, options, carried, directions)
        name = f"rotate exp_avg {place}"
        add(name, "rotate", work, then=then, ADAM=False, **precision)
    work = carry_tables.settle_rotated_work(members, rows)
    add("settle exp_avg", "settle", work, tasks(work, "settle"), then=(carried,))

    again = tables.derive_work(_operands(memory, due, carrying=False), block)
    add("derive", "derive", again, tasks(again, "derive"))
    return Plan(
        launches, (tokens.template(modes), tokens.template(axes), tokens.template(derive.tasks))
    )


def tokens_of(tokens: Tokens, batch: int, batches: int, position: int, d: int) -> list[int]:
    """Tokens of one factor's results: batch number `batch` of `batches`, at `position` in it."""
    sizes = (LONG * d, FLOAT * d * d, LONG, FLOAT)
    return [tokens.add(kind * batches + batch, position * size) for kind, size in enumerate(sizes)]


def _count(
    around: Surroundings, due: Mapping[int, Mapping[int, list[int]]]
) -> tuple[torch.Tensor, list[list[int]]]:
    states = around.states
    counters = [(s["refreshes"].data_ptr(), s["off_diagonal"].data_ptr()) for s in states]
    modes = [len(due.get(place, ())) for place in range(len(states))]
    rows = carry_tables.mode_rows(
        (mode, values[OUTCOMES], values[SHARES])
        for place in sorted(due)
        for mode, values in sorted(due[place].items())
    )
    return _table(carry_tables.count_rows(counters, modes), COUNT), rows


def _operands(
    memory: Memory, due: Mapping[int, Mapping[int, list[int]]], *, carrying: bool
) -> Iterator[Operand]:
    """Derived matrices of these tensors; the carrying ones take the transposed bases' place."""
    for operand in memory.operands.derived:
        if operand.index not in due:
            continue
        if not carrying:
            yield operand
        elif operand.transposed:
            yield operand.of({mode: v[CARRIES] for mode, v in due[operand.index].items()})


def _table(rows: Sequence[Sequence[int]], columns: dict[str, int]) -> torch.Tensor:
    """[rows, columns] int64, rows or none."""
    return torch.tensor(rows, dtype=torch.int64).view(-1, len(columns))
