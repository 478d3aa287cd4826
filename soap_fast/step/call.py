"""One call of the optimizer on one tensor: everything a backend needs to carry it out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import add, getitem, setitem, sub
from typing import Any, NamedTuple

import torch

from soap_fast import extension
from soap_fast.options import StepOptions
from soap_fast.step import schedule
from soap_fast.step.plan import TensorPlan


class Scaling(NamedTuple):
    """What a gradient scaler (`torch.amp.GradScaler`) hands an optimizer for one step.

    Attributes:
        grad_scale: gradients are this many times too large; one element, on a device.
        found_inf: not zero where no tensor may take the step; one element.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None

    @property
    def given(self) -> bool:
        return self.grad_scale is not None or self.found_inf is not None


UNSCALED = Scaling()


class Owed(NamedTuple):
    """A refresh that fell due by a call of a tensor and is not made yet.

    Attributes:
        modes: whose bases it is of.
        flags: [] bool, or [n] bool of which the one at `place` counts.
    """

    modes: list[int]
    flags: torch.Tensor
    place: int | None = None

    @property
    def taken(self) -> torch.Tensor:  # [] bool
        """Whether the call's step was taken; where not, nothing is refreshed."""
        return self.flags if self.place is None else self.flags[self.place]


@dataclass(frozen=True)
class TensorCall:
    """A parameter with a gradient, checked.

    Attributes:
        param: the parameter, any floating dtype, any strides.
        grad: its gradient, same shape and device.
        state: the parameter's entry in `optimizer.state`.
        plan: which of its modes carry a factor.
        options: the options of its group at this call.
        scaling: of the gradient.
    """

    param: torch.Tensor
    grad: torch.Tensor
    state: dict[str, Any]
    plan: TensorPlan
    options: StepOptions
    scaling: Scaling = UNSCALED

    @property
    def is_first(self) -> bool:
        return not self.state["calls"]

    @property
    def owed(self) -> Owed | None:
        found: Owed | None = self.state.get("owed")
        return found

    def modes_due(self) -> list[int]:
        """The modes whose bases this call, already counted in `calls`, refreshes at its end."""
        owed = self.owed
        return self.due_after(self.state["calls"] - 1) if owed is None else owed.modes

    def due_after(self, after_first: int) -> list[int]:
        """The modes whose refresh falls to the call with so many before it, the first left out."""
        frequency = self.options.precondition_frequency
        return schedule.modes_due(self.plan.factors, after_first, frequency, self._phases())

    def until_due(self) -> Iterator[int]:
        """Per factor how many calls from now its next refresh is due, 1 for the next call."""
        frequency, calls = self.options.precondition_frequency, self.state["calls"]
        return schedule.calls_until_due(self.plan.factors, calls, frequency, self._phases())

    @property
    def is_staggered(self) -> bool:
        return schedule.is_staggered(self.options.refresh_schedule)

    def _phases(self) -> schedule.Phases | None:
        phases: schedule.Phases | None = self.state["phases"] if self.is_staggered else None
        return phases

    def gather(self) -> torch.Tensor:
        """The gradient as the step computes with it: unscaled, contiguous, in the state's dtype."""
        grad = self.grad.detach().to(state_dtype(self.param)).contiguous()
        scale = self.scaling.grad_scale
        if scale is None:
            return grad
        return grad * scale.to(grad.device, grad.dtype, non_blocking=True).reciprocal()

    def is_usable(self, grad: torch.Tensor) -> torch.Tensor:  # [] bool
        """Whether a step may use the gathered gradient; decided on its device, without a sync.

        The test is that the sum of its squares is finite in the state's dtype. NaN and inf fail it,
        and so does a gradient whose squares overflow. Every entry of a Gram matrix, and every
        square in a rotated basis, is bounded by that sum: a gradient that passes can poison neither
        K nor v.
        """
        usable = grad.square().sum().isfinite()
        found = self.scaling.found_inf
        if found is None:
            return usable
        return usable & (found.to(grad.device, non_blocking=True) == 0).reshape(())


Parts = tuple[Iterable[object], ...]  # of `at_once`


def counting(calls: Sequence[TensorCall], taken: Sequence[torch.Tensor]) -> Parts:
    """For `at_once` behind what they write: calls are counted, and owe what falls due by them."""
    owing, owed = [], []
    for call, flag in zip(calls, taken, strict=True):
        modes = call.due_after(call.state["calls"])
        if modes:
            owing.append(call.state)
            owed.append(Owed(modes, flag))
    states = [call.state for call in calls]
    return moving(states), map(setitem, owing, repeat("owed"), owed)


def moving(states: Sequence[dict[str, Any]]) -> Iterable[object]:
    """For `at_once`: `calls` of these entries, by one."""
    compiled = extension.unchanged()
    if compiled is not None:
        return map(compiled.count_calls, (list(states),), ("calls",))
    clocks = map(add, map(getitem, states, repeat("calls")), repeat(1))
    return map(setitem, states, repeat("calls"), clocks)


def calls_since(states: list[dict[str, Any]], clocks: list[int]) -> int | None:
    """By how many calls these entries have all moved on since `calls` were these; None if not."""
    compiled = extension.unchanged()
    if compiled is not None:
        since: int | None = compiled.calls_since(states, "calls", clocks)
        return since
    passed = set(map(sub, map(getitem, states, repeat("calls")), clocks))
    return passed.pop() if len(passed) == 1 else None


def count_writes(tensors: list[torch.Tensor]) -> None:
    """A graph that has saved one of these tensors will raise, for it is written."""
    compiled = extension.unchanged()
    count = torch.autograd.graph.increment_version if compiled is None else compiled.count_writes
    count(tensors)


def paying(states: Sequence[dict[str, Any]]) -> Iterable[object]:
    """For `at_once` behind what it writes: the refresh that these entries owe is made."""
    return map(dict.pop, states, repeat("owed"), repeat(None))


def state_dtype(param: torch.Tensor) -> torch.dtype:
    """float64 for float64 parameters, float32 for all others: what state and arithmetic use."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32
