"""A refresh of tensors of the fused step: their bases by an operator, their moments by launches.

    count               outcomes into the counters; whose moments follow
    derive              carrying matrices in place of the transposed bases
    permute, settle     exp_avg_sq
    gather, rotate .., settle     exp_avg
    derive              operands from the new bases

What is due together is due together again: tables, tiles and selections of a set of tensors stay on
the device, and a refresh uploads one table with the addresses of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soap_fast.call import TensorCall
from soap_fast.carry import Batch, batches, old_bases_on_error
from soap_fast.fused import carry_tables, tables
from soap_fast.fused.columns import COUNT_MODE, DERIVE, PERMUTE_AXIS
from soap_fast.fused.launcher import Launch, Launcher
from soap_fast.fused.memory import Memory
from soap_fast.fused.operands import Operand
from soap_fast.fused.tuning import TUNING
from soap_fast.fused.upload import upload
from soap_fast.fused.work import Member, Work
from soap_fast.refresh import LEFT_OUT, REFRESHED, Refreshed

RefreshOp = Callable[..., Refreshed]
ORDERS, CARRIES, OUTCOMES, SHARES = range(4)  # of each batch, as in `Refreshed`
FLOAT, LONG = 4, 8  # bytes


@dataclass
class DueSet:
    """Tensors whose refresh falls together.

    Attributes:
        batches: their factors by stack.
        selections: [k] int32 per batch, on the device.
        owners: [all k] int64, the tensor of each factor, on the device.
        template: everything that holds addresses of results: rows of `count`'s modes, of
            `permute`'s axes and of `derive`'s carrying matrices.
        splits: lengths of these three.
        launches: in order; their arguments take the uploaded tables.
        works: by launch, what they cost.
    """

    batches: list[Batch]
    selections: list[torch.Tensor]
    owners: torch.Tensor
    template: carry_tables.Template
    splits: list[int]
    launches: list[Callable[[list[torch.Tensor]], Launch]]
    works: dict[str, Work]


class Refresher:
    """Refreshes the tensors of one engine."""

    def __init__(
        self,
        states: Sequence[dict[str, Any]],
        memory: Memory,
        launcher: Launcher,
        precision: str,
        squares: torch.Tensor,
        step_tables: tuple[torch.Tensor, ...],
    ) -> None:
        """`squares` and the tables of the step are scratch and bystanders of its kernels."""
        self.states, self.memory, self.launcher = states, memory, launcher
        self.precision = "ieee" if precision == "ieee" else "tf32x3"  # never less: as Gram's
        self.squares, self.step_tables = squares, step_tables
        self.device = memory.a.device
        self.forget()

    def forget(self) -> None:
        """The tables of what was due together are built and uploaded anew."""
        self.sets: dict[tuple[Any, ...], DueSet] = {}

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
            taken: [n] bool of all tensors of the engine, whether their step was taken.
            op: `refresh_eager` or another that computes the same.
        """
        by_tolerance: dict[float, list[int]] = {}
        for index, call in enumerate(calls):
            by_tolerance.setdefault(call.options.refresh_tolerance, []).append(index)
        for tolerance, indices in by_tolerance.items():
            due = self.due([calls[i] for i in indices], [places[i] for i in indices])
            allowed = taken.index_select(0, due.owners)
            counts = [len(selection) for selection in due.selections]
            with old_bases_on_error(due.batches, due.selections):
                results = op(
                    [batch.K for batch in due.batches],
                    [batch.Q for batch in due.batches],
                    due.selections,
                    list(torch.split(allowed, counts)),
                    tolerance,
                )
                self._carry(due, results)

    def _carry(self, due: DueSet, results: Refreshed) -> None:
        columns = [results.orders, results.carries, results.outcomes, results.off_diagonals]
        columns = [[t.contiguous() for t in column] for column in columns]
        starts = torch.tensor([t.data_ptr() for column in columns for t in column])
        filled = list(torch.split(upload(due.template.filled(starts), self.device), due.splits))
        for launch in due.launches:
            self.launcher(launch(filled))

    def due(self, calls: Sequence[TensorCall], places: Sequence[int]) -> DueSet:
        key = tuple((place, *call.modes_due()) for call, place in zip(calls, places, strict=True))
        found = self.sets.get(key)
        if found is None:
            found = self.sets[key] = self._build(calls, places)
        return found

    def _build(self, calls: Sequence[TensorCall], places: Sequence[int]) -> DueSet:
        due = batches(calls)
        tokens = carry_tables.Tokens()
        by_mode: list[dict[int, list[int]]] = [{} for _ in calls]  # tokens, as `Refreshed`
        for number, batch in enumerate(due):
            d = batch.K.shape[1]
            for position, (index, mode) in enumerate(batch.owners):
                sizes = (LONG * d, FLOAT * d * d, LONG, FLOAT)
                by_mode[index][mode] = [
                    tokens.add(kind * len(due) + number, position * size)
                    for kind, size in enumerate(sizes)
                ]
        members = [self.memory.members[place] for place in places]
        builder = _Builder(self, members, list(places), by_mode)
        launches = list(builder.launches())
        rows = (builder.mode_rows, builder.axis_rows, builder.carry_rows)
        owners = [places[index] for batch in due for index, _ in batch.owners]
        return DueSet(
            due,
            [batch.selection() for batch in due],
            upload(torch.tensor(owners, dtype=torch.int64), self.device),
            tokens.template([row for part in rows for row in part]),
            [len(part) * width for part, width in zip(rows, WIDTHS, strict=True)],
            launches,
            builder.works,
        )


