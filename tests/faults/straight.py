"""A run without faults, which a run with one is compared with, tensor by tensor and bit by bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from streams import assert_same_bits, through_a_file
from subjects import (
    assert_orthogonal,
    built,
    for_each,
    give,
    gradients,
    take,
    tensor_by_tensor,
)

from soap_fast import SOAP

MOMENTS = {"first": 0, "second": 1, "steady": 2, "refresh": 3}
GO_ON = 2
# A call that refreshes has all of a plain one in it; steady steps are the Triton backend's.
CASES = for_each([("first",), ("refresh",)], [("first",), ("steady",), ("refresh",)])


class Straight:
    """Every tensor before, at and after call `moment`, and some calls later.

    `not_refreshed` is what a call leaves whose update was taken and whose refresh was not: that
    is made up for ahead of the tensor's next update.
    """

    def __init__(self, backend: str, moment: int) -> None:
        self.backend, self.moment = backend, moment
        params, optimizer = built(backend)
        take(optimizer, params, range(moment))
        self.before = tensor_by_tensor(optimizer, params)
        take(optimizer, params, [moment])
        self.after = tensor_by_tensor(optimizer, params)
        take(optimizer, params, self.later)
        self.end = tensor_by_tensor(optimizer, params)
        params, without = built(backend, precondition_frequency=100)
        take(without, params, range(moment + 1))
        self.not_refreshed = tensor_by_tensor(without, params)

    @property
    def later(self) -> range:
        return range(self.moment + 1, self.moment + 1 + GO_ON)

    def ready(self) -> tuple[list[torch.nn.Parameter], SOAP]:
        """An optimizer about to take call `moment`, its gradients there."""
        params, optimizer = built(self.backend)
        take(optimizer, params, range(self.moment))
        give(params, gradients(params, self.moment))
        return params, optimizer

    def found(self, optimizer: SOAP, params) -> list[str]:
        """What became of each tensor: one of the three states a fault may leave, to the bit."""
        names = []
        for place, entry in enumerate(tensor_by_tensor(optimizer, params)):
            for name in ("before", "after", "not_refreshed"):
                if same(entry, getattr(self, name)[place]):
                    names.append(name)
                    break
            else:
                names.append("torn")
        return names

    def check(self, optimizer: SOAP, params, where: str) -> list[str]:
        """Every tensor is whole, and nobody has heard of a step that was not taken."""
        left = self.found(optimizer, params)
        assert "torn" not in left, (where, left)
        for param, state in zip(params, left, strict=True):
            entry = optimizer.state.get(param)
            assert entry is None or entry["calls"] == self.moment + (state != "before"), where
        return left

    def check_what_follows(self, optimizer: SOAP, params, left: list[str], where: str) -> None:
        """Saved and loaded it goes on alike; a step retried makes up for the fault."""
        others, loaded = self.loaded(Saved.of(optimizer, params))
        # The very same gradients, of which something may be known already.
        retried = [p.grad if s == "before" else None for p, s in zip(params, left, strict=True)]
        expected = ["after" if what == "before" else what for what in left]
        both = []
        for run, own in ((optimizer, params), (loaded, others)):
            for param, grad in zip(own, retried, strict=True):
                param.grad = grad
            run.step()
            assert self.found(run, own) == expected, (where, left)
            take(run, own, self.later)
            both.append(tensor_by_tensor(run, own))
            assert_orthogonal(run)
        assert_same_bits(*both, where)
        for place, entry in enumerate(both[0]):
            assert_same_bits(entry, self.end[place], f"{where}, tensor {place}")

    def loaded(self, saved: Saved) -> tuple[list[torch.nn.Parameter], SOAP]:
        params, optimizer = built(self.backend)
        optimizer.load_state_dict(through_a_file(saved.state_dict))
        with torch.no_grad():
            for param, value in zip(params, saved.values, strict=True):
                param.copy_(value)
        return params, optimizer

    def check_saved(self, saved: Saved, where: str) -> list[str]:
        """What was saved at any time of the call loads, and each tensor by itself goes on."""
        params, optimizer = self.loaded(saved)
        left = self.found(optimizer, params)
        assert "torn" not in left, (where, left)
        coming = gradients(params, self.moment)
        give(params, [g if s == "before" else None for g, s in zip(coming, left, strict=True)])
        optimizer.step()
        take(optimizer, params, self.later)
        assert_same_bits(tensor_by_tensor(optimizer, params), self.end, where)
        return left


@dataclass
class Saved:
    """What a checkpoint has of an optimizer and its parameters."""

    state_dict: dict
    values: list[torch.Tensor]

    @staticmethod
    def of(optimizer: SOAP, params) -> Saved:
        return Saved(optimizer.state_dict(), [param.detach().clone() for param in params])


def same(one, other) -> bool:
    try:
        assert_same_bits(one, other)
    except AssertionError:
        return False
    return True
