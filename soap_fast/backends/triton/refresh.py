"""A refresh of tensors of the fused step: their bases by an operator, their moments by launches.

What is due together is due together again: tables, tiles and selections of a set of tensors stay on
the device. A refresh uploads one table with the addresses of its results, where they lie elsewhere
than the last time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch

from soap_fast.backends.metadata import unpacked
from soap_fast.backends.triton.address_slots import (
    AddressSlots,
    PatchableTable,
    one_behind_the_other,
)
from soap_fast.backends.triton.carry import RefreshContext, plan_carry, slots_of
from soap_fast.backends.triton.launch.balance import dealt
from soap_fast.backends.triton.launch.launcher import Launch, Launcher
from soap_fast.backends.triton.launch.mirror import Mirror
from soap_fast.backends.triton.launch.pieces import apart
from soap_fast.backends.triton.launch.underway import Underway
from soap_fast.backends.triton.launch.upload import upload
from soap_fast.backends.triton.programs import Planned
from soap_fast.backends.triton.results import KeptResults
from soap_fast.backends.triton.rounds import Room, free_bytes, most_within, room_for, rounds_of
from soap_fast.interrupts import at_once, held
from soap_fast.step.call import TensorCall, paying
from soap_fast.step.carry import (
    Batch,
    Changes,
    Due,
    RefreshOp,
    batches,
    by_call,
    refreshed,
)
from soap_fast.step.refresh import LEFT_OUT, Refreshed, stacked
from soap_fast.step.schedule import period

# Sets of tensors that were due together and may be again: those of one period of the schedule, and
# of so many calls in which tensors were missing, which have gradients now and then. Frequencies
# that differ repeat together after their least common multiple, which may be too many.
OTHER_SETS, LONGEST_PERIOD = 64, 1024
CARRIED = "settle"  # after this launch bases are written, and operands alone not derived
DERIVE = "derive"


@dataclass(eq=False)
class DueSet:
    """Tensors whose refresh falls together; everything of it but the results, on the device.

    Attributes:
        batches: their factors by stack.
        selections: [k] int32 per batch.
        slots: [k] int64 per batch, the same.
        owners: [all k] int64, the tensor of each factor.
        flags: [all k] bool, whether it took its step; written at each refresh.
        allowed: [k] bool per batch, parts of the flags.
        template: tables that wait for addresses of results, one behind the other.
        late: these on the device, by the addresses they were last filled with.
        launches: in order, by name.
        in_use: what all of these read on the device.
        calls: whose tensors they are, without their gradients.
        results: their memory.
        derives: whether its operands are derived by a launch of its own. Where those of all tensors
            are, after the last set, no operand is needed before.
    """

    batches: list[Batch]
    selections: list[torch.Tensor]
    slots: list[torch.Tensor]
    owners: torch.Tensor
    template: PatchableTable
    late: Mirror
    launches: list[tuple[str, Launch]]
    in_use: list[torch.Tensor]
    calls: list[TensorCall]
    results: KeptResults
    derives: bool

    def __post_init__(self) -> None:
        self.states = [call.state for call in self.calls]
        self.flags = torch.empty_like(self.owners, dtype=torch.bool)
        self.allowed = self.flags.split_with_sizes([len(chosen) for chosen in self.selections])
        self.in_use.append(self.flags)

    @property
    def tolerance(self) -> float:
        return self.calls[0].options.refresh_tolerance

    def filled(self, starts: bytes) -> torch.Tensor:
        """The late tables with the addresses at which results start, packed."""
        return self.template.filled(unpacked(starts))

    def writing(self, bases: Sequence[torch.Tensor]) -> Iterator[Iterable[object]]:
        """For `at_once`: these into the stacks, and those of whole stacks by one operator."""
        both = [(batch.Q, new) for batch, new in zip(self.batches, bases, strict=True)]
        whole = [pair for pair, batch in zip(both, self.batches, strict=True) if batch.is_whole]
        if whole:
            yield map(torch._foreach_copy_, *([list(side)] for side in zip(*whole, strict=True)))
        for (stack, new), slots, batch in zip(both, self.slots, self.batches, strict=True):
            if not batch.is_whole:
                yield map(torch.Tensor.index_copy_, (stack,), (0,), (slots,), (new,))


class Refresher:
    """Refreshes the tensors of one engine."""

    def __init__(
        self,
        context: RefreshContext,
        launcher: Launcher,
        underway: Underway,
        derive: Sequence[Launch],
    ) -> None:
        """
        Args:
            derive: derives the operands of all tensors.
        """
        self.context, self.launcher, self.underway = context, launcher, underway
        self.derive = derive
        self.with_operands = {operand.index for operand in context.memory.operands.derived}
        self.device = context.memory.whole.device
        self.has_run = False  # and its kernels are loaded
        self.forget()

    def forget(self) -> None:
        """The tables of what was due together are built and uploaded anew."""
        self.sets: dict[tuple[Any, ...], DueSet] = {}  # the one that was due last at the end
        self.alive = WeakSet[DueSet]()  # those, and what steady steps hold of them
        self.frequencies: dict[float, set[int]] = {}  # of staggered tensors, by tolerance

    def in_use(self) -> Iterator[torch.Tensor]:
        """All tensors on the device that refreshes read at every turn."""
        for found in self.alive:
            yield from found.in_use
            yield from (b.all_due for b in found.batches if b.all_due is not None)

    def refresh(
        self,
        calls: Sequence[TensorCall],
        places: Sequence[int],
        taken: torch.Tensor,
        op: RefreshOp,
    ) -> None:
        """Refresh the factors of these tensors that are due, and carry their moments along.

        Args:
            places: of the calls' tensors in the engine.
            taken: [n + 1] bool of all tensors of the engine, whether their step was taken.
            op: `refresh_eager` or another that computes the same.
        """
        self.refresh_sets(self.due_sets(calls, places), taken, op)

    def due_sets(self, calls: Sequence[TensorCall], places: Sequence[int]) -> list[DueSet]:
        """What is due of these tensors: of each tolerance a set a round."""
        derives = not self.with_operands.issubset(places)
        return [
            self._due([calls[i] for i in indices], [places[i] for i in indices], derives)
            for alike in by_tolerance(calls).values()
            for indices in self._rounds(calls, alike)
        ]

    def _rounds(self, calls: Sequence[TensorCall], alike: Sequence[int]) -> list[list[int]]:
        due = {i: (calls[i].plan.factors, calls[i].modes_due()) for i in alike}
        sizes = {i: [factors[mode] or 0 for mode in modes] for i, (factors, modes) in due.items()}
        free = free_bytes(self.device) if self.context.by_free else None
        return rounds_of(sizes, most_within(self.context.workspace, free))

    def refresh_sets(self, sets: Sequence[DueSet], taken: torch.Tensor, op: RefreshOp) -> None:
        """Refresh what is due, of which nothing but values has changed since it was found.

        Where this raises, operands may be anything: whoever steps next derives them all.
        """
        for found in sets:
            self._refresh(found, taken, op)
        if sets and not sets[-1].derives:
            for launch in self.derive:
                self.launcher(launch)

    def _refresh(self, found: DueSet, taken: torch.Tensor, op: RefreshOp) -> None:
        torch.index_select(taken, 0, found.owners, out=found.flags)
        results, bases = refreshed(
            Due(found.calls, found.batches), found.selections, found.allowed, op,
            found.tolerance, found.results.lent(),
        )  # fmt: skip
        if results is None:  # they come later
            return
        results, bases = Refreshed(*map(stacked, results)), stacked(bases)
        with held:
            found.late.follow(found.results.starts(results), found.filled)
            self._launch(found, results, bases)
        self.has_run = True

    def _launch(self, found: DueSet, results: Refreshed, bases: Sequence[torch.Tensor]) -> None:
        """Carry the moments over and write the bases.

        Where a launch fails before, as a kernel may that is compiled, what others did is undone.
        """
        made: list[str] = []
        self.underway.refreshing = True
        try:
            for name, launch in found.launches:
                self.launcher(launch)
                made.append(name)
                if name == CARRIED:
                    at_once(*found.writing(bases), paying(found.states))
        except BaseException:
            if CARRIED not in made:
                undo(found.calls, by_call(found.batches, results, bases), made)
            raise
        finally:
            self.underway.refreshing = False

    def _due(self, calls: Sequence[TensorCall], places: Sequence[int], derives: bool) -> DueSet:
        due = ((place, *call.modes_due()) for call, place in zip(calls, places, strict=True))
        key = (calls[0].options.refresh_tolerance, derives, *due)
        found = self.sets.pop(key, None)
        if found is None or any(
            c.state is not k.state for c, k in zip(calls, found.calls, strict=True)
        ):
            found = self._build(calls, places, derives)
        self.sets[key] = found
        staggered = self.frequencies.setdefault(calls[0].options.refresh_tolerance, set())
        staggered.update(c.options.precondition_frequency for c in calls if c.is_staggered)
        if len(self.sets) > self._most_sets():
            del self.sets[next(iter(self.sets))]
        return found

    def _most_sets(self) -> int:
        """A set for every call of a period, and tolerance."""
        periods = map(period, self.frequencies.values())
        return OTHER_SETS + sum(min(calls, LONGEST_PERIOD) for calls in periods)

    def _build(self, calls: Sequence[TensorCall], places: Sequence[int], derives: bool) -> DueSet:
        found, slots = batches(calls), AddressSlots()
        by_mode: dict[int, dict[int, list[int]]] = {place: {} for place in places}
        for number, batch in enumerate(found):
            d = batch.K.shape[1]
            for position, (index, mode) in enumerate(batch.owners):
                values = slots_of(slots, number, len(found), position, d)
                by_mode[places[index]][mode] = values
        planned = plan_carry(self.context, by_mode, slots)
        places_of = [places[index] for batch in found for index, _ in batch.owners]
        owners = upload(torch.tensor(places_of, dtype=torch.int64), self.device)
        selections = [batch.selection() for batch in found]
        long = [selection.long() for selection in selections]
        in_use = [owners, *selections, *long]
        for batch in found:
            in_use += [batch.K, batch.Q]
        template = one_behind_the_other(planned.late)
        late = Mirror(torch.empty_like(template.flat, device=self.device))
        tables = apart(late.table, [len(table.flat) for table in planned.late])
        launches = [
            (one.name, self._launch_of(one, tables))
            for one in planned.launches
            if one.count and (derives or one.name != DERIVE)
        ]
        for _, launch in launches:
            in_use += [x for x in launch.arguments if isinstance(x, torch.Tensor)]
        results = KeptResults([batch.K for batch in found], selections, self._room(found, derives))
        in_use += results.in_use()
        without = [replace(call, grad=call.param) for call in calls]  # gradients come and go
        made = DueSet(
            found, selections, long, owners, template, late, launches, in_use, without,
            results, derives,
        )  # fmt: skip
        self.alive.add(made)
        return made

    def _room(self, found: Sequence[Batch], derives: bool) -> Room:
        memory = self.context.memory
        there = memory.whole[: memory.planes] if derives else memory.whole
        sizes = [batch.K.shape[1] for batch in found for _ in batch.slots]
        return room_for(sizes, there, memory.planes)

    def _launch_of(self, planned: Planned, late: Sequence[torch.Tensor]) -> Launch:
        """One of `CARRY`, its tables on the device."""
        tiles = planned.tiles
        walked: tuple[torch.Tensor, ...] = ()
        if tiles is not None:
            programs = self.launcher.programs(Launch(planned.op, (), {}, planned.count))
            walked = (upload(dealt(planned.op, tiles, programs), self.device),)
        tables = (late[t] if isinstance(t, int) else upload(t, self.device) for t in planned.tables)
        arguments = (*walked, *tables, *planned.arguments, planned.count)
        return Launch(planned.op, arguments, planned.constants, planned.count)


def undo(calls: Sequence[TensorCall], changes: Changes, made: Sequence[str]) -> None:
    """Counters as they were before the launches that were made.

    Moments are not written yet. What is not found again is `off_diagonal`, which goes on telling of
    the refresh that was tried.
    """
    for index, by_mode in changes.items():
        entry = calls[index].state
        if "count" in made:
            for change in by_mode.values():
                was = change.outcome != LEFT_OUT
                entry["refreshes"][change.outcome.clamp(min=1) - 1] -= was.long()


def by_tolerance(calls: Sequence[TensorCall]) -> dict[float, list[int]]:
    """Indices of calls whose bases one call of the operator may refresh."""
    found: dict[float, list[int]] = {}
    for index, call in enumerate(calls):
        found.setdefault(call.options.refresh_tolerance, []).append(index)
    return found
