"""Whether only values, addresses of gradients and step options differ from the last step.

That is nearly every step of a training run. A backend then takes it in a shorter way than
`SOAP.step`, without plans, checks of what was checked before, and objects: here the host does no
work per tensor that C loops do not do for it. Whatever is not as it was ends the steady state, and
the whole way is taken once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from operator import getitem, is_, is_not
from typing import Any, Protocol

import torch

from soap_fast import extension
from soap_fast.backends.metadata import ADDRESS, Found, Metadata, parameters_seen
from soap_fast.options import OUR_OPTIONS, PLAN_OPTIONS, STEP_OPTIONS, StepOptions, step_options
from soap_fast.step.call import TensorCall
from soap_fast.step.checks import check_lr
from soap_fast.step.state import State, entries
from soap_fast.values import plain_value

FIXED = (*PLAN_OPTIONS, *OUR_OPTIONS, "precondition_frequency")
FREE = tuple(name for name in STEP_OPTIONS if name != "precondition_frequency")
SINGLE = ("step", "skipped", "refreshes", "off_diagonal", "exp_avg", "exp_avg_sq")
MATRICES = ("GG", "Q")
Groups = Sequence[dict[str, Any]]
there = partial(is_not, None)


class Unchanged:
    """Of an optimizer of whose parameters every one has just had a call, in this order.

    Attributes:
        params: of all groups.
    """

    def __init__(self, groups: Groups, state: State, calls: Sequence[TensorCall]) -> None:
        self.entries = [entry for _, entry in entries(state)]
        self.others = len(state) - len(self.entries)  # what is kept there under other keys
        self.params = [call.param for call in calls]
        self.seen = parameters_seen(self.params, [call.grad for call in calls])
        self.sizes = [len(group["params"]) for group in groups]
        self.fixed = [_fixed(group) for group in groups]
        self.free = [_values(group) for group in groups]

    def look(self, groups: Groups, state: State) -> Found | None:
        """Addresses of gradients and parameters; None where anything else is not as it was."""
        if [len(group["params"]) for group in groups] != self.sizes:
            return None
        found = [e for _, e in entries(state)] if self.others else list(state.values())
        if len(found) != len(self.entries) or not all(map(is_, found, self.entries)):
            return None
        params = [*chain.from_iterable(group["params"] for group in groups)]
        if not all(map(is_, params, self.params)):
            return None
        return self.seen.look(params)

    def options(
        self, groups: Groups, reads_lr: Callable[[float | torch.Tensor], bool]
    ) -> list[StepOptions] | None:
        """Of each parameter, where step options are others than last; none where they are not.

        Args:
            reads_lr: whether the backend can.

        Returns:
            None where an option is not as it was that may not change, or cannot be used.
        """
        for group, fixed in zip(groups, self.fixed, strict=True):
            if _fixed(group) != fixed:
                return None
        free = [_values(group) for group in groups]
        if free == self.free:
            return []
        options = [step_options(group) for group in groups]
        for option, group in zip(options, groups, strict=True):
            if not reads_lr(option.lr):
                return None
            for param in group["params"][:1]:
                try:
                    check_lr(option.lr, param)
                except ValueError:  # the whole way names the parameter
                    return None
        self.free = free
        return [o for o, size in zip(options, self.sizes, strict=True) for _ in range(size)]


class Whereabouts(Protocol):
    """Where the state of some tensors lies."""

    def same(self) -> bool:
        """Whether it lies there still."""


def whereabouts_of(states: Sequence[dict[str, Any]]) -> Whereabouts:
    """Of the state of some tensors; from C++ (csrc/unchanged/) where that is there."""
    compiled = extension.unchanged()
    if compiled is not None:
        try:
            there: Whereabouts = compiled.Whereabouts(list(states), SINGLE, MATRICES)
            return there
        except TypeError:  # what a user has put in the place of tensors
            pass
    return PlainWhereabouts(states)


class PlainWhereabouts:
    """`Whereabouts` in Python."""

    def __init__(self, states: Sequence[dict[str, Any]]) -> None:
        self.states = states
        tensors = list(self._tensors())
        self.addresses = list(map(ADDRESS, tensors))
        self.like = Metadata(tensors)

    def same(self) -> bool:
        tensors = list(self._tensors())
        if list(map(ADDRESS, tensors)) != self.addresses:
            return False
        return self.like.unchanged(tensors)

    def _tensors(self) -> Iterator[torch.Tensor]:
        """What may have moved within the same objects, as by tools that offload a state."""
        matrices = chain.from_iterable(self._entries(MATRICES))
        return chain(self._entries(SINGLE), filter(there, matrices))

    def _entries(self, keys: Sequence[str]) -> Iterator[Any]:
        return chain.from_iterable(map(getitem, self.states, repeat(key)) for key in keys)


def _fixed(group: dict[str, Any]) -> list[Any]:
    return [plain_value(name, group[name]) for name in FIXED]


def _values(group: dict[str, Any]) -> list[Any]:
    """Of an lr in a tensor: its value on the CPU, where it lies on another device."""
    values = [plain_value(name, group[name]) for name in FREE]
    lr = values[0]
    if isinstance(lr, torch.Tensor):
        if lr.layout != torch.strided or lr.numel() != 1:
            values[0] = object()  # equal to nothing: it is looked at, and refused
        elif lr.device.type == "cpu":
            values[0] = float(lr)
        else:
            values[0] = (lr.device, lr.data_ptr(), lr.dtype)
    return values
