"""A refresh of whole tensors: their factors stack by stack, then their moments carried over.

The operator works on copies of the bases. A tensor's own are written with its moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from soap_fast.interrupts import at_once
from soap_fast.ranges import station
from soap_fast.step.call import TensorCall, paying
from soap_fast.step.modes import from_modes, rotate, to_modes
from soap_fast.step.refresh import FAILED, KEPT, NOTHING, REFRESHED, Lent, Refreshed, lending
from soap_fast.step.update import commit

RefreshOp = Callable[..., Refreshed | None]  # None: the results come later
Changes = dict[int, dict[int, "ModeChange"]]  # by index of the call and by mode
CarryOp = Callable[[Sequence[TensorCall], Sequence[Tensor], Changes], None]


@dataclass
class Batch:
    """Factors of one stack that are due, with the calls and modes they belong to."""

    K: torch.Tensor  # [n, d, d]
    Q: torch.Tensor  # [n, d, d]
    slots: list[int] = field(default_factory=list)
    owners: list[tuple[int, int]] = field(default_factory=list)  # index of a call, mode
    all_due: torch.Tensor | None = None  # [k] int32, 0, 1 .., once it was asked for

    @cached_property
    def is_whole(self) -> bool:
        """Whether all factors of the stack are due, in order; asked once none is added any more."""
        return self.slots == list(range(len(self.K)))

    def selection(self) -> torch.Tensor:  # [k] int32
        slots = torch.tensor(self.slots, dtype=torch.int32, device="cpu")
        if self.K.device.type == "cuda":  # from other memory the copy would wait for the device
            slots = slots.pin_memory()
        return slots.to(self.K.device, non_blocking=True)

    def selected(self, selection: Tensor) -> tuple[Tensor, Tensor]:
        """Factors, and a selection of them, for bases [k, d, d] in the order of `slots`.

        As many bases as there are factors would be taken for those of the whole stack: where they
        are not, in its order, factors are copied.

        Args:
            selection: that of this batch.
        """
        if self.is_whole or len(self.slots) < self.K.shape[0]:
            return self.K, selection
        if self.all_due is None:
            self.all_due = torch.arange(len(self.slots), dtype=torch.int32, device=self.K.device)
        return self.K.index_select(0, selection), self.all_due


class Due(NamedTuple):
    """What a refresh is of, as the host knows it."""

    calls: Sequence[TensorCall]
    batches: Sequence[Batch]  # of their factors


NOTHING_DUE = Due((), ())
_underway: ContextVar[Due] = ContextVar("underway", default=NOTHING_DUE)


def copies_of_bases(due: Sequence[Batch], selections: Sequence[Tensor]) -> list[Tensor]:
    """[k, d, d] per batch, those of whole stacks by one operator."""
    found = [
        torch.empty_like(batch.Q) if batch.is_whole else batch.Q.index_select(0, chosen)
        for batch, chosen in zip(due, selections, strict=True)
    ]
    pairs = [(new, batch.Q) for new, batch in zip(found, due, strict=True) if batch.is_whole]
    if pairs:
        new, old = map(list, zip(*pairs, strict=True))
        at_once(map(torch._foreach_copy_, (new,), (old,)))  # which modes of functions do not see
    return found


@dataclass
class ModeChange:
    """What the refresh of one factor means for its tensor."""

    order: torch.Tensor  # [d] int64
    carry: torch.Tensor  # [d, d]
    outcome: torch.Tensor  # [] int64
    off_diagonal: torch.Tensor  # []
    new: torch.Tensor | None = None  # [d, d], the basis; None where it is written already
    old: torch.Tensor | None = None  # [d, d], that of the state, to be written


def carry_each(
    calls: Sequence[TensorCall], taken: Sequence[torch.Tensor], changes: Changes
) -> None:
    """Write the bases of each tensor, carry its moments over and count its outcomes."""
    for index, call in enumerate(calls):
        _carry(call, taken[index], changes[index])


def writing_bases(changes: Iterable[Mapping[int, ModeChange]]) -> Iterable[object]:
    """For `at_once`: new bases to their places."""
    both = [(c.old, c.new) for by_mode in changes for c in by_mode.values() if c.new is not None]
    pairs = [list(side) for side in zip(*both, strict=True)]
    return map(torch._foreach_copy_, *([side] for side in pairs)) if pairs else ()


def refresh_tensors(
    calls: Sequence[TensorCall],
    taken: Sequence[torch.Tensor],
    op: RefreshOp,
    carry: CarryOp = carry_each,
) -> None:
    """Refresh the factors of these tensors that are due, and carry exp_avg and exp_avg_sq along.

    A tensor's bases and moments change together or not at all, and with them it owes no refresh.
    What comes later stays owed.

    Args:
        calls: tensors with factors due, K already updated by this call's gradient.
        taken: [] bool per call, whether its step was taken; where not, nothing changes.
        op: `refresh_eager` or another that computes the same.
        carry: `carry_each` or another that does the same.
    """
    by_tolerance: dict[float, list[int]] = {}
    for index, call in enumerate(calls):
        by_tolerance.setdefault(call.options.refresh_tolerance, []).append(index)
    for tolerance, indices in by_tolerance.items():
        chosen, flags = [calls[i] for i in indices], [taken[i] for i in indices]
        _refresh_together(chosen, flags, batches(chosen), op, carry, tolerance)


def _refresh_together(
    calls: Sequence[TensorCall],
    taken: Sequence[torch.Tensor],
    due: Sequence[Batch],
    op: RefreshOp,
    carry: CarryOp,
    tolerance: float,
) -> None:
    allowed = [torch.stack([taken[call] for call, _ in batch.owners]) for batch in due]
    selections = [batch.selection() for batch in due]
    results, bases = refreshed(Due(calls, due), selections, allowed, op, tolerance)
    if results is not None:
        carry(calls, taken, by_call(due, results, bases))


def refreshed(
    due: Due,
    selections: Sequence[Tensor],
    allowed: Sequence[Tensor],
    op: RefreshOp,
    tolerance: float,
    lent: Lent = NOTHING,
) -> tuple[Refreshed | None, list[Tensor]]:
    """What the operator makes of copies of these bases, and the copies, [k, d, d] each.

    Args:
        due: whose bases they are.
        lent: memory that is not needed before moments have been carried over.
    """
    bases = copies_of_bases(due.batches, selections)
    pairs = [b.selected(chosen) for b, chosen in zip(due.batches, selections, strict=True)]
    factors, selected = ([pair[i] for pair in pairs] for i in range(2))
    token = _underway.set(due)
    try:
        with lending(lent):
            return op(factors, bases, selected, list(allowed), tolerance), bases
    finally:
        _underway.reset(token)


def underway() -> Due:
    """What the refresh is of that calls its operator."""
    return _underway.get()


def batches(
    calls: Sequence[TensorCall], modes: Sequence[Sequence[int]] | None = None
) -> list[Batch]:
    """The factors of these calls that are due, gathered by the stacks they are views of.

    Args:
        modes: per call other modes than those that are due now.
    """
    found: dict[tuple[object, ...], Batch] = {}
    for index, call in enumerate(calls):
        for mode in call.modes_due() if modes is None else modes[index]:
            bases = call.state["Q"]
            bases[mode] = bases[mode].contiguous()  # a user may have put another one there
            k, k_slot = _stack_of(call.state["GG"][mode])
            q, q_slot = _stack_of(bases[mode])
            key: tuple[object, ...] = (k.data_ptr(), q.data_ptr(), k.shape, q.shape)
            if k_slot != q_slot or k.shape != q.shape:  # replaced by the user, one of them
                k, q, k_slot = call.state["GG"][mode][None], bases[mode][None], 0
                key = (index, mode)
            batch = found.setdefault(key, Batch(k, q))
            batch.slots.append(k_slot)
            batch.owners.append((index, mode))
    return list(found.values())


def _stack_of(view: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The whole stack [n, d, d] whose memory a factor is part of, and the factor's slot in it."""
    d = view.shape[0]
    n, rest = divmod(view.untyped_storage().nbytes(), view.nbytes)
    slot, shifted = divmod(int(view.storage_offset()), d * d)
    if rest or shifted or not view.is_contiguous():
        return view[None], 0
    return view.as_strided((n, d, d), (d * d, d, 1), 0), slot


