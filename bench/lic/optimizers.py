"""The optimizers that are compared, each with the options under which the comparison is fair."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.files import BadInput
from bench.optimizers import accepted, optimizer_class

SOAP_BETAS = (0.95, 0.95)
SOAP_OPTIONS: dict[str, Any] = {"betas": SOAP_BETAS, "weight_decay": 0.0}


def main_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but the quantiles, which the R-D loss does not depend on."""
    return [p for name, p in model.named_parameters() if not name.endswith("quantiles")]


def aux_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The quantiles of all entropy bottlenecks."""
    return [p for name, p in model.named_parameters() if name.endswith("quantiles")]


def _adam(params: list[nn.Parameter], lr: float, **options: Any) -> torch.optim.Optimizer:
    del options["precondition_frequency"]
    return torch.optim.Adam(params, lr=lr, **options)


def _adam_soap_betas(
    params: list[nn.Parameter], lr: float, **options: Any
) -> torch.optim.Optimizer:
    return _adam(params, lr, **{"betas": SOAP_BETAS, **options})


def _soap_fast(params: list[nn.Parameter], lr: float, **options: Any) -> torch.optim.Optimizer:
    from soap_fast import SOAP

    return SOAP(params, lr=lr, **{**SOAP_OPTIONS, **options})


def _pytorch_optimizer(
    params: list[nn.Parameter], lr: float, **options: Any
) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    # Its other defaults in 4.1.0 are those of the reference, and of soap_fast.
    return SOAP(params, lr=lr, **{**SOAP_OPTIONS, **options})


@dataclass(frozen=True)
class Known:
    """An optimizer that has a name here.

    Attributes:
        build: of parameters, a rate, and options by keyword.
        algorithm: with its betas. At one rate, optimizers of one algorithm differ by roundings,
            and by the bases that they choose for null spaces.
    """

    build: Callable[..., torch.optim.Optimizer]
    algorithm: str


KNOWN = {
    "adam": Known(_adam, "Adam, betas (0.9, 0.999)"),
    "adam_soap_betas": Known(_adam_soap_betas, "Adam, betas (0.95, 0.95)"),
    "soap_fast": Known(_soap_fast, "SOAP, betas (0.95, 0.95)"),
    "pytorch_optimizer": Known(_pytorch_optimizer, "SOAP, betas (0.95, 0.95)"),
}
BUILDERS = {name: known.build for name, known in KNOWN.items()}
ADAMS = ("adam", "adam_soap_betas")  # which refresh nothing; the better one is the one to beat


def one_algorithm(name: str, other: str) -> bool:
    """Whether these are two implementations of one algorithm, as far as we know."""
    if name == other or not {name, other} <= KNOWN.keys():
        return False
    return KNOWN[name].algorithm == KNOWN[other].algorithm


TREATMENT = (
    "adam is torch's, with its customary betas (0.9, 0.999). Both SOAPs: betas (0.95, 0.95), "
    "eps 1e-8, bias correction, every mode rotated, the first call only initialises; no weight "
    "decay anywhere.",
    "What still differs: pytorch_optimizer keeps exp_avg unrotated and rotates it at every step "
    "(the same mathematics), and gives modes of size 1 a 1x1 basis. Bases of null spaces are "
    "whatever the solver returns, so the two trajectories part, without either being better.",
)


def build(
    name: str,
    model: nn.Module,
    lr: float,
    frequency: int,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `name` over everything but the quantiles.

    One of another package, `package.module:Class`, keeps its own defaults but for the rate and,
    where it has such an option, the precondition frequency.

    Args:
        options: of the optimizer's own, in place of what is set here.

    Raises:
        ImportError: its package is missing.
        BadInput: there is no such optimizer, or it does not take the options.
    """
    params, given = main_parameters(model), {"precondition_frequency": frequency, **(options or {})}
    try:
        if name in BUILDERS:
            return BUILDERS[name](params, lr, **given)
        cls = optimizer_class(name)
        ours = accepted(cls, {"lr": lr, "precondition_frequency": frequency})
        return cls(params, **{**ours, **(options or {})})
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"--optimizer: {error}") from None
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise BadInput(f"--optimizer {name} refuses its options ({reason}); change them") from None
