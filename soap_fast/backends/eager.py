"""Backend `eager`: plain torch, one tensor at a time. It defines what every other backend computes.

Runs on any device and in float64; needs neither the extension nor Triton.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soap_fast.backends.base import PLAIN_REFRESH, Backend
from soap_fast.step.call import TensorCall
from soap_fast.step.eigh import Pairs, eigh_eager
from soap_fast.step.plan import TensorPlan
from soap_fast.step.refresh import Refreshed, refresh_eager
from soap_fast.step.update import update

__all__ = ["EagerBackend"]


class EagerBackend(Backend):
    name = "eager"

    def stepped_by(
        self, param: torch.Tensor, grad: torch.Tensor, plan: TensorPlan, lr: float | torch.Tensor
    ) -> tuple[str, str]:
        return self.name, ""

    def refreshes_on(self, device: torch.device) -> str:
        return PLAIN_REFRESH

    def update(self, calls: Sequence[TensorCall]) -> list[torch.Tensor]:
        return [update(call) for call in calls]

    def eigh(self, factors: list[torch.Tensor], selections: list[torch.Tensor]) -> Pairs:
        return eigh_eager(factors, selections)

    def refresh_op(
        self,
        factors: list[torch.Tensor],
        bases: list[torch.Tensor],
        selections: list[torch.Tensor],
        allowed: list[torch.Tensor],
        tolerance: float,
    ) -> Refreshed:
        return refresh_eager(factors, bases, selections, allowed, tolerance)
