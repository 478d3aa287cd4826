"""Random histories: with overlap every step and every look at the state has the bits of without."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from shared import SHAPES, built, end_of
from streams import ON_CPU, assert_same_bits, backends, set_gradients
from test_distributed_overlap_between import replace

STEPS = 12


class History:
    """What happens to an optimizer: on all ranks alike, but for who looks at its state."""

    def __init__(self, group, backend: str, shapes, seed: int, overlap: bool) -> None:
        self.alike, self.own = random.Random(seed), random.Random(f"{seed} {group.rank()}")
        options = {
            "precondition_frequency": self.alike.choice([1, 2, 3]),
            "refresh_schedule": self.alike.choice(["periodic", "staggered"]),
            "refresh_tolerance": self.alike.choice([0, 0, 0.3]),
        }
        self.params, self.optimizer = built(
            group, shapes, backend=backend, overlap=overlap, **options
        )
        self.saved: tuple | None = None

    def step(self) -> None:
        """Some gradients are missing, some have a NaN."""
        set_gradients(self.params, self.alike.randrange(1000))
        for param in self.params:
            chance = self.alike.random()
            if chance < 0.15:
                param.grad = None
            elif chance < 0.2:
                param.grad.view(-1)[0] = torch.nan
        self.optimizer.step()

    def look(self) -> object:
        """Or not; by this rank alone."""
        chance = self.own.random()
        if chance < 0.2:
            return self.optimizer.state_dict()
        if chance < 0.3:
            return self.optimizer.stats()["refreshed"]
        return copy.deepcopy(self.optimizer).state_dict() if chance < 0.4 else None

    def change(self) -> None:
        """Something of what a user may do between steps."""
        params, optimizer = self.params, self.optimizer
        chance, own = self.alike.random(), optimizer.state.get(self.params[0], {})
        if chance < 0.1:
            self.saved = [p.detach().clone() for p in params], optimizer.state_dict()
        elif chance < 0.2 and self.saved is not None:
            optimizer.load_state_dict(self.saved[1])
            for param, value in zip(params, self.saved[0], strict=True):
                param.data.copy_(value)
        elif chance < 0.28:
            frequency = self.alike.choice([1, 2, 3, 4])
            optimizer.param_groups[0]["precondition_frequency"] = frequency
        elif chance < 0.34:
            optimizer.param_groups[0]["refresh_tolerance"] = self.alike.choice([0, 0.2, 0.5])
        elif chance < 0.4 and own.get("calls"):
            replace(params, optimizer, 0)
        elif chance < 0.44 and own:
            del optimizer.state[params[0]]
        elif chance < 0.49:
            self.saved = None
            params.append(torch.nn.Parameter(torch.ones(3, 4)))
            optimizer.add_param_group({"params": params[-1:], "refresh_tolerance": 0.1})
        elif chance < 0.54:
            optimizer.zero_grad()
            optimizer.step()


def both(group, backend, shapes, seed):
    """Parameters, and what was seen, after each step; and the end."""
    found = []
    for overlap in (False, True):
        history = History(group, backend, shapes, seed, overlap)
        seen = []
        for _ in range(STEPS):
            history.step()
            seen.append(([p.detach().clone() for p in history.params], history.look()))
            history.change()
        found.append((seen, end_of(history.params, history.optimizer)))
    return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", backends())
def test_overlap_changes_no_bit(ranks, backend):
    for seed in range(12):
        for at_once, later in ranks(2, both, backend, SHAPES, seed):
            assert_same_bits(later, at_once, f"history {seed}")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", [b for b in ON_CPU if "triton" in b.values])
def test_overlap_changes_no_bit_of_interpreted_kernels(ranks, backend):
    for at_once, later in ranks(2, both, backend, ((4, 3), (3,)), 2):
        assert_same_bits(later, at_once)
