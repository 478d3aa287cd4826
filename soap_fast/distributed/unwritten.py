"""Refreshes that all ranks have exchanged, until this one has written them.

A rank that could not write one makes up for it by itself, since nobody else has anything to do.
What it computes then are the bits that others were sent. Where the share of one had raised, all
others have left its bases as they are, and so does this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from soap_fast.distributed.exchange import Shares
from soap_fast.distributed.together import State
from soap_fast.step.carry import Batch, Due
from soap_fast.step.refresh import FAILED, Refreshed

Factor = tuple[Tensor, int]  # a parameter and its mode


class Unwritten:
    """One refresh.

    Attributes:
        params: whose bases it is of; `owed` is what each owes, None once it is written.
        batches: their factors. As long as these are held, nobody else has their addresses.
        shares: who has computed which of them.
    """

    def __init__(self, due: Due, shares: Shares) -> None:
        self.params = [call.param for call in due.calls]
        self.owed = [call.owed for call in due.calls]
        self.batches, self.shares = due.batches, shares

    def left(self, state: State) -> list[Tensor]:
        """The parameters that owe it in this state."""
        pairs = zip(self.params, self.owed, strict=True)
        # A user may have put another entry there, or none.
        found = ((param, owed, state.get(param) or {}) for param, owed in pairs)
        return [p for p, owed, entry in found if owed is not None and entry.get("owed") is owed]

    def numbers(self, places: Mapping[int, int]) -> list[list[int]]:
        """Per batch its factors, the place of a parameter and a mode one behind the other.

        Args:
            places: of parameters, by their id.
        """
        own = [places[id(param)] for param in self.params]
        return [[n for index, mode in b.owners for n in (own[index], mode)] for b in self.batches]

    def drop_written(self, state: State) -> None:
        """What is written in this state is of no account any more."""
        left = {id(param) for param in self.left(state)}
        pairs = zip(self.params, self.owed, strict=True)
        self.owed = [owed if id(param) in left else None for param, owed in pairs]

    def failed(self) -> Iterator[Factor]:
        """Factors that their rank could not refresh, but for those that are written since; waits
        for the device.
        """
        for stack, place in self.shares.failed():
            index, mode = self.batches[stack].owners[place]
            if self.owed[index] is not None:
                yield self.params[index], mode


def owners_of(batches: Sequence[Batch], params: Sequence[Tensor]) -> list[list[Factor]]:
    """Per batch the parameter and mode of each factor."""
    return [[(params[index], mode) for index, mode in batch.owners] for batch in batches]


def refreshed_alone(
    op: Callable[..., Refreshed],
    due: Due,
    unwritten: Iterable[Unwritten],
    factors: Sequence[Tensor],
    bases: Sequence[Tensor],
    selections: Sequence[Tensor],
    allowed: Sequence[Tensor],
    tolerance: float,
) -> Refreshed:
    """What `op` makes of bases that all ranks have exchanged; those that have failed stay."""
    failed = {(id(param), mode) for one in unwritten for param, mode in one.failed()}
    if not failed:
        return op(factors, bases, selections, allowed, tolerance)
    owners = owners_of(due.batches, [call.param for call in due.calls])
    chosen = [[(id(param), mode) in failed for param, mode in batch] for batch in owners]
    pairs = zip(chosen, allowed, strict=True)
    left_out = [torch.tensor(one, dtype=torch.bool, device=may.device) for one, may in pairs]
    others = [may & ~left for may, left in zip(allowed, left_out, strict=True)]
    found = op(factors, bases, selections, others, tolerance)
    for outcome, may, left in zip(found.outcomes, allowed, left_out, strict=True):
        outcome.masked_fill_(may & left, FAILED)
    return found
