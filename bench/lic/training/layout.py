"""The layout of maps in memory."""

from __future__ import annotations

import torch
from torch import nn

from bench.files import BadInput


def apply_layout(model: nn.Module, channels_last: bool, device: str) -> torch.memory_format:
    """Bring the model's filters into the layout, and return it: its images are to have it too.

    Raises:
        BadInput: torch would corrupt memory. On a CPU the gradient of a 1x1 filter with a stride
            writes beyond its end when channels come last and are few (torch 2.13 with oneDNN).
    """
    if not channels_last:
        return torch.contiguous_format
    if device.startswith("cpu") and any(map(_strided_point, model.modules())):
        raise BadInput(
            "--channels_last on a CPU corrupts memory where a 1x1 convolution has a stride, as in "
            "this model; leave it out"
        )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return torch.channels_last


def _strided_point(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
    )
