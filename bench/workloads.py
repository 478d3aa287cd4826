"""Models that are trained whole: a model and a loss that reads a batch which stays where it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from bench.command import BadInput, told
from bench.lic.loss import rate_distortion
from bench.lic.models import MODELS as PAPER
from bench.lic.models import MeanScaleHyperprior, Model
from bench.lic.optimizers import main_parameters
from bench.named import named

LAMBDA = 0.013
DEMO = "demo"


class Settings(NamedTuple):
    """Of the built-in models; a function of the user's decides by itself.

    Attributes:
        batch: crops.
        crop: side in pixels.
        width: the demo's channels; of the others a factor of all their widths.
    """

    batch: int
    crop: int
    width: float


def defaults(name: str) -> Settings:
    """As the demo trains, and as the papers do."""
    return Settings(8, 64, 48) if name == DEMO else Settings(8, 256, 1.0)


class Workload(NamedTuple):
    """What a training step consists of, but for the optimizer.

    Attributes:
        params: that the optimizer steps.
        loss: the forward pass; a scalar with a graph behind it.
    """

    params: list[nn.Parameter]
    loss: Callable[[], torch.Tensor]


# By name: a model of image compression, to be trained on crops; noise does for times.
MODELS: dict[str, Callable[[float], Model]] = {
    DEMO: lambda width: MeanScaleHyperprior(int(width)),
    **PAPER,
}


def build(name: str, device: str, settings: Settings) -> Workload:
    """The workload of a name that `checked` has let pass; the same values at every call.

    Raises:
        BadInput: crops of a size or a width that the model does not take, or a function of the
            user's that raised.
    """
    torch.manual_seed(0)
    if name not in MODELS:
        return _users(name, device)
    if name == DEMO and settings.width % 1:
        raise BadInput(f"--width {settings.width:g}: of the {DEMO} it is a number of channels")
    model = MODELS[name](settings.width).to(device)
    if settings.crop % model.stride:
        raise BadInput(f"--crop {settings.crop}: {name} takes multiples of {model.stride}")
    images = torch.rand(settings.batch, 3, settings.crop, settings.crop, device=device)
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