def by_call(due: Sequence[Batch], results: Refreshed, bases: Sequence[Tensor]) -> Changes:
    """The results and the new bases by call and mode."""
    changes: Changes = {}
    for batch, *columns in zip(due, *results, bases, strict=True):
        for position, (index, mode) in enumerate(batch.owners):
            order, carry, outcome, share, new = (column[position] for column in columns)
            old = batch.Q[batch.slots[position]]
            change = ModeChange(order, carry, outcome, share, new, old)
            changes.setdefault(index, {})[mode] = change
    return changes


@station
def _carry(call: TensorCall, taken: torch.Tensor, changes: dict[int, ModeChange]) -> None:
    """exp_avg_sq is only permuted along each mode; exp_avg is carried, m = R_new(R_old⁻¹(m)).

    Where exp_avg_sq is then exactly 0, exp_avg is 0: divided by eps alone it would be a huge step.
    """
    state, plan = call.state, call.plan
    exp_avg_sq = to_modes(state["exp_avg_sq"], plan)
    carries: list[torch.Tensor | None] = [None] * len(plan.modes)
    off_diagonal = state["off_diagonal"].clone()
    for mode, change in changes.items():
        exp_avg_sq = exp_avg_sq.index_select(mode, change.order)
        carries[mode] = change.carry
        off_diagonal[mode] = change.off_diagonal
    exp_avg_sq = from_modes(exp_avg_sq, plan)
    exp_avg = rotate(state["exp_avg"], carries, plan).masked_fill(exp_avg_sq == 0, 0)
    outcomes = torch.stack([change.outcome for change in changes.values()])  # [modes due]
    counts = [(outcomes == kind).sum() for kind in (REFRESHED, KEPT, FAILED)]
    commit(
        taken,
        (exp_avg, state["exp_avg"]),
        (exp_avg_sq, state["exp_avg_sq"]),
        (off_diagonal, state["off_diagonal"]),
        (state["refreshes"] + torch.stack(counts), state["refreshes"]),
        then=(writing_bases([changes]), paying([call.state])),
    )
