"""Models that are trained whole: a model and a loss that reads a batch which stays where it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from bench.lic.loss import rate_distortion
from bench.lic.models import MeanScaleHyperprior
from bench.lic.optimizers import main_parameters
from bench.named import named

LAMBDA = 0.013


class Settings(NamedTuple):
    """Of the built-in models; a function of the user's decides by itself."""

    batch: int
    crop: int
    width: int


class Workload(NamedTuple):
    """What a training step consists of, but for the optimizer.

    Attributes:
        params: that the optimizer steps.
        loss: the forward pass; a scalar with a graph behind it.
    """

    params: list[nn.Parameter]
    loss: Callable[[], torch.Tensor]


def _hyperprior(settings: Settings) -> nn.Module:
    return MeanScaleHyperprior(settings.width)


# By name: a model of image compression, to be trained on crops; noise does for times.
MODELS: dict[str, Callable[[Settings], nn.Module]] = {"demo": _hyperprior}


def build(name: str, device: str, settings: Settings) -> Workload:
    """The workload of a name that `checked` has let pass; the same values at every call."""
    torch.manual_seed(0)
    if name not in MODELS:
        model, loss = named(name)(device)
        return Workload([p for p in model.parameters() if p.requires_grad], loss)
    model = MODELS[name](settings).to(device)
    images = torch.rand(settings.batch, 3, settings.crop, settings.crop, device=device)
    return Workload(
        main_parameters(model), lambda: rate_distortion(model(images), images, LAMBDA).loss
    )


def checked(text: str) -> str:
    """For argparse: a built-in model, or `package.module:function`.

    Such a function gets a device's name and returns a model on that device and a function without
    arguments that returns its loss.
    """
    if text in MODELS:
        return text
    if ":" not in text:
        known = f"{', '.join(MODELS)}, or package.module:function"
        raise argparse.ArgumentTypeError(f"no model {text!r}: take {known}")
    if not callable(named(text)):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be called: name a function")
    return text
