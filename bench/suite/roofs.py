"""The roofs of this machine, measured once a session and only if something is timed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from bench.roofline.roofs import DEFAULT_SIZES, UNITS, copy_row, gemm_row

REPEATS = 7


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written."""
    row = copy_row(device, DEFAULT_SIZES[torch.device(device).type].copied, REPEATS)
    return float(row["value"] * UNITS[row["unit"]])


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Flops per second of a square product."""
    size = DEFAULT_SIZES[torch.device(device).type].product
    name = f"gemm_{str(dtype).removeprefix('torch.')}"
    row = gemm_row(name, device, size, REPEATS)
    return float(row["value"] * UNITS[row["unit"]])


@dataclass(frozen=True)
class Roofs:
    """Flops per second of a float32 product, and bytes per second of a copy."""

    flops_per_second: float
    bytes_per_second: float


@functools.cache
def roofs(device: str) -> Roofs:
    return Roofs(matmul_rate(device, torch.float32), copy_bandwidth(device))
