"""Convolutions, residual bottlenecks, and generalised divisive normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.models.entropy import full_precision, lower_bound


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    """Convolution that divides the sides by `stride`."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def deconv(inputs: int, outputs: int, kernel: int, *, stride: int = 2) -> nn.ConvTranspose2d:
    """Transposed convolution that multiplies the sides by `stride`."""
    return nn.ConvTranspose2d(
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=kernel // 2,
        output_padding=stride - 1,
    )


def depthwise(channels: int, kernel: int, *, bias: bool = True) -> nn.Conv2d:
    """Convolution of every channel by itself."""
    padding = kernel // 2
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=bias)


def sub_pixel(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution to four times the channels, which become the pixels of doubled sides."""
    return nn.Sequential(conv(inputs, 4 * outputs, 3), nn.PixelShuffle(2))


class Bottleneck(nn.Module):
    """x + three convolutions of x through half the channels; with `activated`, ReLU of the sum.

    Source: He et al. 2022, ELIC (arXiv 2203.10886).
    """

    def __init__(self, channels: int, *, activated: bool = False) -> None:
        super().__init__()
        self.activated = activated
        inner = max(1, channels // 2)
        self.body = nn.Sequential(
            *(conv(channels, inner, 1), nn.ReLU()),
            *(conv(inner, inner, 3), nn.ReLU()),
            conv(inner, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, channels, H, W], as what it returns
        sums = x + self.body(x)
        return F.relu(sums) if self.activated else sums


def bottlenecks(channels: int, *, activated: bool = False) -> list[nn.Module]:
    """Three in a row, as every model has them."""
    return [Bottleneck(channels, activated=activated) for _ in range(3)]


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
