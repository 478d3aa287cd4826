"""One call of the optimizer on one tensor: everything a backend needs to carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from soap_fast.options import StepOptions
from soap_fast.plan import TensorPlan


@dataclass(frozen=True)
class TensorCall:
    """A parameter with a gradient, checked.

    Attributes:
        param: the parameter, any floating dtype, any strides.
        grad: its gradient, same shape and device.
        state: the parameter's entry in `optimizer.state`.
        plan: which of its modes carry a factor.
        options: the options of its group at this call.
    """

    param: torch.Tensor
    grad: torch.Tensor
    state: dict[str, Any]
    plan: TensorPlan
    options: StepOptions

    @property
    def is_first(self) -> bool:
        return not self.state["calls"]

    def modes_due(self) -> list[int]:
        """The modes whose bases this call, already counted in `calls`, refreshes at its end."""
        after_first, frequency = self.state["calls"] - 1, self.options.precondition_frequency
        modes = [mode for mode, size in enumerate(self.plan.factors) if size is not None]
        if self.options.refresh_schedule == "periodic":
            return modes if after_first % frequency == 0 else []
        phases = self.state["phases"]
        return [mode for mode in modes if (after_first - phases[mode]) % frequency == 0]

    def gather(self) -> torch.Tensor:
        """The gradient as the step computes with it: contiguous, in the state's dtype."""
        return self.grad.detach().to(state_dtype(self.param)).contiguous()


def state_dtype(param: torch.Tensor) -> torch.dtype:
    """float64 for float64 parameters, float32 for all others: what state and arithmetic use."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def is_usable(grad: torch.Tensor) -> torch.Tensor:  # [] bool
    """Whether a step may use this gradient; decided on its device, without a sync.

    The test is that the sum of its squares is finite in the state's dtype. NaN and inf fail it, and
    so does a gradient whose squares overflow. Every entry of a Gram matrix, and every square in a
    rotated basis, is bounded by that sum: a gradient that passes can poison neither K nor v.
    """
    return grad.square().sum().isfinite()
