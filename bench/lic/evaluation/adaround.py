"""AdaRound: which weights to round up, so that the layer's output stays what it was.

Source: Nagel et al. 2020 (arXiv 2004.10568).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.lic.evaluation.int8 import WEIGHT_LIMIT, nearest

GAMMA, ZETA = -0.1, 1.1  # the sigmoid is stretched over this and clipped: it reaches 0 and 1
BETA = (20.0, 2.0)  # of the regulariser, from and to
WARMUP = 0.2  # part of the iterations that the regulariser waits
# The larger, the more weights are decided before the end and the less is left to the threshold. On
# the 14 layers of a trained hyperprior x 0.25, AdaRound's error over that of rounding to nearest on
# images kept apart: 0.97 at 0.01, 0.88 at 0.1, 0.69 at 1, 0.47 at 10, 0.43 at 30, 0.39 at 100.
LAMBDA = 100.0
RATE = 0.05
ITERATIONS = 400  # 1000 bring the 0.43 at 30 to 0.33, in 2.5 times the time


def adaround(rows: Tensor, scale: Tensor, gram: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Integers  # int8 [groups, R, K], each the one below or the one above w / scale.

    Minimises, with h = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1) and w~ = scale (floor + h),

        sum over channels of K |(w~ - w) X|² / |(w_nearest - w) X|²
        + lambda * sum over weights of (1 - |2h - 1|^beta)

    by Adam over V. Beta falls from 20 to 2 after a warm-up. X are the patches that the layer
    reads: through X Xᵀ the error is that of all of them at each iteration. Dividing by the error of
    rounding to nearest is ours; lambda then means the same in every layer.

    Args:
        rows: weight  # [groups, R, K] float.
        scale: of each channel  # [groups, R, 1].
        gram: X Xᵀ  # [groups, K, K].
    """
    exact = rows / scale
    base = exact.floor().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
    part = (exact - base).clamp(0, 1)
    free = part > 0  # a weight on the grid stays, and with it one that a mask has made 0
    worst = error(nearest(rows, scale) - exact, gram)  # [groups, R]
    weight = torch.where(worst > 0, rows.shape[-1] / worst, 0.0)
    v = torch.logit((part - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=RATE)
    for iteration in range(iterations):
        with torch.enable_grad():
            h = rectified_sigmoid(v) * free
            off = base + h - exact
            pulled = off.detach() @ gram
            # The gradient of off G offᵀ is 2 off G: one product gives it, and autograd takes two.
            loss = (2 * (pulled * off).sum(-1) * weight).sum()
            beta = _beta(iteration / iterations)
            if beta is not None:
                loss = loss + LAMBDA * regulariser(h, beta)
        (v.grad,) = torch.autograd.grad(loss, v)
        optimizer.step()
    up = (rectified_sigmoid(v.detach()) >= 0.5) & free
    return (base + up).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT).to(torch.int8)


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V), equation 23."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def regulariser(h: Tensor, beta: float) -> Tensor:
    """sum of 1 - |2h - 1|^beta, equation 24: 0 where every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def error(off: Tensor, gram: Tensor) -> Tensor:
    """Squared output error of each channel  # [groups, R]; `off` is the weight's  # [.., R, K]."""
    return ((off @ gram) * off).sum(-1).clamp(min=0)


def _beta(done: float) -> float | None:
    """After this share of the iterations; None in the warm-up."""
    if done < WARMUP:
        return None
    first, last = BETA
    return first + (last - first) * (done - WARMUP) / (1 - WARMUP)
