"""How far the bases of an optimizer are from diagonalising its factors."""

from __future__ import annotations

import torch

from soap_fast import ambient
from soap_fast.diagnostics.scores import named_parameters, to_host
from soap_fast.soap import SOAP


def off_diagonal(optimizer: SOAP) -> dict[str, list[float]]:
    """The mass of each factor off its diagonal in its present basis.

    With H = QᵀKQ in the norm of Frobenius,

        off = |H - diag H| / |H|,    0 where Q has the eigenvectors of K, and of a factor of zeros.

    `SOAP.stats()["off_diagonal"]` has the same as of before the last refresh, for nothing. This
    costs 4 d³ flops for a factor [d, d], in full precision; it waits for the device once, and
    changes nothing.

    Args:
        optimizer: a SOAP.

    Returns:
        By the name or place of each parameter one value per mode; NaN where it has no factor. A
        parameter that has not been stepped is not there.

    Raises:
        TypeError: another optimizer, which has no factors.
        RuntimeError: a step was left between its launches, and the state lies between two.

    Source: the stopping rule of soap_fast/step/refresh.py.
    """
    if not isinstance(optimizer, SOAP):
        raise TypeError(f"{type(optimizer).__name__} has no factors: off_diagonal needs SOAP")
    optimizer._backend.check_whole()
    names, params = named_parameters(optimizer)
    modes: list[tuple[str, int]] = []
    shares: list[torch.Tensor] = []
    found: dict[str, list[float]] = {}
    with ambient.neutral({param.device.type for param in params}):
        for name, param in zip(names, params, strict=True):
            entry = optimizer.state.get(param, {})
            if not entry.get("calls"):
                continue
            found[name] = [float("nan")] * len(entry["GG"])
            for mode, (k, q) in enumerate(zip(entry["GG"], entry["Q"], strict=True)):
                if k is not None:
                    modes.append((name, mode))
                    shares.append(_share(k, q))
    for (name, mode), share in zip(modes, to_host(shares), strict=True):
        found[name][mode] = share
    return found


def _share(k: torch.Tensor, q: torch.Tensor) -> torch.Tensor:  # [] float64
    h = (q.mT @ (k @ q)).double()  # squares of 1e-30 are zero in float32
    norm = torch.linalg.matrix_norm(h)
    off = torch.linalg.matrix_norm(h - torch.diag(h.diagonal())) / norm
    return torch.where(norm == 0, 0, off)
