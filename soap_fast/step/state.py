"""Where the state lives: K and Q of all factors of one size in one stack, moments per tensor.

`optimizer.state[p]` holds, for a parameter of shape [d_1 .. d_k]:

    calls       int            calls with a gradient; drives first call and refreshes
    skipped     [] int64       calls left out because the gradient was not finite
    step        [] float32     updates taken; drives the bias correction
    exp_avg     [d_1 .. d_k]   first moment, in the rotated basis
    exp_avg_sq  [d_1 .. d_k]   second moment, in the rotated basis
    GG, Q       lists with one entry per mode: a view [d, d] into a stack, or None
    refreshes   [3] int64      bases refreshed, kept, failed, counted over all modes
    off_diagonal [modes]       share of QᵀKQ off its diagonal before the last refresh, or NaN
    phases      list           with a staggered schedule: the phase of each mode's factor, or None;
                               None before they are given, and under another schedule
    owed        Owed           between an update and the refresh that falls due by it, and where a
                               step was left there or its results travel: the next step makes it up

Before its first call a parameter has no entry, or `calls` = 0 and `skipped` alone. Tensors are
float32, float64 for float64 parameters, on the parameter's device. The entries are the only truth:
a stack is nothing but the memory that views of one size share.

Other keys of an entry, and keys of `optimizer.state` that are no tensors, belong to a subclass or
the user, as in torch's optimizers: nobody here reads them, and they are saved, loaded and copied.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from soap_fast.step.call import state_dtype
from soap_fast.step.plan import TensorPlan

State = Mapping[torch.Tensor, dict[str, Any]]
ENTRY_KEYS = ("calls", "skipped", "step", "exp_avg", "exp_avg_sq", "GG", "Q")
LATER_KEYS = ("refreshes", "off_diagonal", "phases")  # which old checkpoints do not have
NOT_SAVED = ("owed",)  # it is, in its group


class StackKey(NamedTuple):
    """What factors must share to stand in one stack."""

    device: torch.device
    dtype: torch.dtype
    size: int


class Owner(NamedTuple):
    """The mode of a parameter that a factor belongs to."""

    param: torch.Tensor
    mode: int


@dataclass
class Stack:
    """Factors of one size: slot s of `K` and `Q` belongs to `owners[s]`."""

    owners: list[Owner]
    K: torch.Tensor  # [n, d, d]
    Q: torch.Tensor  # [n, d, d]


Stacks = dict[StackKey, Stack]


def allocate(plans: Iterable[tuple[torch.Tensor, TensorPlan]]) -> Stacks:
    """Stacks for the factors of some parameters, uninitialised and not yet part of any state."""
    owners: dict[StackKey, list[Owner]] = {}
    for param, plan in plans:
        for mode, size in enumerate(plan.factors):
            if size is not None:
                key = StackKey(param.device, state_dtype(param), size)
                owners.setdefault(key, []).append(Owner(param, mode))
    return {key: Stack(group, *_empty_pair(key, len(group))) for key, group in owners.items()}


def _empty_pair(key: StackKey, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (n, key.size, key.size)
    return (
        torch.empty(shape, dtype=key.dtype, device=key.device),
        torch.empty(shape, dtype=key.dtype, device=key.device),
    )


def entries(state: Mapping[Any, Any]) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """What of `optimizer.state` belongs to parameters."""
    return ((key, entry) for key, entry in state.items() if isinstance(key, torch.Tensor))


def restack(state: State, only: Container[StackKey] | None = None) -> Stacks:
    """Copy the factors of a state, wherever they lie, into one stack per size.

    Args:
        state: entries by parameter.
        only: leave out other sizes than these.
    """
    found: dict[StackKey, list[tuple[Owner, torch.Tensor, torch.Tensor]]] = {}
    for param, entry in entries(state):
        for mode, (k, q) in enumerate(zip(entry.get("GG", ()), entry.get("Q", ()), strict=True)):
            if k is None:
                continue
            key = StackKey(k.device, k.dtype, k.shape[0])
            if only is None or key in only:
                found.setdefault(key, []).append((Owner(param, mode), k, q))
    return {
        key: Stack(
            [owner for owner, _, _ in group],
            torch.stack([k for _, k, _ in group]),
            torch.stack([q for _, _, q in group]),
        )
        for key, group in found.items()
    }


def grown(state: State, newcomers: Stacks) -> Stacks:
    """The newcomers' stacks, joined by what the state has of the same sizes; changes neither."""
    grown_ones = dict(newcomers)
    for key, old in restack(state, only=newcomers).items():
        new = newcomers[key]
        grown_ones[key] = Stack(
            old.owners + new.owners, torch.cat([old.K, new.K]), torch.cat([old.Q, new.Q])
        )
    return grown_ones


def fresh(param: torch.Tensor, plan: TensorPlan, skipped: torch.Tensor) -> dict[str, Any]:
    """Entry of a parameter after its first call, but for GG and Q, which `bind` fills in."""
    dtype, device = state_dtype(param), param.device
    return {
        "calls": 1,
        "skipped": skipped,
        "step": torch.zeros((), dtype=torch.float32, device=device),
        "exp_avg": torch.zeros(plan.shape, dtype=dtype, device=device),
        "exp_avg_sq": torch.zeros(plan.shape, dtype=dtype, device=device),
        "GG": [None] * len(plan.modes),
        "Q": [None] * len(plan.modes),
        **refresh_counters(param, plan),
        "phases": None,
    }


def refresh_counters(param: torch.Tensor, plan: TensorPlan) -> dict[str, torch.Tensor]:
    """What is known of the refreshes of a tensor that had none."""
    dtype, device = state_dtype(param), param.device
    return {
        "refreshes": torch.zeros(3, dtype=torch.int64, device=device),
        "off_diagonal": torch.full((len(plan.modes),), torch.nan, dtype=dtype, device=device),
    }


def not_begun(param: torch.Tensor) -> dict[str, Any]:
    """Entry of a parameter that has had no usable gradient yet."""
    return {"calls": 0, "skipped": torch.zeros((), dtype=torch.int64, device=param.device)}


def entry_of(state: State, param: torch.Tensor) -> dict[str, Any]:
    """A parameter's entry; before it has one, `not_begun`'s with what else stands under it."""
    entry = state.get(param)
    if entry and "calls" in entry:
        return entry
    return {**(entry or {}), **not_begun(param)}


def bind(stacks: Stacks, state: State) -> None:
    """Point GG and Q of the owners in these stacks at their slots."""
    for stack in stacks.values():
        for slot, (param, mode) in enumerate(stack.owners):
            state[param]["GG"][mode] = stack.K[slot]
            state[param]["Q"][mode] = stack.Q[slot]
