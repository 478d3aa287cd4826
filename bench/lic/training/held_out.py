"""How good a model is on images it has not seen, while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.lic.loss import psnr, rate_distortion


class Quality(NamedTuple):
    """Of a batch, or means over the held-out images."""

    loss: float
    bpp: float
    psnr: float  # dB


@torch.no_grad()
def evaluate(model: nn.Module, images: Sequence[Tensor], lam: float, device: str) -> Quality:
    """R-D cost of uint8 `images` [3, H, W], with rounding in place of noise, in float32.

    The decoded image is clamped to [0, 1], as in writing it to a file. Draws no random number.
    """
    model.eval()
    rows = []
    for pixels in images:
        image = pixels[None].to(device).float() / 255  # [1, 3, H, W]
        coded = model(image)
        cost = rate_distortion(coded._replace(images=coded.images.clamp(0, 1)), image, lam)
        rows.append((cost.loss.item(), cost.bpp.item(), psnr(cost.mse.item())))
    model.train()
    return Quality(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))
