"""A step and an evaluation by a model of others, before hours are spent on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.files import BadInput, told
from bench.lic.models import Compressed
from bench.lic.models.model import rate_distortion
from bench.lic.models.registry import Foreign, flat
from bench.lic.training.config import Config

LARGEST_BATCH = 2  # one image alone may be too few for a normalisation over the batch


def try_once(model: Foreign, config: Config, device: str) -> None:
    """Train and evaluate on random images of the run's size; the model is as it was afterwards.

    Raises:
        BadInput: in one line, what the model lacks or runs into.
    """
    batch = min(LARGEST_BATCH, config.batch // config.world)
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    before = _Buffers(model)
    with torch.random.fork_rng(devices=cuda):
        images = torch.rand(batch, 3, config.crop, config.crop, device=device)
        try:
            _train(model, images, config.lam)
            model.eval()
            with torch.no_grad():
                _check(model(images), images)
        except _Refused as reason:
            raise BadInput(f"--model {config.model} {reason}") from None
        except Exception as error:  # whatever another's model raises
            size = f"{batch} x {config.crop} x {config.crop}"
            text = f"--model {config.model} fails on {size} random pixels ({told(error)})"
            raise BadInput(f"{text}; try it alone") from None
    model.train()
    model.zero_grad(set_to_none=True)
    before.restore()


class _Buffers:
    """Those of a model, which a forward may fill, replace or resize."""

    def __init__(self, model: nn.Module) -> None:
        self.kept = [
            (part, name, held, None if held is None else held.clone())
            for part in model.modules()
            for name, held in part._buffers.items()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        for part, name, held, value in self.kept:
            if held is not None and value is not None:
                held.resize_(value.shape).copy_(value)
            part._buffers[name] = held


class _Refused(Exception):
    """The rest of a sentence that begins with the model."""


def _train(model: Foreign, images: Tensor, lam: float) -> None:
    coded = model(images)
    _check(coded, images)
    loss = rate_distortion(coded, images, lam).loss
    if not loss.requires_grad:
        raise _Refused("has a loss that depends on no parameter; let some require gradients")
    loss.backward()
    _check_aux(model.net.aux_loss())
    aux = model.aux_loss()
    if aux.requires_grad:
        aux.backward()


def _check(coded: Compressed, images: Tensor) -> None:
    if not isinstance(coded.images, Tensor) or coded.images.shape != images.shape:
        found = tuple(getattr(coded.images, "shape", ())) or type(coded.images).__name__
        raise _Refused(
            f"makes an x_hat of {found} from images of {tuple(images.shape)}; crop it in its "
            "forward"
        )
    if not coded.likelihoods:
        raise _Refused("has no likelihoods, whose bits are part of the loss; let it return some")
    for one in coded.likelihoods:
        if not isinstance(one, Tensor):
            raise _Refused(f"has a {type(one).__name__} among its likelihoods; return tensors")


def _check_aux(value: Any) -> None:
    for one in flat(value):
        if not isinstance(one, Tensor | int | float) or (
            isinstance(one, Tensor) and one.numel() != 1
        ):
            raise _Refused(
                f"has an aux_loss() of {type(one).__name__}; return a number, or a list of them"
            )
