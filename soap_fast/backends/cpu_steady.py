"""The fast path of the CPU's step: tables as at the last one, but for addresses and options."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from operator import getitem, sub

import torch

from soap_fast import ambient
from soap_fast.backends.cpu_step import CpuStep
from soap_fast.backends.unchanged import Groups, Unchanged, whereabouts_of
from soap_fast.ranges import named
from soap_fast.step.call import Scaling, TensorCall, moving
from soap_fast.step.state import State


class SteadyCpuStep:
    """What a step of the CPU may take for granted; a call with refreshes is taken the whole way.

    Attributes:
        left: calls until the first of the tensors has a refresh due.
        passed: calls since this was made.
    """

    def __init__(
        self, groups: Groups, state: State, calls: Sequence[TensorCall], step: CpuStep
    ) -> None:
        """Every parameter of the groups has just had a call, in this order, by this step."""
        self.step = step
        self.states = [call.state for call in calls]
        self.unchanged = Unchanged(groups, state, calls)
        self.whereabouts = whereabouts_of(self.states)
        self.clocks: list[int] = [state["calls"] for state in self.states]
        self.left = min(chain.from_iterable(map(TensorCall.until_due, calls)), default=2**62)
        self.passed = 0

    def take(self, groups: Groups, state: State, scaling: Scaling) -> bool:
        """Take the step, or return False where this is not a steady one; then nothing was done."""
        if self.left <= 1 or scaling.given:
            return False
        found = self.unchanged.look(groups, state)
        if found is None or not self.whereabouts.same() or not self._clocks_are_known():
            return False
        options = self.unchanged.options(groups, reads_lr)
        if options is None:
            return False
        counted = map(setattr, (self,) * 2, ("left", "passed"), (self.left - 1, self.passed + 1))
        with ambient.neutral({"cpu"}), named("update"):
            self.step.again(self.unchanged.params, found, options, moving(self.states), counted)
        return True

    def _clocks_are_known(self) -> bool:
        """Where a user has put others, refreshes fall due at other calls."""
        clocks = map(getitem, self.states, repeat("calls"))
        return set(map(sub, clocks, self.clocks)) == {self.passed}


def reads_lr(lr: float | torch.Tensor) -> bool:
    """Whether a change of lr is noticed: one on another device may change where it lies."""
    return not isinstance(lr, torch.Tensor) or lr.device.type == "cpu"
