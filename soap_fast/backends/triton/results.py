"""Results of a refresh that recurs: memory that it writes each time its turn comes.

Orders, outcomes and shares are small, some numbers for each row of a factor, and stay from one time
to the next. Carrying matrices are as large as the bases. They lie in memory of a step as far as
they find room there; others are made anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import is_

import torch
from torch import Tensor

from soap_fast.backends.metadata import ADDRESS, packed
from soap_fast.backends.triton.rounds import Room, Spare
from soap_fast.step.refresh import Lent, Refreshed


class KeptResults:
    """Of one set of factors, whose stacks lie on one device."""

    def __init__(self, factors: Sequence[Tensor], selections: Sequence[Tensor], room: Room) -> None:
        """
        Args:
            factors: stacks [n, d, d].
            selections: [k] int32 per stack.
            room: memory of the step that the operator may use.
        """
        self.factors, self.selections, self.room = factors, list(selections), room
        self.shapes = [
            (len(chosen), stack.shape[1], stack.shape[1])
            for stack, chosen in zip(factors, selections, strict=True)
        ]
        pairs = list(zip(factors, self.shapes, strict=True))
        spare = Spare(room.carries)
        self.orders = [k.new_empty(shape[:2], dtype=torch.int64) for k, shape in pairs]
        self.carries = [spare.place(k, shape) for k, shape in pairs]
        self.outcomes = [k.new_empty(shape[:1], dtype=torch.int64) for k, shape in pairs]
        self.off_diagonals = [k.new_empty(shape[:1]) for k, shape in pairs]
        there = [carry for carry in self.carries if carry is not None]
        # All of it, and where that begins, if nothing is made anew.
        self._whole: tuple[Refreshed, bytes] | None = None
        if len(there) == len(pairs):
            found = Refreshed(self.orders, there, self.outcomes, self.off_diagonals)
            self._whole = found, starts_of(found)

    def in_use(self) -> Iterator[Tensor]:
        """What has memory of its own."""
        return chain(self.orders, self.outcomes, self.off_diagonals)

    def lent(self) -> Lent:
        """Memory of the step, and these results to who refreshes all of the set."""
        return Lent(Spare(self.room.carries).room, self.room.workspace, self.of)

    def of(self, selections: Sequence[Tensor]) -> Refreshed | None:
        """Results of these selections; None where they are not the set's own."""
        if len(selections) != len(self.selections):
            return None
        if not all(map(is_, selections, self.selections)):
            return None
        return self._with_carries() if self._whole is None else self._whole[0]

    def starts(self, results: Refreshed) -> bytes:  # [4 * stacks] int64
        """As `starts_of`, which is known of these results where nothing is made anew."""
        if self._whole is None or not all(map(is_, results, self._whole[0])):
            return starts_of(results)
        return self._whole[1]

    def _with_carries(self) -> Refreshed:
        there = [
            like.new_empty(shape) if carry is None else carry
            for like, shape, carry in zip(self.factors, self.shapes, self.carries, strict=True)
        ]
        return Refreshed(self.orders, there, self.outcomes, self.off_diagonals)


def starts_of(results: Refreshed) -> bytes:  # [4 * stacks] int64
    """Addresses at which the results lie, packed, in the order that address slots count them."""
    found = [*chain.from_iterable(results)]
    assert all(map(torch.Tensor.is_contiguous, found))
    return packed(map(ADDRESS, found))
