"""What all models have in common: an image becomes y, y becomes z, and z says how y is coded.

Beside it what every model returns, what training minimises, and channel counts of a shrunk model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.lic.models.entropy import EntropyBottleneck


class Compressed(NamedTuple):
    """A decoded batch of images and the probability of every symbol that was coded for it."""

    images: Tensor  # [B, 3, H, W], not clamped
    likelihoods: tuple[Tensor, ...]  # one tensor per latent, for instance of y [B, M, H/16, W/16]


def scaled(channels: int, factor: float, multiple: int = 1) -> int:
    """channels * factor, rounded to a positive multiple of `multiple`; factor 1 changes nothing.

    Numbers of heads shrink alike, and channels are then multiples of these: attention of a smaller
    model costs less, which it would not if its heads only became narrower.
    """
    if factor == 1:
        return channels
    return max(1, round(channels * factor / multiple)) * multiple


def ramp(inputs: int, outputs: int, least: int) -> tuple[int, int]:
    """The two widths between inputs and outputs on a straight line, each raised to `least`."""
    first, second = (inputs + (outputs - inputs) * step // 3 for step in (1, 2))
    return max(first, least), max(second, least)


class Model(nn.Module):
    """Analysis and synthesis of images, hyper-analysis of y, and `code`, in which models differ.

    Source of the structure: Ballé et al. 2018 (arXiv 1802.01436).
    """

    stride: int  # sides of images are multiples of it
    analysis: nn.Module
    synthesis: nn.Module
    hyper_analysis: nn.Module
    entropy_bottleneck: EntropyBottleneck

    def forward(self, images: Tensor) -> Compressed:
        """Code and decode images  # [B, 3, H, W].

        Raises:
            ValueError: a side that is not a multiple of `stride`.
        """
        self._check(images)
        y = self.analysis(images)  # [B, M, H/16, W/16]
        z = self.hyper_analysis(y)  # [B, N, H/64, W/64]
        z, z_likelihood = self.entropy_bottleneck(z)
        y, y_likelihood = self.code(y, z)
        return Compressed(self.synthesis(y), (y_likelihood, z_likelihood))

    def code(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise y, knowing the decoded z; returns (what is decoded, its likelihood), as y."""
        raise NotImplementedError

    def aux_loss(self) -> Tensor:
        return self.entropy_bottleneck.aux_loss()

    def _check(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if not height or not width or height % self.stride or width % self.stride:
            raise ValueError(
                f"images of {height}x{width} pixels: {type(self).__name__} takes sides that are "
                f"multiples of {self.stride}; crop them, or pad them and crop what is decoded"
            )


class Cost(NamedTuple):
    """Three scalars; loss = lam * 255² * mse + bpp."""

    loss: Tensor
    bpp: Tensor  # bits per pixel, by the model's own estimate: no bit stream is written
    mse: Tensor  # mean over images, channels and pixels, on the scale of [0, 1]


def rate_distortion(coded: Compressed, images: Tensor, lam: float) -> Cost:
    """R-D cost of a batch `images`  # [B, 3, H, W] in [0, 1]."""
    pixels = images.shape[0] * images.shape[2] * images.shape[3]
    bits = -torch.stack([p.log2().sum() for p in coded.likelihoods]).sum()
    mse = torch.mean((coded.images - images).square())
    bpp = bits / pixels
    return Cost(lam * 255**2 * mse + bpp, bpp, mse)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of values in [0, 1]."""
    return -10 * math.log10(max(mse, 1e-10))
