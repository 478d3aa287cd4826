"""The optimizers that are compared, each with the options under which the comparison is fair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SOAP_BETAS = (0.95, 0.95)


def main_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but the quantiles, which the R-D loss does not depend on."""
    return [p for name, p in model.named_parameters() if not name.endswith("quantiles")]


def aux_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The quantiles of all entropy bottlenecks."""
    return [p for name, p in model.named_parameters() if name.endswith("quantiles")]


def _adam(params: list[nn.Parameter], lr: float, frequency: int) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=lr)


def _soap_fast(params: list[nn.Parameter], lr: float, frequency: int) -> torch.optim.Optimizer:
    from soap_fast import SOAP

    options: dict[str, Any] = {"weight_decay": 0.0, "precondition_frequency": frequency}
    return SOAP(params, lr=lr, betas=SOAP_BETAS, **options)


def _pytorch_optimizer(
    params: list[nn.Parameter], lr: float, frequency: int
) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    # Its other defaults in 4.1.0 are those of the reference, and of soap_fast.
    options: dict[str, Any] = {"weight_decay": 0.0, "precondition_frequency": frequency}
    return SOAP(params, lr=lr, betas=SOAP_BETAS, **options)


BUILDERS: dict[str, Callable[[list[nn.Parameter], float, int], torch.optim.Optimizer]] = {
    "adam": _adam,
    "soap_fast": _soap_fast,
    "pytorch_optimizer": _pytorch_optimizer,
}

TREATMENT = (
    "adam is torch's, with its customary betas (0.9, 0.999). Both SOAPs: betas (0.95, 0.95), "
    "eps 1e-8, bias correction, every mode rotated, the first call only initialises; no weight "
    "decay anywhere.",
    "What still differs: pytorch_optimizer keeps exp_avg unrotated and rotates it at every step "
    "(the same mathematics), and gives modes of size 1 a 1x1 basis. Bases of null spaces are "
    "whatever the solver returns, so the two trajectories part, without either being better.",
)


def build(name: str, model: nn.Module, lr: float, frequency: int) -> torch.optim.Optimizer:
    """The optimizer `name` over everything but the quantiles; ImportError if it is missing."""
    return BUILDERS[name](main_parameters(model), lr, frequency)
