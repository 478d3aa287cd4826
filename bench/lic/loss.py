"""What training minimises: bits against distortion."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bench.lic.models import Compressed


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
