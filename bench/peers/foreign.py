"""Any optimizer, named `package.module:Class`, with our options as far as it takes them."""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
from typing import Any

import torch

from bench.named import named

# Names under which optimizers take what we set: the first that a class has is set.
ALIASES = {
    "lr": ("lr",),
    "betas": ("betas",),
    "eps": ("eps",),
    "weight_decay": ("weight_decay",),
    "precondition_frequency": ("precondition_frequency", "precond_freq", "preconditioning_steps"),
    "max_precond_dim": ("max_precond_dim", "max_precondition_dim"),
}


def optimizer_class(text: str) -> type[torch.optim.Optimizer]:
    """argparse.ArgumentTypeError where `text` names no optimizer."""
    found = named(text)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise argparse.ArgumentTypeError(f"{text!r} is no class of torch.optim.Optimizer")
    return found


def accepted(cls: type[torch.optim.Optimizer], options: dict[str, Any]) -> dict[str, Any]:
    """Of these options those that the class takes, by the names it has for them."""
    parameters = inspect.signature(cls).parameters
    found = {}
    for option, value in options.items():
        name = next((alias for alias in ALIASES[option] if alias in parameters), None)
        if name is not None:
            found[name] = value
    return found


def described(cls: type[torch.optim.Optimizer], options: dict[str, Any]) -> str:
    """What of it was set, and that the rest was not."""
    given = ", ".join(accepted(cls, options)) or "nothing"
    return (
        f"set as ours: {given}; everything else is {cls.__name__}'s own default; "
        "mean_ms is the arithmetic mean, for its refreshes are not known"
    )


def distribution(cls: type) -> str:
    """The distribution a class is of, else its top-level package."""
    top = cls.__module__.partition(".")[0]
    try:
        importlib.metadata.distribution(top)
    except importlib.metadata.PackageNotFoundError:  # the slow way: reads every package there is
        return importlib.metadata.packages_distributions().get(top, [top])[0]
    return top
