"""Where half precision is left: probabilities of symbols are computed in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def full_precision(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Run a method outside of autocast, its half-precision arguments raised to float32.

    A likelihood is a difference of two CDFs; bfloat16, with 3 digits, would make most of them 0,
    and keeps no fraction of a latent beyond 128, to which noise is added or which is rounded.
    Outside of autocast nothing changes, float64 least of all.
    """

    @wraps(forward)
    def outside(module: Any, *values: Tensor, **options: Any) -> Any:
        kind = values[0].device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return forward(module, *values, **options)
        raised = (value.float() if value.dtype in HALF else value for value in values)
        with torch.autocast(kind, enabled=False):
            return forward(module, *raised, **options)

    return outside
