"""The roofs of this machine, measured once a session and only if something is timed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

try:
    from bench.roof import copy_bandwidth, matmul_rate
except ImportError:  # until bench/roof.py is there
    from bench.suite.standin_roof import copy_bandwidth, matmul_rate


@dataclass(frozen=True)
class Roofs:
    """Flops per second of a float32 product, and bytes per second of a copy."""

    flops_per_second: float
    bytes_per_second: float


@functools.cache
def roofs(device: str) -> Roofs:
    return Roofs(matmul_rate(device, torch.float32), copy_bandwidth(device))
