"""Attention that models share: by a gate, and within windows of a map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.lic.models.convolutions import bottlenecks, conv


class GatedAttention(nn.Module):
    """x + trunk(x) * sigmoid(gate(guide)); the guide is x itself unless another is given.

    Source: Cheng et al. 2020 (arXiv 2001.01568).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*bottlenecks(channels, activated=True))
        self.gate = nn.Sequential(
            *bottlenecks(channels, activated=True),
            conv(channels, channels, 1),
        )

    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:  # [B, channels, H, W]
        gate = self.gate(x if guide is None else guide)
        return x + self.trunk(x) * torch.sigmoid(gate)


class WindowAttention(nn.Module):
    """Every pixel attends to those of its window of size x size pixels; maps are [B, H, W, C].

    logits = Q Kᵀ / sqrt(C / heads) + table[head, row difference, column difference]. With
    `shifted`, windows begin half a window earlier and wrap around the map's edge, across which no
    pixel sees another.

    Source: Liu et al. 2021, Swin Transformer (arXiv 2103.14030).
    """

    offsets: Tensor

    def __init__(self, channels: int, heads: int, size: int, *, shifted: bool) -> None:
        super().__init__()
        self.heads, self.size, self.shifted = heads, size, shifted
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        span = 2 * size - 1
        # Public models keep it so, [heads, span, span] with heads fastest in memory: optimizers
        # meet a parameter that is not contiguous, and a gradient with the same strides.
        table = torch.empty(span, span, heads)
        self.table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02).permute(2, 0, 1))
        self.register_buffer("offsets", _offsets(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        half, p = self.size // 2, self.size
        if self.shifted:
            x = x.roll((-half, -half), dims=(1, 2))
        b, height, width, c = x.shape
        grid = (height // p, width // p)
        windows = x.view(b, grid[0], p, grid[1], p, c).transpose(2, 3)  # [B, R, S, p, p, C]
        attended = self._attend(windows.reshape(b, grid[0] * grid[1], p * p, c), grid)
        windows = attended.view(b, *grid, p, p, c).transpose(2, 3)  # [B, R, p, S, p, C]
        x = windows.reshape(b, height, width, c)
        return x.roll((half, half), dims=(1, 2)) if self.shifted else x

    def _attend(self, windows: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attention in each window; windows and result  # [B, R * S, p * p, C]."""
        b, n, tokens, c = windows.shape
        qkv = self.qkv(windows).view(b, n, tokens, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each [B, R * S, heads, p * p, C / heads]
        logits = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        logits = logits + self.table.flatten(1)[:, self.offsets]
        if self.shifted:
            unseen = _across_the_edge(self.size, grid, windows.device)
            logits = logits.masked_fill(unseen[:, None], -torch.inf)
        attended = logits.softmax(-1) @ v  # [B, R * S, heads, p * p, C / heads]
        return self.out(attended.transpose(2, 3).reshape(b, n, tokens, c))


def _offsets(size: int) -> Tensor:
    """Of a query and a key in a window, the place in the flattened table  # [p * p, p * p]."""
    row, column = (place.flatten() for place in _places(size, None))
    down, right = row[:, None] - row + size - 1, column[:, None] - column + size - 1
    return down * (2 * size - 1) + right


def _across_the_edge(size: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Where query and key are neighbours by the wrap alone  # [R * S, p * p, p * p] bool.

    In the last row of windows the lower half has come from the top of the map, in the last column
    the right half from the left.
    """
    low, right = (place.flatten() >= size // 2 for place in _places(size, device))
    last = [torch.arange(n, device=device) == n - 1 for n in grid]
    rows = last[0][:, None, None, None] & (low[:, None] != low)  # [R, 1, p * p, p * p]
    columns = last[1][:, None, None] & (right[:, None] != right)  # [S, p * p, p * p]
    return (rows | columns).flatten(0, 1)


def _places(size: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel of a window  # [p, p]."""
    steps = torch.arange(size, device=device)
    row, column = torch.meshgrid(steps, steps, indexing="ij")
    return row, column
