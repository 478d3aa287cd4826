"""Staggered refreshes in one CUDA graph: what is due is chosen on the device, by a clock there.

The sets of tensors that are due at each of the f phases are planned one by one, padded to the same
lengths and stacked; a call reads row `calls mod f` of everything. Padding is tiles of tasks of no
tensor, and factors that are not allowed to move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from soap_fast.backends.triton.address_slots import AddressSlots, PatchableTable
from soap_fast.backends.triton.carry import (
    DERIVED,
    LATE_COLUMNS,
    TASKS,
    CarryPlan,
    RefreshContext,
    plan_carry,
    slots_of,
)
from soap_fast.backends.triton.launch.launcher import Launch, Launcher
from soap_fast.backends.triton.launch.pieces import apart, joined
from soap_fast.backends.triton.launch.upload import upload
from soap_fast.backends.triton.programs import Planned
from soap_fast.backends.triton.rounds import room_for
from soap_fast.step.call import TensorCall
from soap_fast.step.carry import Batch, RefreshOp, batches
from soap_fast.step.refresh import lending
from soap_fast.triton_kernels.columns import RECORDS

Key = tuple[int, int]  # addresses of a stack's K and Q


class Rows:
    """Pieces of one dtype, one row of them per phase on the device."""

    def __init__(self, dtype: torch.dtype, phases: int) -> None:
        self.dtype, self.pieces = dtype, [list[torch.Tensor]() for _ in range(phases)]
        self.lengths: list[int] = []

    def add(self, by_phase: Sequence[torch.Tensor]) -> int:
        """Pieces of equal length, flat. Returns their number."""
        self.lengths.append(len(by_phase[0]))
        for row, piece in zip(self.pieces, by_phase, strict=True):
            row.append(piece.to(self.dtype))
        return len(self.lengths) - 1

    def upload(self, device: torch.device) -> None:
        self.table = upload(torch.stack([joined(row) for row in self.pieces]), device)

    def at(self, phase: torch.Tensor) -> list[torch.Tensor]:
        """The pieces of a phase, [1] int64 on the device."""
        return apart(self.table.index_select(0, phase)[0], self.lengths)


class StaggeredSet:
    """All phases of the tensors of some calls, which share their clock, f and tolerance."""

    def __init__(
        self, calls: Sequence[TensorCall], places: Sequence[int], context: RefreshContext
    ) -> None:
        self.frequency = calls[0].options.precondition_frequency
        self.tolerance = calls[0].options.refresh_tolerance
        self.device = context.memory.whole.device
        nobody = len(context.states)
        phases = range(self.frequency)
        by_phase = [batches(calls, [call.due_after(phase) for call in calls]) for phase in phases]
        self.stacks: dict[Key, Batch] = {}
        for batch in (batch for found in by_phase for batch in found):
            self.stacks.setdefault(_key(batch), batch)
        chosen = [{_key(batch): batch for batch in found} for found in by_phase]
        widths = {
            key: max(len(found[key].slots) if key in found else 0 for found in chosen)
            for key in self.stacks
        }
        memory = context.memory
        sizes = [d for key, stack in self.stacks.items() for d in [stack.K.shape[1]] * widths[key]]
        self.room = room_for(sizes, memory.whole[: memory.planes], memory.planes)
        plans = [self._plan(found, places, context) for found in chosen]
        self.small, self.long = Rows(torch.int32, len(plans)), Rows(torch.int64, len(plans))
        self.selections = [
            self.small.add([_selection(found.get(key), stack, widths[key]) for found in chosen])
            for key, stack in self.stacks.items()
        ]
        self.owners = [
            self.long.add(
                [_owners(found.get(key), places, widths[key], nobody) for found in chosen]
            )
            for key in self.stacks
        ]
        self._arguments = [t for planned in plans[0].launches for t in planned.arguments]
        launches = zip(*(p.launches for p in plans), strict=True)
        self.launches = [self._stacked(by_phase, nobody) for by_phase in launches]
        self.late = [p.late for p in plans]
        # One task more for padding tiles, where late rows are tasks.
        self.late_lengths = [
            max(len(late[kind].flat) for late in self.late) + (kind == DERIVED) * columns
            for kind, columns in enumerate(LATE_COLUMNS)
        ]
        self.small.upload(self.device)
        self.long.upload(self.device)

    def in_use(self) -> Iterator[torch.Tensor]:
        """All tensors on the device that refreshes read at every turn."""
        yield from (self.small.table, self.long.table, *self._arguments)
        for stack in self.stacks.values():
            yield from (stack.K, stack.Q)

    def _plan(
        self, found: dict[Key, Batch], places: Sequence[int], context: RefreshContext
    ) -> CarryPlan:
        slots, due = AddressSlots(), dict[int, dict[int, list[int]]]()
        for number, key in enumerate(self.stacks):
            if key in found:
                d = found[key].K.shape[1]
                for position, (index, mode) in enumerate(found[key].owners):
                    values = slots_of(slots, number, len(self.stacks), position, d)
                    due.setdefault(places[index], {})[mode] = values
        return plan_carry(context, due, slots)

    def _stacked(
        self, by_phase: Sequence[Planned], nobody: int
    ) -> Callable[[list[torch.Tensor], list[torch.Tensor], Sequence[torch.Tensor]], Launch | None]:
        """One launch of all phases, given this phase's pieces and late tables."""
        first = by_phase[0]
        count = max(planned.count for planned in by_phase)
        tiles = None
        if first.tiles is not None:
            fields = next(
                (p.tiles.shape[1] for p in by_phase if p.count and p.tiles is not None), 0
            )
            rows = self.long if first.op in RECORDS else self.small
            if count:
                tiles = rows.add([_tiles(p, count, fields, nobody) for p in by_phase])
        numbers: list[tuple[bool, int]] = []  # whether late, and which
        for position, table in enumerate(first.tables):
            if isinstance(table, int):
                numbers.append((True, table))
                continue
            tables = [p.tables[position] for p in by_phase]
            is_tasks = position == 0 and first.op in TASKS
            columns = TASKS[first.op] if is_tasks else None
            numbers.append((False, self.long.add(list(_tables(tables, columns, nobody)))))

        def launch(
            small: list[torch.Tensor], long: list[torch.Tensor], late: Sequence[torch.Tensor]
        ) -> Launch | None:
            if not count:
                return None
            rows = long if first.op in RECORDS else small
            walked = () if tiles is None else (rows[tiles],)
            read = (late[number] if is_late else long[number] for is_late, number in numbers)
            arguments = (*walked, *read, *first.arguments, count)
            return Launch(first.op, arguments, first.constants, count)

        return launch

    def refresh(
        self,
        calls: torch.Tensor,
        taken: torch.Tensor,
        op: RefreshOp,
        launcher: Launcher,
    ) -> None:
        """Refresh what is due.

        Args:
            calls: [1] int64 on the device, counted up by this call already.
            taken: [n + 1] bool, whether each tensor took its step; nobody, the last, did not.
            op: `refresh_eager` or another that computes the same.
        """
        phase = (calls - 1).remainder(self.frequency)
        small, long = self.small.at(phase), self.long.at(phase)
        stacks = list(self.stacks.values())
        selections = [small[number] for number in self.selections]
        allowed = [taken.index_select(0, long[number]) for number in self.owners]
        factors, bases = [s.K for s in stacks], [s.Q for s in stacks]
        with lending(self.room.lent()):
            results = op(factors, bases, selections, allowed, self.tolerance)
        assert results is not None  # who shares with others captures no graph
        starts = torch.tensor([t.data_ptr() for column in results for t in column])
        filled = torch.stack([self._filled(late, starts) for late in self.late])
        row = upload(filled, self.device).index_select(0, phase)[0]
        late = apart(row, self.late_lengths)
        for make in self.launches:
            launch = make(small, long, late)
            if launch is not None:
                launcher(launch)

    def _filled(self, late: Sequence[PatchableTable], starts: torch.Tensor) -> torch.Tensor:
        return joined([template.filled(starts) for template in late], self.late_lengths)


