"""Random factors and bases, in float64."""

from __future__ import annotations

import torch


def random_orthogonal(size: int, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(size, size, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(normal).Q


def random_factor(size: int, rank: int, generator: torch.Generator) -> torch.Tensor:
    root = torch.randn(size, rank, dtype=torch.float64, generator=generator)
    return root @ root.T
