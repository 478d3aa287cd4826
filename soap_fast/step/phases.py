"""The phases of factors under the staggered schedule, so that no step is slow.

All factors of a tensor share a phase unless one alone costs more than a step's share of the whole,
the sum of d³ over f. Phases are given once, by cost to the step with the least, and saved: tensors
that come later move nobody. What a phase means stands in `schedule.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import setitem
from typing import Any, NamedTuple

from soap_fast.interrupts import at_once
from soap_fast.step.call import TensorCall
from soap_fast.step.state import State

Phases = list[int | None]  # per mode, None without a factor


class Unit(NamedTuple):
    """Factors that get one phase together."""

    cost: int
    call: int  # index of its tensor's call
    modes: tuple[int, ...]


def assign_missing_phases(
    calls: Iterable[TensorCall], groups: Iterable[dict[str, Any]], state: State
) -> None:
    """Give tensors under the staggered schedule their phases, once.

    Args:
        calls: tensors about to have a call after their first.
        groups: of the optimizer.
        state: of the optimizer.
    """
    newcomers: dict[int, list[TensorCall]] = {}
    for call in calls:
        if call.is_staggered and call.state.get("phases") is None:
            newcomers.setdefault(call.options.precondition_frequency, []).append(call)
    for frequency, members in newcomers.items():
        alike = [group for group in groups if group["precondition_frequency"] == frequency]
        once = dict.fromkeys(param for group in alike for param in group["params"])
        entries = (state.get(param, {}) for param in once)
        assign_phases(members, (e for e in entries if e.get("phases") is not None))


def assign_phases(calls: Sequence[TensorCall], peers: Iterable[dict[str, Any]]) -> None:
    """Give phases to tensors that have none, all under one precondition_frequency.

    Args:
        calls: tensors without phases, about to have a call after their first.
        peers: entries of `optimizer.state` that have phases under the same frequency.
    """
    frequency = calls[0].options.precondition_frequency
    loads = [0] * frequency  # cost of the refreshes of this step, the next one, ..
    for entry in peers:
        for phase, k in zip(entry["phases"], entry["GG"], strict=True):
            if phase is not None:
                loads[(phase - entry["calls"]) % frequency] += k.shape[0] ** 3

    costs = [[0 if size is None else size**3 for size in call.plan.factors] for call in calls]
    share = (sum(loads) + sum(map(sum, costs))) / frequency
    phases: list[Phases] = [[None] * len(call.plan.factors) for call in calls]
    for unit in sorted(_units(costs, share), key=lambda unit: -unit.cost):  # stable: first come
        step = loads.index(min(loads))
        loads[step] += unit.cost
        for mode in unit.modes:
            calls_then = step + calls[unit.call].state["calls"]
            phases[unit.call][mode] = (calls_then - 1) % frequency + 1
    at_once(map(setitem, [call.state for call in calls], repeat("phases"), phases))


def _units(costs: Sequence[Sequence[int]], share: float) -> Iterable[Unit]:
    """A unit per tensor, and one more for each factor that alone exceeds a step's share."""
    for index, by_mode in enumerate(costs):
        together = []
        for mode, cost in enumerate(by_mode):
            if cost > share:
                yield Unit(cost, index, (mode,))
            elif cost:
                together.append(mode)
        if together:
            yield Unit(sum(by_mode[mode] for mode in together), index, tuple(together))
