"""What every model returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Compressed(NamedTuple):
    """A decoded batch of images and the probability of every symbol that was coded for it."""

    images: Tensor  # [B, 3, H, W], not clamped
    likelihoods: tuple[Tensor, ...]  # one tensor per latent, for instance of y [B, M, H/16, W/16]