def _key(batch: Batch) -> Key:
    return batch.K.data_ptr(), batch.Q.data_ptr()


def _selection(batch: Batch | None, stack: Batch, width: int) -> torch.Tensor:  # [width]
    """Slots that are due, then others of the stack: no factor may be named twice."""
    slots = [] if batch is None else batch.slots
    others = (slot for slot in range(len(stack.K)) if slot not in set(slots))
    return torch.tensor([*slots, *(next(others) for _ in range(width - len(slots)))])


def _owners(
    batch: Batch | None, places: Sequence[int], width: int, nobody: int
) -> torch.Tensor:  # [width]
    owners = [] if batch is None else [places[index] for index, _ in batch.owners]
    return torch.tensor([*owners, *[nobody] * (width - len(owners))])


def _tiles(planned: Planned, count: int, fields: int, nobody: int) -> torch.Tensor:
    """Tiles of a phase, then others up to `count`: of `nobody`, or of the task behind the last."""
    assert planned.tiles is not None
    tiles = torch.zeros((count, fields), dtype=planned.tiles.dtype)
    tiles[: planned.count] = planned.tiles.view(-1, fields) if planned.count else 0
    if planned.op in RECORDS:
        tiles[planned.count :, RECORDS[planned.op]["tensor"]] = nobody
        return tiles.flatten()
    table = planned.tables[0]
    tasks = len(planned.work.tasks) if isinstance(table, int) else len(table)
    tiles[planned.count :, 0] = tasks
    return tiles.flatten()


def _tables(
    tables: Sequence[torch.Tensor | int], columns: dict[str, int] | None, nobody: int
) -> Iterator[torch.Tensor]:
    """Tables of all phases, equally long; tasks get one of `nobody` or more behind the last."""
    found = [table for table in tables if isinstance(table, torch.Tensor)]
    rows = max(map(len, found)) + (columns is not None)
    for table in found:
        padded = torch.zeros((rows, table.shape[1]), dtype=torch.int64)
        padded[: len(table)] = table
        if columns is not None and "tensor" in columns:
            padded[len(table) :, columns["tensor"]] = nobody
        yield padded.flatten()
