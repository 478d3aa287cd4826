"""Bits per pixel and PSNR of a whole image of any size."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.data import EvaluationSet
from bench.lic.loss import psnr

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


class SetScore(NamedTuple):
    """Means over a data set's images, each image counting alike."""

    bpp: float
    psnr: float
    images: list[Score]


@torch.no_grad()
def measure(model: nn.Module, pixels: Tensor, name: str = "") -> tuple[Score, Tensor]:
    """Code and decode one image by a model in evaluation mode, on the model's device.

    Args:
        pixels: uint8 [3, height, width], any size.

    Returns:
        The score, and the decoded image  # float32 [3, height, width] in [0, 1], on the CPU.
    """
    device = next(model.parameters()).device
    image = pixels[None].to(device).float() / 255  # [1, 3, H, W]
    height, width = image.shape[2:]
    coded = model(padded(image, model.stride))
    decoded = coded.images[:, :, :height, :width].clamp(0, 1)
    bits = -sum(p.double().log2().sum().item() for p in coded.likelihoods)
    mse = (decoded.double() - image.double()).square().mean().item()
    score = Score(name, height, width, bits / (height * width), psnr(mse))
    return score, decoded[0].cpu()


def padded(image: Tensor, stride: int) -> Tensor:
    """The image  # [1, 3, H, W]  continued to the right and below to multiples of `stride`."""
    height, width = image.shape[2:]
    return F.pad(image, (0, -width % stride, 0, -height % stride), mode="replicate")


def measure_set(
    model: nn.Module, images: EvaluationSet
) -> tuple[SetScore | None, tuple[str, Tensor, Tensor] | None]:
    """Scores of all readable images, and (name, original, decoded) of the first, [3, H, W].

    Both are None when no image can be read.
    """
    scores: list[Score] = []
    first = None
    for name, pixels in images.images:
        score, decoded = measure(model, pixels, name)
        if first is None:
            first = name, pixels.float() / 255, decoded
        scores.append(score)
    if not scores:
        return None, None
    means = fmean(score.bpp for score in scores), fmean(score.psnr for score in scores)
    return SetScore(*means, scores), first
