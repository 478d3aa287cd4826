"""The conditional entropy model: a Gaussian per element, mean and scale given by the decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.lic.models.bounds import add_noise, lower_bound, round_straight_through
from bench.lic.models.full_precision import full_precision

SCALE_BOUND = 0.11  # below it an element is all but certain, and gradients would blow up
LIKELIHOOD_BOUND = 1e-9


class GaussianConditional(nn.Module):
    """p(y) = Phi((y + 1/2 - mean) / scale) - Phi((y - 1/2 - mean) / scale), no parameters."""

    @full_precision
    def forward(self, y: Tensor, scale: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise y; all three [B, C, H, W]. Returns (what is decoded, its likelihood), as y."""
        decoded = self.decode(y, mean)
        return decoded, gaussian_likelihood(add_noise(y) if self.training else decoded, scale, mean)

    @full_precision
    def decode(self, y: Tensor, mean: Tensor) -> Tensor:
        """y rounded about its mean: what a decoder that knows the mean has of y."""
        return round_straight_through(y - mean) + mean


def gaussian_likelihood(y: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
    """p(y) of every element, at least 1e-9; `scale` is bounded below by 0.11."""
    distance = (y - mean).abs()  # by symmetry; keeps the difference in the accurate lower tail
    scale = lower_bound(scale, SCALE_BOUND)
    p = _normal_cdf((0.5 - distance) / scale) - _normal_cdf((-0.5 - distance) / scale)
    return lower_bound(p, LIKELIHOOD_BOUND)


def _normal_cdf(t: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-t / math.sqrt(2))
