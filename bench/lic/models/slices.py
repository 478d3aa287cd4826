"""The channel context of TCM and DCAE: y in slices, each coded knowing all earlier ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.lic.models.convolutions import conv
from bench.lic.models.gaussian import GaussianConditional

SLICES = 5
CHANNELS = 64  # of a slice, at factor 1
HIDDEN = (224, 128)  # of the networks that give mean, scale and residual, at factor 1


class SliceContext(nn.Module):
    """Slice by slice: mean and scale from what is known, then the decoded slice is corrected.

    `support` gives what mean and scale are computed from, in which models differ. The correction,
    at most half a step of the quantiser, is predicted from the support and the slice.

    Args:
        channels: of a slice.
        supports: channels of the support, one entry per slice.
        hidden: inner widths of the networks.

    Source: Minnen and Singh 2020 (arXiv 2007.08739).
    """

    def __init__(self, channels: int, supports: Sequence[int], hidden: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        self.mean, self.scale = (
            nn.ModuleList(_chain(inputs, *hidden, channels) for inputs in supports)
            for _ in range(2)
        )
        self.residual = nn.ModuleList(
            _chain(inputs + channels, *hidden, channels) for inputs in supports
        )
        self.gaussian = GaussianConditional()

    def support(
        self, index: int, scale: Tensor, mean: Tensor, earlier: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the scale and what the mean of slice `index` are computed from, in this order.

        `scale` and `mean` come from z, `earlier` are the decoded slices; all maps of y's sides.
        """
        raise NotImplementedError

    def forward(self, y: Tensor, scale: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise y  # [B, M, H, W]. Returns (what is decoded, its likelihood), as y."""
        decoded = y[:, :0]
        likelihoods: list[Tensor] = []
        for index, part in enumerate(y.split(self.channels, dim=1)):
            for_scale, for_mean = self.support(index, scale, mean, decoded)
            means = self.mean[index](for_mean)  # [B, channels, H, W]
            symbols, likelihood = self.gaussian(part, self.scale[index](for_scale), means)
            correction = self.residual[index](torch.cat([for_mean, symbols], 1))
            decoded = torch.cat([decoded, symbols + 0.5 * torch.tanh(correction)], 1)
            likelihoods.append(likelihood)
        return decoded, torch.cat(likelihoods, 1)


def _chain(inputs: int, first: int, second: int, outputs: int) -> nn.Sequential:
    """Three convolutions with GELU between them."""
    return nn.Sequential(
        *(conv(inputs, first, 3), nn.GELU()),
        *(conv(first, second, 3), nn.GELU()),
        conv(second, outputs, 3),
    )
