"""Bits per pixel and PSNR of a whole image of any size."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.files import BadInput
from bench.lic.data import EvaluationSet, reason_of
from bench.lic.evaluation.coding import decode, encode
from bench.lic.loss import psnr
from bench.lic.models import Model
from bench.lic.training import say

PADDING = (
    "An image whose sides are no multiples of the model's stride is continued by its last row and "
    "column; the bits of what was added count, its pixels do not, and PSNR is of the image alone."
)


class Score(NamedTuple):
    """Of one image."""

    image: str
    height: int
    width: int
    bpp: float  # the model's estimate, padding's bits included, over the image's own pixels
    psnr: float  # dB, of the decoded image clamped to [0, 1], not rounded to 8 bits
    coded_bpp: float | None = None  # of the bytes of a range coder, where they were asked for


class SetScore(NamedTuple):
    """Means over a data set's images, each image counting alike."""

    bpp: float
    psnr: float
    coded_bpp: float | None  # None unless all images were coded
    images: list[Score]


@torch.no_grad()
def measure(
    model: nn.Module, pixels: Tensor, name: str = "", coded: bool = False
) -> tuple[Score, Tensor]:
    """Code and decode one image by a model in evaluation mode, on the model's device.

    Args:
        pixels: uint8 [3, height, width], any size.
        coded: write the bytes of a range coder too, and read them again.

    Returns:
        The score, and the decoded image  # float32 [3, height, width] in [0, 1], on the CPU.
    """
    device = next(model.parameters()).device
    image = pixels[None].to(device).float() / 255  # [1, 3, H, W]
    height, width = image.shape[2:]
    larger = padded(image, cast(int, model.stride))
    compressed = model(larger)
    decoded = compressed.images[:, :, :height, :width].clamp(0, 1)
    bits = -sum(p.double().log2().sum().item() for p in compressed.likelihoods)
    mse = (decoded.double() - image.double()).square().mean().item()
    count = _bytes(model, larger, name) if coded else None
    coded_bpp = None if count is None else 8 * count / (height * width)
    score = Score(name, height, width, bits / (height * width), psnr(mse), coded_bpp)
    return score, decoded[0].cpu()


def _bytes(model: nn.Module, image: Tensor, name: str) -> int | None:
    """How many a range coder writes for the image  # [1, 3, H, W]; None if it cannot, and why.

    Raises:
        BadInput: the model is not one of ours, or constriction is missing.
        RuntimeError: what is decoded again is not what was coded.
    """
    if not isinstance(model, Model):
        raise BadInput("--coded knows the contexts of our models only; leave it out")
    try:
        data, symbols = encode(model, image)
    except ImportError:
        raise BadInput("--coded needs the package constriction: pip install it") from None
    except ValueError as error:
        say(f"{name} cannot be coded: {error}")
        return None
    if not all(map(torch.equal, decode(model, data)[1], symbols)):
        raise RuntimeError("decoded symbols differ from those coded: is this torch deterministic?")
    return len(data)


def padded(image: Tensor, stride: int) -> Tensor:
    """The image  # [1, 3, H, W]  continued to the right and below to multiples of `stride`."""
    height, width = image.shape[2:]
    return F.pad(image, (0, -width % stride, 0, -height % stride), mode="replicate")


class Measured(NamedTuple):
    """A run's scores of a data set."""

    scores: list[Score]
    failed: dict[str, str]  # image -> why it has none
    first: tuple[str, Tensor, Tensor] | None  # name, original, decoded  # [3, H, W]


def measure_set(model: nn.Module, images: EvaluationSet, coded: bool = False) -> Measured:
    """All readable images by one model; those on which it fails are named.

    Raises:
        BadInput: `coded` is not possible.
    """
    measured = Measured([], {}, None)
    for name, pixels in images.images:
        try:
            score, decoded = measure(model, pixels, name, coded)
        except BadInput:
            raise
        except Exception as error:  # too large for memory, or whatever another's model raises
            measured.failed[name] = reason_of(error)
            continue
        if measured.first is None:
            measured = measured._replace(first=(name, pixels.float() / 255, decoded))
        measured.scores.append(score)
    return measured


def mean_of(scores: list[Score]) -> SetScore:
    bpp, psnr = fmean(score.bpp for score in scores), fmean(score.psnr for score in scores)
    written = [score.coded_bpp for score in scores if score.coded_bpp is not None]
    coded_bpp = fmean(written) if len(written) == len(scores) else None
    return SetScore(bpp, psnr, coded_bpp, scores)
