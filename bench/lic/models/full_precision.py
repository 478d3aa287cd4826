"""Where half precision is left: what is a small difference, a long sum, or a square."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

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
