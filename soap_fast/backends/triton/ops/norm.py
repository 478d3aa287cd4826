"""`norm`: sizes of steps under normalize_grads."""

from __future__ import annotations

import torch


def norm(size: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:  # []
    """size / (1e-30 + rms(n)), the size of a step under normalize_grads; bases keep the rms.

    Args:
        size: [], of `clock`.
        direction: [d_1 .. d_k], n without padding.
    """
    return size / (1e-30 + direction.square().mean().sqrt())
