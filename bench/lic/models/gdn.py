"""Generalised divisive normalisation, the activation of image transforms, and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.models.bounds import lower_bound
from bench.lic.models.full_precision import full_precision

PEDESTAL = 2.0**-36  # keeps the stored square roots away from zero, where their gradient dies
BETA_MIN = 1e-6  # keeps the root in the denominator away from zero
GAMMA_INIT = 0.1


class GDN(nn.Module):
    """x_i / sqrt(n_i), n_i = beta_i + sum_j gamma_ij x_j²; the inverse multiplies by the root.

    beta [channels] and gamma [channels, channels] are stored as sqrt(value + pedestal), so that
    they stay positive. Source: Ballé et al. 2016 (arXiv 1511.06281).
    """

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter((torch.ones(channels) + PEDESTAL).sqrt())
        self.gamma = nn.Parameter((GAMMA_INIT * torch.eye(channels) + PEDESTAL).sqrt())

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        beta = lower_bound(self.beta, (BETA_MIN + PEDESTAL) ** 0.5).square() - PEDESTAL
        gamma = lower_bound(self.gamma, PEDESTAL**0.5).square() - PEDESTAL
        norm = F.conv2d(x.square(), gamma[:, :, None, None], beta)  # [B, channels, H, W]
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())
