"""Optimizers that take turns, call by call, each on its own copy of the same parameters."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from bench import shapes
from bench.command import told
from bench.measuring.calls import Times, timed_step
from bench.output.progress import progress
from bench.peers.limit import TookTooLong, time_limit
from bench.peers.optimizers import OURS, around, refreshed


@dataclass
class Runner:
    """One optimizer, its parameters and what its calls took.

    Attributes:
        optimizer: None of a peer that could not be built.
        failed: what it raised, for a peer that cannot step these parameters here; it then waits
            out the run.
        limit: seconds that a call of a peer may take; compiling at the first ones can take long.
    """

    name: str
    params: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer | None
    times: Times = field(default_factory=Times)
    failed: str | None = None
    limit: float | None = None

    def call(self, source: Sequence[torch.Tensor], call: int, frequency: int) -> None:
        """Step with copies of the gradients of `source`, which an optimizer may change or drop."""
        assert self.optimizer is not None
        for param, given in zip(self.params, source, strict=True):
            param.grad = None if given.grad is None else given.grad.clone()
        try:
            with time_limit(None if self.name == OURS else self.limit), around(self.name):
                elapsed = timed_step(self.optimizer, self.params[0].device)
        except (Exception, TookTooLong) as error:
            if self.name == OURS:
                raise
            self.failed = told(error)
            print(f"{self.name} failed at call {call}: {self.failed}", file=sys.stderr)
            return
        finally:
            for param in self.params:
                param.grad = None
        again = refreshed(self.name, self.optimizer, call, frequency)
        self.times.add(elapsed, first=call == 0, refresh=again)


def take_turns(
    runners: Sequence[Runner],
    inventory: shapes.Inventory,
    device: str,
    frequency: int,
    periods: int,
    budget: float | None = None,
) -> None:
    """The first call and whole refresh periods after it; every call by all, one after the other.

    The gradients of a call are drawn once, and each optimizer gets a copy just before its turn, so
    that all find them alike in the caches. Noise of the machine that lasts longer than a call hits
    all of them. Who begins goes round, so that nobody always follows the same other one. After
    `budget` seconds the peers stop, and ours goes on alone.
    """
    source = inventory.parameters(device)
    end = math.inf if budget is None else time.monotonic() + budget
    for call in progress(range(1 + frequency * periods), inventory.model):
        inventory.set_gradients(source, seed=1 + call)
        first = call % len(runners)
        for runner in (*runners[first:], *runners[:first]):
            left = end - time.monotonic()
            if runner.name != OURS and runner.failed is None and left <= 0:
                runner.failed = f"stopped at call {call}: the budget of {budget:g} s was over"
                print(f"{runner.name} {runner.failed}", file=sys.stderr)
            if budget is not None:  # a last call must not take more than is left either
                runner.limit = left if runner.limit is None else min(runner.limit, left)
            if runner.failed is None:
                runner.call(source, call, frequency)
