"""Bidirectional WKV, the linear attention of LALIC: all tokens at once, in linear time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.lic.models.full_precision import full_precision


@full_precision
def bidirectional_wkv(decay: Tensor, boost: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every token's weighted mean of all values, weights falling with the distance of tokens.

    y_t = sum_i weight_ti v_i / sum_i weight_ti, where with w = decay / T and u = boost / T
    weight_ti = exp(k_i - w (|t - i| - 1)) for i != t, and exp(k_t + u) for i = t.

    The sums over i < t and over i > t are cumulative: exp(-w (t - i - 1)) is a factor of t times a
    factor of i. A running maximum is not needed to keep them in range: weights of all keys reach
    all tokens, and fall by exp(|decay|) at most, since w is divided by T. So after the largest key
    of the sequence is taken from all, what underflows is nothing beside what does not. In float32
    that holds while |decay| < 60, and decay starts as N(0, 1).

    Args:
        decay, boost: of each channel  # [C], of either sign.
        key, value: T tokens  # [B, C, T].

    Returns:
        y  # [B, C, T].

    Source: Duan et al. 2024, Vision-RWKV (arXiv 2403.02308).
    """
    tokens = key.shape[-1]
    w, u = decay[:, None] / tokens, boost[:, None] / tokens  # [C, 1]
    place = torch.arange(tokens, device=key.device, dtype=key.dtype) - (tokens - 1) / 2
    rise = torch.exp(w * place)  # [C, T]; centred, so that it spans exp(|decay| / 2) either way
    weight = torch.exp(key - key.detach().amax(-1, keepdim=True))
    terms = torch.stack([weight * value, weight])  # [2, B, C, T]
    past = _sum_before(terms * rise) / rise
    future = _sum_before((terms / rise).flip(-1)).flip(-1) * rise
    weighted, total = (torch.exp(w) * (past + future) + torch.exp(u) * terms).unbind()
    return weighted / total


def _sum_before(terms: Tensor) -> Tensor:
    """Of all earlier tokens, without the token itself; as terms  # [..., T]."""
    return F.pad(terms[..., :-1].cumsum(-1), (1, 0))
