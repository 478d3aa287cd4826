"""Factors and bases of a model's parameters as a training run would bring them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench import shapes
from soap_fast.options import PlanOptions
from soap_fast.step.eigh import eigh_eager
from soap_fast.step.plan import plan_tensor

DEFAULTS = PlanOptions(10000, merge_dims=False, precondition_1d=False, data_format="channels_first")


@dataclass
class Factors:
    """K and Q of all factors of a model, one stack [n, d, d] per size."""

    K: list[torch.Tensor]
    Q: list[torch.Tensor]  # what a refresh changes
    first_Q: list[torch.Tensor]
    chosen: list[torch.Tensor]  # all of them, [n] int32
    allowed: list[torch.Tensor]  # [n] bool

    @classmethod
    def of(cls, inventory: shapes.Inventory, device: str = "cpu") -> Factors:
        counts: dict[int, int] = {}
        for entry in inventory.entries:
            for size in plan_tensor(entry.shape, DEFAULTS).factors:
                if size is not None:
                    counts[size] = counts.get(size, 0) + 1
        generator = torch.Generator().manual_seed(0)
        before = [_grams(n, d, generator) for d, n in counts.items()]
        drift = [_grams(n, d, generator) for d, n in counts.items()]
        everything = [torch.arange(n, dtype=torch.int32) for n in counts.values()]
        before, drift = ([k.to(device) for k in factors] for factors in (before, drift))
        everything = [chosen.to(device) for chosen in everything]
        # The bases a run has are those of its factors ten steps before: 0.95 ** 10 is 0.6.
        _, bases = eigh_eager(before, everything)
        factors = [0.6 * old + 0.4 * new for old, new in zip(before, drift, strict=True)]
        return cls(
            factors,
            [q.clone() for q in bases],
            bases,
            everything,
            [(chosen >= 0).to(device) for chosen in everything],
        )

    def refresh(self, op: Callable[..., object]) -> None:
        op(self.K, self.Q, self.chosen, self.allowed, 0.0)

    def restore(self) -> None:
        """Every refresh starts from the same bases; giving them back is none of its work."""
        for q, first in zip(self.Q, self.first_Q, strict=True):
            q.copy_(first)

    def refresh_loop(self) -> None:
        for factors, bases in zip(self.K, self.Q, strict=True):
            for k, q in zip(factors, bases, strict=True):
                kq = k @ q
                order = (q * kq).sum(0).argsort(descending=True)
                new = torch.linalg.qr(kq[:, order]).Q
                q.T @ new

    def eigh_loop(self) -> None:
        for factors in self.K:
            for k in factors:
                torch.linalg.eigh(k).eigenvectors.flip(1)


def _grams(n: int, d: int, generator: torch.Generator) -> torch.Tensor:  # [n, d, d]
    g = torch.randn(n, d, d + 8, generator=generator)
    return g @ g.mT / d
