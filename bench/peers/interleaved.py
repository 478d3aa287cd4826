"""Optimizers that take turns, call by call, each on its own copy of the same parameters."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from bench import shapes
from bench.measuring.calls import Call, Elapsed, Times, sequence, timed_step
from bench.measuring.memory import settle
from bench.output.progress import progress
from bench.peers.optimizers import refreshed
from bench.peers.participant import Participant


class Runner(Participant):
    """One optimizer, its parameters and what its calls took.

    Its memory is that beside parameters and gradients.
    """

    def __init__(
        self,
        name: str,
        params: list[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer | None,
        **more: Any,
    ) -> None:
        super().__init__(name, optimizer, params[0].device, **more)
        self.params, self.times = params, Times()

    def call(self, source: Sequence[torch.Tensor], call: Call, frequency: int) -> None:
        """Step with copies of the gradients of `source`, which an optimizer may change or drop."""
        gradients = self._given(source)
        elapsed = self.take(self._step, f"call {call.number}")
        self._taken_back(gradients)
        if elapsed is not None and call.timed:
            assert self.optimizer is not None
            again = refreshed(self.name, self.optimizer, call.number, frequency)
            self.times.add(elapsed, first=call.number == 0, refresh=again)

    def load_by(self, source: Sequence[torch.Tensor]) -> None:
        """`load`, by a step with copies of these gradients."""
        gradients = self._given(source)
        self.load(self._step)
        self._taken_back(gradients)

    def _step(self) -> Elapsed:
        assert self.optimizer is not None
        return timed_step(self.optimizer, self.params[0].device)

    def _given(self, source: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Set the gradients. They are kept as well: whoever drops one frees no memory by it."""
        gradients = [None if given.grad is None else given.grad.clone() for given in source]
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient
        return gradients

    def _taken_back(self, gradients: list[torch.Tensor | None]) -> None:
        gradients.clear()
        for param in self.params:
            param.grad = None


def take_turns(
    runners: Sequence[Runner],
    inventory: shapes.Inventory,
    device: str,
    frequency: int,
    periods: int,
    budget: float | None = None,
) -> None:
    """Every call of `bench.measuring.calls.sequence` by all, one after the other.

    The gradients of a call are drawn once, and each optimizer gets a copy just before its turn, so
    that all find them alike in the caches. Noise of the machine that lasts longer than a call hits
    all of them. Who begins goes round, so that nobody always follows the same other one. Before
    all that, those who can be built again load what they need. After `budget` seconds the peers
    stop, and ours goes on alone.
    """
    source = inventory.parameters(device)
    end = math.inf if budget is None else time.monotonic() + budget
    settle(device)

    def has_time(runner: Runner, when: str) -> bool:
        if runner.failed is None and not runner.needed and budget is not None:
            left = end - time.monotonic()
            if left <= 0:
                runner.failed = f"stopped at {when}: the budget of {budget:g} s was over"
                print(f"{runner.name} {runner.failed}", file=sys.stderr)
            # A last call must not take more than is left either.
            runner.limit = left if runner.limit is None else min(runner.limit, left)
        return runner.failed is None

    inventory.set_gradients(source, seed=1)
    for runner in runners:
        if has_time(runner, "its first call"):
            runner.load_by(source)
    for call in progress(sequence(frequency, periods), inventory.model):
        inventory.set_gradients(source, seed=1 + call.number)
        first = call.number % len(runners)
        for runner in (*runners[first:], *runners[:first]):
            if has_time(runner, f"call {call.number}"):
                runner.call(source, call, frequency)
