"""A refresh of tensors of the fused step: their bases by an operator, their moments by launches.

What is due together is due together again: tables, tiles and selections of a set of tensors stay on
the device, and a refresh uploads one table with the addresses of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soap_fast.call import TensorCall
from soap_fast.carry import Batch, batches, old_bases_on_error
from soap_fast.fused.carry_tables import Template, Tokens
from soap_fast.fused.due import Planned, Surroundings, plan, tokens_of
from soap_fast.fused.launcher import Launch, Launcher
from soap_fast.fused.upload import upload
from soap_fast.refresh import Refreshed

RefreshOp = Callable[..., Refreshed]
MOST_SETS = 64


@dataclass
class DueSet:
    """Tensors whose refresh falls together; everything of it but the results, on the device.

    Attributes:
        batches: their factors by stack.
        selections: [k] int32 per batch.
        owners: [all k] int64, the tensor of each factor.
        late: tables that wait for addresses of results.
        launches: in order, given these tables.
    """

    batches: list[Batch]
    selections: list[torch.Tensor]
    owners: torch.Tensor
    late: tuple[Template, ...]
    launches: list[Callable[[Sequence[torch.Tensor]], Launch]]


class Refresher:
    """Refreshes the tensors of one engine."""

    def __init__(self, around: Surroundings, launcher: Launcher) -> None:
        self.around, self.launcher = around, launcher
        self.device = around.memory.a.device
        self.has_run = False  # and its kernels are loaded
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
            taken: [n + 1] bool of all tensors of the engine, whether their step was taken.
            op: `refresh_eager` or another that computes the same.
        """
        for tolerance, indices in by_tolerance(calls).items():
            found = self.due([calls[i] for i in indices], [places[i] for i in indices])
            allowed = taken.index_select(0, found.owners)
            counts = [len(selection) for selection in found.selections]
            with old_bases_on_error(found.batches, found.selections):
                results = op(
                    [batch.K for batch in found.batches],
                    [batch.Q for batch in found.batches],
                    found.selections,
                    list(torch.split(allowed, counts)),
                    tolerance,
                )
                starts = starts_of(results)
                filled = [late.filled(starts) for late in found.late]
                sizes = [len(table) for table in filled]
                late = torch.split(upload(torch.cat(filled), self.device), sizes)
                for launch in found.launches:
                    self.launcher(launch(late))
        self.has_run = True

    def due(self, calls: Sequence[TensorCall], places: Sequence[int]) -> DueSet:
        key = tuple((place, *call.modes_due()) for call, place in zip(calls, places, strict=True))
        if key not in self.sets:
            if len(self.sets) >= MOST_SETS:  # tensors that have gradients now and then
                del self.sets[next(iter(self.sets))]
            self.sets[key] = self._build(calls, places)
        return self.sets[key]

    def _build(self, calls: Sequence[TensorCall], places: Sequence[int]) -> DueSet:
        found, tokens = batches(calls), Tokens()
        by_mode: dict[int, dict[int, list[int]]] = {place: {} for place in places}
        for number, batch in enumerate(found):
            d = batch.K.shape[1]
            for position, (index, mode) in enumerate(batch.owners):
                values = tokens_of(tokens, number, len(found), position, d)
                by_mode[places[index]][mode] = values
        planned = plan(self.around, by_mode, tokens)
        owners = [places[index] for batch in found for index, _ in batch.owners]
        return DueSet(
            found,
            [batch.selection() for batch in found],
            upload(torch.tensor(owners, dtype=torch.int64), self.device),
            planned.late,
            [self._on_device(launch) for launch in planned.launches if launch.count],
        )

    def _on_device(self, planned: Planned) -> Callable[[Sequence[torch.Tensor]], Launch]:
        walked = () if planned.tiles is None else (upload(planned.tiles, self.device),)
        fixed = [t if isinstance(t, int) else upload(t, self.device) for t in planned.tables]

        def launch(late: Sequence[torch.Tensor]) -> Launch:
            tables = (late[t] if isinstance(t, int) else t for t in fixed)
            arguments = (*walked, *tables, *planned.arguments, planned.count)
            return Launch(planned.op, arguments, planned.constants, planned.count)

        return launch


def by_tolerance(calls: Sequence[TensorCall]) -> dict[float, list[int]]:
    """Indices of calls whose bases one call of the operator may refresh."""
    found: dict[float, list[int]] = {}
    for index, call in enumerate(calls):
        found.setdefault(call.options.refresh_tolerance, []).append(index)
    return found


def starts_of(results: Refreshed) -> torch.Tensor:  # [4 * batches] int64
    """Addresses at which the results lie, in the order that tokens count them."""
    assert all(t.is_contiguous() for column in results for t in column)
    return torch.tensor([t.data_ptr() for column in results for t in column], dtype=torch.int64)
