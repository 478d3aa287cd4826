"""The refreshes that recur while a steady state lasts: what falls due by which call, found once.

Which bases a call refreshes repeats after the least common multiple of the frequencies. The first
time a call's turn comes its tensors are looked at one by one, from then on no more than whether
their state lies where it did: of each tensor once in a period.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from operator import setitem

import torch

from soap_fast.backends.triton.refresh import LONGEST_PERIOD, DueSet
from soap_fast.backends.unchanged import Whereabouts, whereabouts_of
from soap_fast.step.call import Owed, TensorCall, calls_since
from soap_fast.step.schedule import period


@dataclass(eq=False)
class Turn:
    """What one call refreshes.

    Attributes:
        calls: with something due.
        places: of their tensors in the engine.
        modes: that are due, per call.
        until: calls from this one to the next that refreshes something.
        whereabouts: of the state that is looked at ahead of this call.
        taken: [n + 1] bool, by place, whether a tensor takes its step; written at each turn.
        sets: the same as the refresher has it, once it was asked.
        states: of the calls.
    """

    calls: list[TensorCall]
    places: list[int]
    modes: list[list[int]]
    until: int
    whereabouts: Whereabouts
    taken: torch.Tensor
    sets: list[DueSet] | None = None

    def __post_init__(self) -> None:
        self.states = [call.state for call in self.calls]
        fields = zip(self.modes, self.places, strict=True)
        self.owed = [Owed(modes, self.taken, place) for modes, place in fields]

    def owing(self) -> Iterable[object]:
        """For `at_once` behind the update: what falls due by it is owed.

        Nobody owes it any more when the turn comes again. A refresh that was not made has ended
        the steady state, and its turns with it.
        """
        return map(setitem, self.states, repeat("owed"), self.owed)


class Turns:
    """Of tensors that all have a call at every step."""

    def __init__(
        self,
        calls: Sequence[TensorCall],
        places: dict[int, int],
        holds: Callable[[Sequence[TensorCall]], bool],
        flags: Callable[[], torch.Tensor],
    ) -> None:
        """These have just had a call.

        Args:
            places: in the engine, by id of a parameter.
            holds: whether the engine knows the state of these calls to lie where it does.
            flags: makes room for a flag of each tensor of the engine.
        """
        self.calls = [replace(call, grad=call.param) for call in calls]  # gradients come and go
        self.places = [places[id(call.param)] for call in calls]
        self.holds, self.flags = holds, flags
        self.states = [call.state for call in calls]
        self.clocks = [state["calls"] for state in self.states]
        with_factors = (call for call in calls if any(call.plan.factors))
        found = period(call.options.precondition_frequency for call in with_factors)
        self.period = found if found <= LONGEST_PERIOD else 0
        self.turns: dict[int, Turn] = {}

    def coming(self) -> Turn | None:
        """What the coming call refreshes; None where clocks or the state are not as they were."""
        passed = calls_since(self.states, self.clocks) if self.period else None
        if passed is None:
            return None
        place = passed % self.period
        turn = self.turns.get(place)
        if turn is None:
            turn = self._found()
            if turn is not None:
                self.turns[place] = turn
        return turn if turn is not None and turn.whereabouts.same() else None

    def _found(self) -> Turn | None:
        due = [call.due_after(call.state["calls"]) for call in self.calls]
        chosen = [index for index, modes in enumerate(due) if modes]
        calls = [self.calls[i] for i in chosen]
        # What never falls due is looked at with the first that does.
        never = [c for c in self.calls if not self.turns and not any(c.plan.factors)]
        if not self.holds([*calls, *never]):
            return None
        until = min(
            left - 1 if left > 1 else call.options.precondition_frequency
            for call in self.calls
            for left in call.until_due()
        )
        places, modes = [self.places[i] for i in chosen], [due[i] for i in chosen]
        states = [call.state for call in (*calls, *never)]
        return Turn(calls, places, modes, until, whereabouts_of(states), self.flags())
