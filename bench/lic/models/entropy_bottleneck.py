"""The factorised entropy model: one learned distribution per channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.models.bounds import add_noise, lower_bound, round_straight_through
from bench.lic.models.full_precision import full_precision

SIZES = (1, 3, 3, 3, 3, 1)  # of the layers of the network that gives a CDF's logit
INIT_SCALE = 10.0  # half the width that the distributions cover at the start
LIKELIHOOD_BOUND = 1e-9
TAIL_LOGIT = math.log(2 / LIKELIHOOD_BOUND - 1)  # a tail of half the bound lies beyond it


class EntropyBottleneck(nn.Module):
    """p(z) = prod over elements of c(z + 1/2) - c(z - 1/2), with a CDF c = sigmoid(L) per channel.

    L is a small network with positive weights, hence rising: h <- softplus(M_j) h + b_j, and after
    every layer but the last h <- h + tanh(f_j) tanh(h). `quantiles` are the lower tail, the median
    and the upper tail of each channel's distribution; only `aux_loss` fits them.

    Source: Ballé et al. 2018, appendix 6.1 (arXiv 1802.01436).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = range(len(SIZES) - 1)
        scale = INIT_SCALE ** (1 / len(layers))
        self.matrices, self.biases, self.factors = (nn.ParameterList() for _ in range(3))
        for layer in layers:
            rows, columns = SIZES[layer + 1], SIZES[layer]
            fill = math.log(math.expm1(1 / (scale * rows)))
            self.matrices.append(torch.full((channels, rows, columns), fill))
            self.biases.append(torch.empty(channels, rows, 1).uniform_(-0.5, 0.5))
            if layer != layers[-1]:
                self.factors.append(torch.zeros(channels, rows, 1))
        tails = torch.tensor([-INIT_SCALE, 0.0, INIT_SCALE])
        self.quantiles = nn.Parameter(tails.repeat(channels, 1, 1))  # [channels, 1, 3]

    @full_precision
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise z  # [B, channels, H, W]; returns (what is decoded, its likelihood), as z."""
        median = self.quantiles[:, 0, 1].view(1, -1, 1, 1)
        decoded = round_straight_through(z - median) + median
        return decoded, self.likelihood(add_noise(z) if self.training else decoded)

    def likelihood(self, z: Tensor) -> Tensor:
        """p(z) of every element  # [B, channels, H, W], at least 1e-9."""
        values = z.transpose(0, 1).flatten(1).unsqueeze(1)  # [channels, 1, B * H * W]
        lower, upper = self.logits(values - 0.5), self.logits(values + 0.5)
        # 1 - sigmoid(x) = sigmoid(-x): taken on the side where both are small, the difference
        # stays accurate far out in the upper tail.
        side = torch.where(lower + upper > 0, -1.0, 1.0).to(z.dtype)
        p = (torch.sigmoid(side * upper) - torch.sigmoid(side * lower)).abs()
        p = lower_bound(p, LIKELIHOOD_BOUND)  # [channels, 1, B * H * W]
        return p.view(z.shape[1], z.shape[0], *z.shape[2:]).transpose(0, 1)

    def logits(self, values: Tensor, *, frozen: bool = False) -> Tensor:
        """L of values  # [channels, 1, n]; with `frozen` only `values` receive a gradient."""
        h = values
        for layer, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            matrix, bias = (matrix.detach(), bias.detach()) if frozen else (matrix, bias)
            h = F.softplus(matrix) @ h + bias  # [channels, 3, n], at last [channels, 1, n]
            if layer < len(self.factors):
                factor = self.factors[layer].detach() if frozen else self.factors[layer]
                h = h + torch.tanh(factor) * torch.tanh(h)
        return h

    def aux_loss(self) -> Tensor:
        """sum |L(quantile) - its target logit|; its gradient reaches the quantiles only."""
        targets = self.quantiles.new_tensor([-TAIL_LOGIT, 0.0, TAIL_LOGIT])
        return (self.logits(self.quantiles, frozen=True) - targets).abs().sum()
