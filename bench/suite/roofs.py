"""The roofs of this machine, measured once a session and only if something is timed."""

from __future__ import annotations

import functools

import torch

from bench.roofline.roofs import DEFAULT_SIZES, Roofs, copy_row, gemm_row

REPEATS = 7


@functools.cache
def roofs(device: str) -> Roofs:
    """Those of a copy and of a float32 product."""
    copied, size = DEFAULT_SIZES[torch.device(device).type]
    product = gemm_row("gemm_float32", device, size, REPEATS)
    return Roofs.of_rows([copy_row(device, copied, REPEATS), product])
