"""Models that are trained whole: a model and a loss that reads a batch which stays where it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from bench.command import named
from bench.files import BadInput, told
from bench.lic.models import MODELS as PAPER
from bench.lic.models import MeanScaleHyperprior, Model
from bench.lic.models.model import rate_distortion
from bench.lic.optimizers import main_parameters

LAMBDA = 0.013
DEMO = "demo"


class Settings(NamedTuple):
    """Crops, their side in pixels, and the demo's channels, or a factor of a model's widths."""

    batch: int | None
    crop: int | None
    width: float | None


class Workload(NamedTuple):
    """Parameters that an optimizer steps, and the forward pass: a scalar with a graph behind it."""

    params: list[nn.Parameter]
    loss: Callable[[], torch.Tensor]


# By name: a model of image compression, to be trained on crops; noise does for times.
MODELS: dict[str, Callable[[float], Model]] = {DEMO: lambda n: MeanScaleHyperprior(int(n)), **PAPER}


def chosen(name: str, batch: int | None, crop: int | None, width: float | None) -> Settings:
    """What was asked for, and else as the demo trains, and as the papers do.

    A function of the user's decides by itself: BadInput where something was asked of it.
    """
    asked = Settings(batch, crop, width)
    if name not in MODELS:
        if given := [f"--{option}" for option, value in asked._asdict().items() if value]:
            raise BadInput(f"{given[0]}: {name} makes its own batch and model; leave it out")
        return asked
    usual = Settings(8, 64, 48) if name == DEMO else Settings(8, 256, 1.0)
    return Settings(batch or usual.batch, crop or usual.crop, width or usual.width)


def build(name: str, device: str, settings: Settings) -> Workload:
    """A workload, the same at every call; BadInput for crops or widths that it does not take."""
    torch.manual_seed(0)
    if name not in MODELS:
        return _users(name, device)
    batch, crop, width = (value or 0 for value in settings)
    if name == DEMO and width % 1:
        raise BadInput(f"--width {width:g}: of the {DEMO} it is a number of channels")
    model = MODELS[name](width).to(device)
    if crop % model.stride:
        raise BadInput(f"--crop {crop}: {name} takes multiples of {model.stride}")
    images = torch.rand(batch, 3, crop, crop, device=device)
    return Workload(
        main_parameters(model), lambda: rate_distortion(model(images), images, LAMBDA).loss
    )


def _users(name: str, device: str) -> Workload:
    try:
        model, loss = named(name)(device)
        params = [p for p in model.parameters() if p.requires_grad]
    except Exception as error:
        raise BadInput(f"{name} raised {told(error)}") from None

    def told_loss() -> torch.Tensor:
        try:
            return loss()
        except Exception as error:
            raise BadInput(f"the loss of {name} raised {told(error)}") from None

    return Workload(params, told_loss)


def checked(text: str) -> str:
    """For argparse: a built-in model, or `package.module:function`, as `train` explains."""
    if text in MODELS:
        return text
    if ":" not in text:
        known = f"{', '.join(MODELS)}, or package.module:function"
        raise argparse.ArgumentTypeError(f"no model {text!r}: take {known}")
    if not callable(named(text)):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be called: name a function")
    return text
