"""The refreshes that recur while a steady state lasts: what falls due by which call, found once.

Which bases a call refreshes repeats after the least common multiple of the frequencies. The first
time a call's turn comes its tensors are looked at one by one, from then on no more than that their
state lies where it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from math import lcm
from operator import getitem, is_not, setitem, sub

import torch

from soap_fast.call import Owed, TensorCall
from soap_fast.fused.metadata import Metadata
from soap_fast.fused.refresher import LONGEST_PERIOD, DueSet

TENSORS = ("step", "skipped", "held_back", "exp_avg", "exp_avg_sq", "refreshes", "off_diagonal")
MATRICES = ("GG", "Q")
there = partial(is_not, None)


@dataclass
class Turn:
    """What one call refreshes.

    Attributes:
        calls: with something due.
        places: of their tensors in the engine.
        modes: that are due, per call.
        until: calls from this one to the next that refreshes something.
        sets: the same as the refresher has it, once it was asked.
    """

    calls: list[TensorCall]
    places: list[int]
    modes: list[list[int]]
    until: int
    sets: list[DueSet] | None = None

    def owing(self, taken: torch.Tensor) -> Iterable[object]:
        """For `at_once` behind the update: what falls due by it is owed.

        Args:
            taken: [n + 1] bool, by place, whether a tensor takes its step.
        """
        by_place = taken.unbind()
        flags = map(getitem, repeat(by_place), self.places)
        owed = list(map(Owed._make, zip(self.modes, flags, strict=True)))
        return map(setitem, [call.state for call in self.calls], repeat("owed"), owed)


class Turns:
    """Of tensors that all have a call at every step."""

    def __init__(self, calls: Sequence[TensorCall], places: dict[int, int]) -> None:
        """These have just had a call.

        Args:
            places: in the engine, by id of a parameter.
        """
        self.calls = [replace(call, grad=call.param) for call in calls]  # gradients come and go
        self.places = [places[id(call.param)] for call in calls]
        self.states = [call.state for call in calls]
        self.clocks = list(self._clocks())
        tensors = list(self._tensors())
        self.addresses = list(map(torch.Tensor.data_ptr, tensors))
        self.like = Metadata(tensors)
        with_factors = (call for call in calls if any(call.plan.factors))
        period = lcm(*(call.options.precondition_frequency for call in with_factors))
        self.period = period if period <= LONGEST_PERIOD else 0
        self.turns: dict[int, Turn] = {}

    def coming(self) -> Turn | None:
        """What the coming call refreshes; None where clocks or the state are not as they were."""
        passed: int = self.states[0]["calls"] - self.clocks[0]
        if set(map(sub, self._clocks(), self.clocks)) != {passed}:
            return None
        tensors = list(self._tensors())
        if list(map(torch.Tensor.data_ptr, tensors)) != self.addresses:
            return None
        if not self.like.unchanged(tensors):
            return None
        if not self.period:
            return self._found()
        place = passed % self.period
        if place not in self.turns:
            self.turns[place] = self._found()
        return self.turns[place]

    def _clocks(self) -> Iterator[int]:
        return map(getitem, self.states, repeat("calls"))

    def _tensors(self) -> Iterator[torch.Tensor]:
        """All of the state that launches of a step or a refresh reach."""
        lists = chain.from_iterable(map(getitem, self.states, repeat(key)) for key in MATRICES)
        alone = chain.from_iterable(map(getitem, self.states, repeat(key)) for key in TENSORS)
        return chain(alone, filter(there, chain.from_iterable(lists)))

    def _found(self) -> Turn:
        due = [call.due_after(call.state["calls"]) for call in self.calls]
        chosen = [index for index, modes in enumerate(due) if modes]
        until = min(
            left - 1 if left > 1 else call.options.precondition_frequency
            for call in self.calls
            for left in calls_until_due(call)
        )
        return Turn(
            [self.calls[i] for i in chosen],
            [self.places[i] for i in chosen],
            [due[i] for i in chosen],
            until,
        )


def calls_until_due(call: TensorCall) -> Iterator[int]:
    """Per factor how many calls from now its next refresh is due, 1 for the next call."""
    frequency = call.options.precondition_frequency
    calls: int = call.state["calls"]
    staggered = call.options.refresh_schedule == "staggered"
    for mode, size in enumerate(call.plan.factors):
        if size is not None:
            phase = call.state["phases"][mode] if staggered else frequency
            yield frequency - (calls - 1 - phase) % frequency
