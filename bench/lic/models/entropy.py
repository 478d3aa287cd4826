"""Entropy models: quantisers, a learned distribution per channel, a Gaussian per element.

Where half precision is left, too: what is a small difference, a long sum, or a square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HALF = (torch.bfloat16, torch.float16)


def full_precision(computed: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function or a method outside of autocast, half-precision arguments raised to float32.

    A likelihood is a difference of two CDFs; bfloat16, with 3 digits, would make most of them 0,
    and keeps no fraction of a latent beyond 128, to which noise is added or which is rounded.
    Places of tokens are exact to 256 in it; squares of more than 255 are infinite in float16.
    Outside of autocast nothing changes, float64 least of all.
    """

    @wraps(computed)
    def outside(*values: Any, **options: Any) -> Any:
        given = (*values, *options.values())
        kind = next((value.device.type for value in given if isinstance(value, Tensor)), "meta")
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return computed(*values, **options)
        with torch.autocast(kind, enabled=False):
            return computed(
                *map(_raised, values), **{name: _raised(value) for name, value in options.items()}
            )

    return outside


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x >= bound)
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * (inside | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound), elementwise.

    The gradient g passes where x >= bound, and below the bound where g < 0, that is where descent
    raises x. A plain clamp would leave a likelihood or a scale below its bound for ever.
    """
    return _LowerBound.apply(x, bound)


def add_noise(x: Tensor) -> Tensor:
    """x + U(-1/2, 1/2): what rounding is to a density. Only likelihoods are computed from it."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


def round_straight_through(x: Tensor) -> Tensor:
    """round(x), half to even, with the gradient of the identity. All that is decoded uses it."""
    return x + (x.round() - x).detach()


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


SCALE_BOUND = 0.11  # below it an element is all but certain, and gradients would blow up


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
