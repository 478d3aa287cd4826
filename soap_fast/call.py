"""One call of the optimizer on one tensor: everything a backend needs to carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from soap_fast.options import StepOptions
from soap_fast.plan import TensorPlan


class Scaling(NamedTuple):
    """What a gradient scaler (`torch.amp.GradScaler`) hands an optimizer for one step.

    Attributes:
        grad_scale: gradients are this many times too large; one element, on a device.
        found_inf: not zero where no tensor may take the step; one element.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None

    @property
    def given(self) -> bool:
        return self.grad_scale is not None or self.found_inf is not None


UNSCALED = Scaling()


@dataclass(frozen=True)
class TensorCall:
    """A parameter with a gradient, checked.

    Attributes:
        param: the parameter, any floating dtype, any strides.
        grad: its gradient, same shape and device.
        state: the parameter's entry in `optimizer.state`.
        plan: which of its modes carry a factor.
        options: the options of its group at this call.
        scaling: of the gradient.
    """

    param: torch.Tensor
    grad: torch.Tensor
    state: dict[str, Any]
    plan: TensorPlan
    options: StepOptions
    scaling: Scaling = UNSCALED

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
        """The gradient as the step computes with it: unscaled, contiguous, in the state's dtype."""
        grad = self.grad.detach().to(state_dtype(self.param)).contiguous()
        scale = self.scaling.grad_scale
        if scale is None:
            return grad
        return grad * scale.to(grad.device, grad.dtype, non_blocking=True).reciprocal()

    def is_usable(self, grad: torch.Tensor) -> torch.Tensor:  # [] bool
        """Whether a step may use the gathered gradient; decided on its device, without a sync.

        The test is that the sum of its squares is finite in the state's dtype. NaN and inf fail it,
        and so does a gradient whose squares overflow. Every entry of a Gram matrix, and every
        square in a rotated basis, is bounded by that sum: a gradient that passes can poison neither
        K nor v.
        """
        usable = grad.square().sum().isfinite()
        found = self.scaling.found_inf
        if found is None:
            return usable
        return usable & (found.to(grad.device, non_blocking=True) == 0).reshape(())


def state_dtype(param: torch.Tensor) -> torch.dtype:
    """float64 for float64 parameters, float32 for all others: what state and arithmetic use."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32
