"""A stand-in until bench/roof.py is there: then this file goes, and with it a line of roofs.py."""

from __future__ import annotations

import time

import torch

from bench.peers.arithmetic import sgemm_gflops


def copy_bandwidth(device: str, megabytes: int = 64, repeats: int = 7) -> float:
    """Bytes per second of a copy, read and written: the fastest of `repeats` after a warm-up."""
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    synchronize = torch.cuda.synchronize if source.is_cuda else lambda: None
    seconds = []
    for _ in range(1 + repeats):
        synchronize()
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds[1:])


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Flops per second of a square float32 product."""
    if dtype != torch.float32:
        raise ValueError(f"{dtype}: the stand-in multiplies float32 only")
    return 1e9 * sgemm_gflops(device)
