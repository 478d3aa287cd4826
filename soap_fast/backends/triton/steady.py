"""The fast path: a step in which nothing but values, addresses and step options is another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from soap_fast import ambient
from soap_fast.backends.metadata import GRAD
from soap_fast.backends.triton.engine import Engine
from soap_fast.backends.triton.ops.clock import reads_lr
from soap_fast.backends.triton.turns import Turn, Turns
from soap_fast.backends.unchanged import Groups, Unchanged
from soap_fast.interrupts import held
from soap_fast.ranges import named
from soap_fast.step.call import Scaling, TensorCall, count_writes, moving
from soap_fast.step.carry import RefreshOp
from soap_fast.step.state import State


class Steady:
    """What a step may take for granted.

    Attributes:
        left: calls until the first of the tensors has a refresh due.
        due: what the last step left to be refreshed.
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
        self.due: Turn | None = None
        how = engine.places, engine.holds, engine.flags
        self.turns = Turns(calls, *how) if refreshed else None
        self.unchanged = Unchanged(groups, state, calls)
        self.states = [call.state for call in calls]
        waits = chain.from_iterable(map(TensorCall.until_due, calls))
        self.left = min(waits, default=2**62)

    def step(self, groups: Groups, state: State, scaling: Scaling) -> bool:
        """Take the step, or return False where this is not a steady one; then nothing was done."""
        found = self.unchanged.look(groups, state)
        if found is None:
            return False
        gradients, parameters, _keeping = found  # until all is launched
        params, turn = self.unchanged.params, None
        if self.left <= 1:
            turn = self.turns.coming() if self.turns else None
            if turn is None:
                return False
        with held:  # what was uploaded is known to be, and what was launched is counted
            self.engine.follow_stream(map(GRAD, params))
            options = self.unchanged.options(groups, reads_lr)
            if options is None:
                return False
            if options:
                self.engine.upload_options(options)
            self.engine.accept(gradients, parameters)
            with named("update"):
                count_writes(params)
                if turn is None:
                    left = map(setattr, (self,), ("left",), (self.left - 1,))
                    self.engine.run(scaling, moving(self.states), left)
                else:
                    noting = self.engine.noting_taken(turn.taken)
                    left = map(setattr, (self,) * 2, ("left", "due"), (turn.until, turn))
                    self.engine.run(scaling, noting, moving(self.states), turn.owing(), left)
        return True

    def refresh(self, op: RefreshOp) -> None:
        """Make the refreshes that fell due by the last step."""
        if self.due is None:
            return
        turn, self.due = self.due, None
        with ambient.neutral({self.engine.device.type}), named("refresh"):
            self.engine.refresh_turn(turn, op)
