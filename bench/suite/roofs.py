"""The roofs of this machine, measured once a session and only if something is timed."""

from __future__ import annotations

import functools

import torch

from bench.roofline.roofs import DEFAULT_SIZES, Roofs, copy_row, derived, gemm_row

REPEATS = 7


@functools.cache
def roofs(device: str) -> Roofs:
    """Those of a copy and of float32 products, by each way to compute them there."""
    copied, size = DEFAULT_SIZES[torch.device(device).type]
    names = ["gemm_float32", *(["gemm_tf32"] if device.startswith("cuda") else [])]
    products = [gemm_row(name, device, size, REPEATS) for name in names]
    return Roofs.of_rows([copy_row(device, copied, REPEATS), *products, *derived(products)])


def precision(backend: str, device: str) -> str:
    """The roof of a backend's products: on CUDA, Triton makes each of three in tf32."""
    return "tf32x3" if backend == "triton" and device.startswith("cuda") else "float32"
