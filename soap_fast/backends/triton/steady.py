"""A step in which nothing but values, addresses and step options differs from the last one.

That is nearly every step of a training run, so here the host does no work per tensor that C loops
do not do for it: no plans, no checks of what was checked before, no objects. Whatever is not as it
was ends the steady state, and the whole way through `SOAP.step` is taken once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch

from soap_fast import ambient
from soap_fast.backends.triton.engine import Engine
from soap_fast.backends.triton.metadata import Metadata
from soap_fast.backends.triton.ops.clock import reads_lr
from soap_fast.backends.triton.refresh import RefreshOp
from soap_fast.backends.triton.turns import Turn, Turns
from soap_fast.interrupts import held
from soap_fast.options import OUR_OPTIONS, PLAN_OPTIONS, STEP_OPTIONS, step_options
from soap_fast.ranges import named
from soap_fast.step.call import Scaling, TensorCall, moving
from soap_fast.step.checks import check_lr
from soap_fast.step.state import State, entries
from soap_fast.values import plain_value

GRAD, ADDRESS = attrgetter("grad"), torch.Tensor.data_ptr
FIXED = (*PLAN_OPTIONS, *OUR_OPTIONS, "precondition_frequency")
FREE = tuple(name for name in STEP_OPTIONS if name != "precondition_frequency")
Groups = Sequence[dict[str, Any]]


class Steady:
    """What a step may take for granted.

    Attributes:
        left: calls until the first of the tensors has a refresh due.
        due: what the last step left to be refreshed, and whether each tensor took that step.
    """

    def __init__(
        self,
        groups: Groups,
        state: State,
        calls: Sequence[TensorCall],
        engine: Engine,
        *,
        refreshed: bool,
    ) -> None:
        """Every parameter of the groups has just had a call, in this order, by this engine.

        Args:
            refreshed: whether that call ended with a refresh. Only then the next ones are steady
                as well: where that is rare, nothing is prepared for it.
        """
        self.engine = engine
        self.due: tuple[Turn, torch.Tensor] | None = None
        self.turns = Turns(calls, engine.places, engine.holds) if refreshed else None
        self.entries = [entry for _, entry in entries(state)]
        self.others = len(state) - len(self.entries)  # what is kept there under other keys
        self.states = [call.state for call in calls]
        self.params = [call.param for call in calls]
        self.like_params = Metadata(self.params)
        self.like_grads = Metadata([call.grad for call in calls])
        self.sizes = [len(group["params"]) for group in groups]
        self.fixed = [_fixed(group) for group in groups]
        self.free = [_values(group) for group in groups]
        waits = chain.from_iterable(map(TensorCall.until_due, calls))
        self.left = min(waits, default=2**62)

    def step(self, groups: Groups, state: State, scaling: Scaling) -> bool:
        """Take the step, or return False where this is not a steady one; then nothing was done."""
        if [len(group["params"]) for group in groups] != self.sizes:
            return False
        found = [e for _, e in entries(state)] if self.others else list(state.values())
        if len(found) != len(self.entries) or not all(map(is_, found, self.entries)):
            return False
        params = (
            groups[0]["params"] if len(groups) == 1 else [*chain(*(g["params"] for g in groups))]
        )
        if not all(map(is_, params, self.params)):
            return False
        grads = list(map(GRAD, params))
        try:
            addresses = list(map(ADDRESS, grads))
        except (TypeError, RuntimeError):  # no gradient, or one without an address
            return False
        # `.data` gives a tensor, the same object at the same address, another shape or strides.
        if not self.like_grads.unchanged(grads) or not self.like_params.unchanged(params):
            return False
        turn = None
        if self.left <= 1:
            turn = self.turns.coming() if self.turns else None
            if turn is None:
                return False
        with held:  # what was uploaded is known to be, and what was launched is counted
            self.engine.follow_stream(grads)
            if not self._options_are_known(groups):
                return False
            self.engine.accept(addresses, params)
            with named("update"):
                torch.autograd.graph.increment_version(params)
                if turn is None:
                    left = map(setattr, (self,), ("left",), (self.left - 1,))
                    self.engine.run(scaling, moving(self.states), left)
                else:
                    taken, noting = self.engine.noting_taken()
                    left = map(setattr, (self,) * 2, ("left", "due"), (turn.until, (turn, taken)))
                    parts = (noting, moving(self.states), turn.owing(taken), left)
                    self.engine.run(scaling, *parts)
        return True

    def refresh(self, op: RefreshOp) -> None:
        """Make the refreshes that fell due by the last step."""
        if self.due is None:
            return
        (turn, taken), self.due = self.due, None
        with ambient.neutral({self.engine.device.type}), named("refresh"):
            self.engine.refresh_turn(turn, taken, op)

    def _options_are_known(self, groups: Groups) -> bool:
        """Step options may change, and go to the device; others end the steady state."""
        for group, fixed in zip(groups, self.fixed, strict=True):
            if _fixed(group) != fixed:
                return False
        free = [_values(group) for group in groups]
        if free != self.free:
            options = [step_options(group) for group in groups]
            for option, group in zip(options, groups, strict=True):
                if not reads_lr(option.lr):
                    return False
                for param in group["params"][:1]:
                    try:
                        check_lr(option.lr, param)
                    except ValueError:  # the whole way names the parameter
                        return False
            pairs = zip(options, self.sizes, strict=True)
            self.engine.upload_options([option for option, size in pairs for _ in range(size)])
            self.free = free
        return True


def _fixed(group: dict[str, Any]) -> list[Any]:
    return [plain_value(name, group[name]) for name in FIXED]


def _values(group: dict[str, Any]) -> list[Any]:
    """Of an lr in a tensor: its value on the CPU, where it lies on another device."""
    values = [plain_value(name, group[name]) for name in FREE]
    lr = values[0]
    if isinstance(lr, torch.Tensor):
        values[0] = float(lr) if lr.device.type == "cpu" else (lr.device, lr.data_ptr(), lr.dtype)
    return values
