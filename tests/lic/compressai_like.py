"""A stand-in for a model of CompressAI, in everything that training asks of one.

`x_hat` and named likelihoods in a dictionary, entropy models that derive from `EntropyModel`,
medians that the R-D loss does not reach, quantiles and an auxiliary loss; a stride of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EntropyModel(nn.Module):
    """Laplace probabilities; keeps the type that its latents arrive in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(z.dtype)
        z = z + torch.empty_like(z).uniform_(-0.5, 0.5) if self.training else z.round()
        return z, (0.5 * torch.exp(-z.abs())).clamp(min=1e-9)


class Gaussian(EntropyModel):
    def forward(self, z: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(means.dtype)
        y, likelihood = super().forward(z - means)
        return y + means, likelihood


class Bottleneck(EntropyModel):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.quantiles = nn.Parameter(torch.tensor([-10.0, 0.0, 10.0]).repeat(channels, 1, 1))

    def loss(self) -> Tensor:
        return (self.quantiles - torch.tensor([-3.0, 0.0, 3.0])).abs().sum()


class Autoencoder(nn.Module):
    downsampling_factor = 16

    def __init__(self) -> None:
        super().__init__()
        self.g_a = nn.Conv2d(3, 4, 16, stride=16)
        self.g_s = nn.ConvTranspose2d(4, 3, 16, stride=16)
        self.never_used = nn.Parameter(torch.zeros(3))
        self.entropy_bottleneck = Bottleneck(4)
        self.mean = nn.Conv2d(4, 4, 1)
        self.gaussian = Gaussian()

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.g_a(x)
        z, z_likelihood = self.entropy_bottleneck(z=y)
        y, y_likelihood = self.gaussian(y, means=self.mean(z))
        return {"x_hat": self.g_s(y), "likelihoods": {"y": y_likelihood, "z": z_likelihood}}

    def aux_loss(self) -> Tensor:
        return self.entropy_bottleneck.loss()


def needs_arguments(channels: int) -> nn.Module:
    return nn.Conv2d(3, channels, 1)


def no_compression_model() -> nn.Module:
    return nn.Conv2d(3, 3, 1)
