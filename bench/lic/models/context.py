"""Contexts: what of y is known when more of it is coded.

Groups of channels in two passes each, of ELIC and LALIC; slices that know all earlier ones, of TCM
and DCAE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lic.models.convolutions import conv
from bench.lic.models.entropy import GaussianConditional

GROUPS = (16, 16, 32, 64, 192)  # channels of y; the first, which all others see, are the fewest
KERNEL = 5


class CheckerboardConv(nn.Conv2d):
    """5x5 convolution that reads only pixels of the other colour than its centre.

    The mask is applied in the forward, since an optimizer may write to masked taps although their
    gradient is zero. SOAP does: a rotated gradient has rounding where it should have zeros, and
    Adam's normalisation makes that as large as all else.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, KERNEL, padding=KERNEL // 2)
        odd = ~_even(KERNEL, KERNEL, self.weight.device)  # 12 of 25 taps, without the centre
        self.register_buffer("mask", odd.to(self.weight.dtype), persistent=False)
        with torch.no_grad():
            self.weight.mul_(self.mask)

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H, W]
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class CheckerboardContext(nn.Module):
    """y's groups in turn; of each first the anchors, the even pixels, then the others.

    Anchors are coded knowing `side` and, of all earlier groups, everything; the others know the
    anchors of their own group as well, through a CheckerboardConv.

    Args:
        groups: channels of each group.
        side: channels of the side information, which comes from z.
        channel_context: (channels of all earlier groups, outputs) -> a module on maps.
        parameters: (inputs, outputs) -> a module on maps, that gives scale and mean.

    Source: He et al. 2022, ELIC (arXiv 2203.10886).
    """

    def __init__(
        self,
        groups: Sequence[int],
        side: int,
        channel_context: Callable[[int, int], nn.Module],
        parameters: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.channel_context = nn.ModuleList(
            channel_context(sum(groups[:k]), 2 * groups[k]) for k in range(1, len(groups))
        )
        self.spatial_context = nn.ModuleList(CheckerboardConv(g, 2 * g) for g in groups)
        self.entropy_parameters = nn.ModuleList(
            parameters(2 * g * (1 + (k > 0)) + side, 2 * g) for k, g in enumerate(groups)
        )
        self.gaussian = GaussianConditional()

    def forward(self, y: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise y, knowing side; both [B, C, H, W]. Returns (decoded, likelihood), as y."""
        decoded: list[Tensor] = []
        likelihoods: list[Tensor] = []
        for k, group in enumerate(y.split(self.groups, dim=1)):
            known = side
            if k > 0:
                known = torch.cat([self.channel_context[k - 1](torch.cat(decoded, 1)), side], 1)
            symbols, likelihood = self._two_passes(k, group, known)
            decoded.append(symbols)
            likelihoods.append(likelihood)
        return torch.cat(decoded, 1), torch.cat(likelihoods, 1)

    def _two_passes(self, k: int, group: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        even = _even(*group.shape[2:], group.device)  # [H, W]
        # Without anchors their context is zero: the convolution's bias is not there either.
        nothing = group.new_zeros(group.shape[0], 2 * group.shape[1], *group.shape[2:])
        first = self.entropy_parameters[k](torch.cat([nothing, known], 1))  # [B, 2g, H, W]
        anchors = self.gaussian.decode(group, first.chunk(2, dim=1)[1]) * even
        seen = self.spatial_context[k](anchors)
        second = self.entropy_parameters[k](torch.cat([seen, known], 1))
        scale, mean = torch.where(even, first, second).chunk(2, dim=1)
        return self.gaussian(group, scale, mean)


def _even(height: int, width: int, device: torch.device) -> Tensor:
    """Where row + column is even  # [height, width] bool."""
    rows = torch.arange(height, device=device)[:, None]
    return (rows + torch.arange(width, device=device)) % 2 == 0


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