WIDTHS = (len(COUNT_MODE), len(PERMUTE_AXIS), len(DERIVE))
MODES, AXES, DERIVED = range(3)  # the uploaded tables


class _Builder:
    """The launches of one set of tensors."""

    def __init__(
        self,
        owner: Refresher,
        members: list[Member],
        places: list[int],
        by_mode: Sequence[dict[int, list[int]]],
    ) -> None:
        self.owner, self.members, self.places, self.by_mode = owner, members, places, by_mode
        self.works: dict[str, Work] = {}
        self.mode_rows = carry_tables.mode_rows(
            (mode, values[OUTCOMES], values[SHARES])
            for _, modes in sorted(zip(places, by_mode, strict=True), key=lambda pair: pair[0])
            for mode, values in sorted(modes.items())
        )
        self.axis_rows: list[list[int]] = []
        self.carry_rows: list[list[int]] = []

    def launches(self) -> Iterator[Callable[[list[torch.Tensor]], Launch]]:
        owner, members = self.owner, self.members
        memory = owner.memory
        carried = memory.carried
        yield self._count()

        carry = tables.derive_work(self._operands(carrying=True), _block("derive"))
        self.carry_rows = carry.tasks
        yield self._launch("derive carries", "derive", carry, late=DERIVED)

        rows = TUNING["permute"].constants["ROWS"]
        orders = [{m: v[ORDERS] for m, v in modes.items()} for modes in self.by_mode]
        permute, self.axis_rows = carry_tables.permute_work(members, orders, rows)
        yield self._launch("permute", "permute", permute, carried, late=AXES)
        rows = TUNING["settle"].constants["ROWS"]
        work = carry_tables.settle_permuted_work(members, rows)
        yield self._launch("settle exp_avg_sq", "settle", work, carried)

        strided = [(m.layout.state_strides, torch.float32) for m in members]
        gather = tables.gather_work(members, strided, TUNING["gather"].constants)
        addresses = [0] * len(memory.members)
        for member in members:
            addresses[member.index] = member.exp_avg
        sources = upload(torch.tensor(addresses, dtype=torch.int64), owner.device)
        one = torch.ones_like(memory.inverse_scale)
        precision: dict[str, Any] = {"PRECISION": owner.precision}
        yield self._launch(
            "gather exp_avg", "gather", gather, sources, one, owner.squares, **precision
        )
        deepest = max(len(member.layout.levels) for member in members)
        for place in range(deepest):
            work = tables.rotate_work(members, place, deepest, back=False)
            tensors, options, directions = owner.step_tables
            yield self._launch(
                f"rotate exp_avg {place}", "rotate", work, tensors, options, carried, directions,
                ADAM=False, **precision,
            )  # fmt: skip
        work = carry_tables.settle_rotated_work(members, rows)
        yield self._launch("settle exp_avg", "settle", work, carried)

        derive = tables.derive_work(self._operands(carrying=False), _block("derive"))
        yield self._launch("derive", "derive", derive)

    def _count(self) -> Callable[[list[torch.Tensor]], Launch]:
        states, n = self.owner.states, len(self.owner.states)
        due = [0] * n
        for place, modes in zip(self.places, self.by_mode, strict=True):
            due[place] = len(modes)
        counters = [(s["refreshes"].data_ptr(), s["off_diagonal"].data_ptr()) for s in states]
        tasks = _table(carry_tables.count_rows(counters, due), self.owner.device)
        constants = {**TUNING["count"].constants, "LEFT_OUT": LEFT_OUT, "REFRESHED": REFRESHED}
        carried = self.owner.memory.carried
        return lambda late: Launch("count", (tasks, late[MODES], carried, n), constants, n)

    def _operands(self, *, carrying: bool) -> Iterator[Operand]:
        """Derived matrices of these tensors; the carrying ones take the transposed bases' place."""
        matrices = {
            place: {m: v[CARRIES] for m, v in modes.items()}
            for place, modes in zip(self.places, self.by_mode, strict=True)
        }
        for operand in self.owner.memory.operands.derived:
            if operand.index not in matrices:
                continue
            if not carrying:
                yield operand
            elif operand.transposed:
                yield operand.of(matrices[operand.index])

    def _launch(
        self, name: str, op: str, work: Work, *arguments: Any, late: int | None = None, **extra: Any
    ) -> Callable[[list[torch.Tensor]], Launch]:
        """A launch over tiles; `late` is the table that is uploaded at every refresh."""
        self.works[name] = work
        device = self.owner.device
        tiles = upload(torch.cat(work.tiles), device)
        constants = {**TUNING[op].constants, **extra}
        count = work.count
        if late == DERIVED:
            return lambda tables_: Launch(op, (tiles, tables_[DERIVED], count), constants, count)
        tasks = _table(work.tasks, device)
        if late == AXES:
            return lambda tables_: Launch(
                op, (tiles, tasks, tables_[AXES], *arguments, count), constants, count
            )
        launch = Launch(op, (tiles, tasks, *arguments, count), constants, count)
        return lambda _: launch


def _table(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    return upload(torch.tensor(rows, dtype=torch.int64), device)


def _block(op: str) -> int:
    return int(TUNING[op].constants["BLOCK"])
