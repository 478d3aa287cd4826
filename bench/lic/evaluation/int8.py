"""Eight bits of a layer: integers for its weight and for what it reads.

Layers go on computing in float32, with the numbers that the integers stand for: this is what
integer arithmetic gives, but for float32's rounding of sums. Biases stay float.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear

WEIGHT_LIMIT = 127  # symmetric: -128 would have no counterpart
LEVELS = 255  # steps between the 256 integers of an activation
TINY = torch.finfo(torch.float32).tiny  # below it a scale could not be divided by
BAND = 2**25  # numbers of patches in memory at a time: 128 MiB of float32


class Grid(NamedTuple):
    """An activation's values (q - zero) * scale, of integers q in [0, 255]; 0 is one of them."""

    scale: float
    zero: int


def grid(low: float, high: float) -> Grid:
    """The grid over [low, high] and 0, which padding needs to be exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / LEVELS
    if scale < TINY:  # all is 0, or as good as that
        scale = 1.0
    return Grid(scale, round(-low / scale))


def on_grid(x: Tensor, levels: Grid) -> Tensor:
    """The nearest values of the grid, as x; what lies outside goes to its ends."""
    integers = (x / levels.scale).round() + levels.zero
    return (integers.clamp(0, LEVELS) - levels.zero) * levels.scale


def weight_scale(rows: Tensor) -> Tensor:
    """max |w| / 127 of each output channel; rows are [groups, R, K], scales [groups, R, 1].

    A channel of zeros has scale 1.
    """
    scale = rows.abs().amax(-1, keepdim=True) / WEIGHT_LIMIT
    return torch.where(scale >= TINY, scale, 1.0)


def nearest(rows: Tensor, scale: Tensor) -> Tensor:
    """Integers  # int8 [groups, R, K]  whose multiples of the scale are nearest to rows."""
    return (rows / scale).round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT).to(torch.int8)


# A layer as a product. Its weight is `rows` [groups, R, K]: R output channels in each group, K
# weights in each channel. What it reads is patches [groups, K, n], a column per output pixel.
# output = rows @ patches + bias


def weight_rows(layer: Layer) -> Tensor:
    """The weight as it acts  # [groups, R, K]: a masked convolution's with the mask applied."""
    weight = layer.weight.detach()
    if (mask := getattr(layer, "mask", None)) is not None:
        weight = weight * mask
    if isinstance(layer, nn.Linear):
        return weight[None]
    if isinstance(layer, nn.Conv2d):
        return weight.reshape(layer.groups, -1, weight[0].numel())
    inputs, outputs, *kernel = weight.shape  # outputs of one group
    split = weight.flip(2, 3).view(layer.groups, inputs // layer.groups, outputs, *kernel)
    return split.transpose(1, 2).reshape(layer.groups, outputs, -1)


def as_weight(rows: Tensor, layer: Layer) -> Tensor:
    """The weight, in the layer's own shape, whose rows these are."""
    shape = layer.weight.shape
    if not isinstance(layer, nn.ConvTranspose2d):
        return rows.reshape(shape)
    inputs, outputs, *kernel = shape
    split = rows.view(layer.groups, outputs, inputs // layer.groups, *kernel).transpose(1, 2)
    return split.reshape(shape).flip(2, 3)


def patches(layer: Layer, x: Tensor, at_most: int | None = None) -> Iterator[Tensor]:
    """The patches of x  # [groups, K, n], some rows of the output's pixels at a time.

    Args:
        at_most: about so many pixels, evenly from all; an odd number apart, since those of a
            transposed convolution take turns in which taps they see.
    """
    if isinstance(layer, nn.Linear):
        columns = x.reshape(-1, layer.in_features).T
        columns = columns[:, :: _apart(columns.shape[1], at_most)]
        yield from (part[None] for part in columns.split(max(1, BAND // len(columns)), dim=1))
        return
    x = _padded(layer, x if x.dim() == 4 else x[None])
    stride = layer.stride if isinstance(layer, nn.Conv2d) else (1, 1)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    height, width = ((x.shape[2 + axis] - reach[axis]) // stride[axis] + 1 for axis in (0, 1))
    apart = _apart(len(x) * height * width, at_most)
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    step = max(1, BAND // (len(x) * x.shape[1] * taps * width))
    for top in range(0, height, step):
        rows = min(step, height - top)
        first, last = top * stride[0], (top + rows - 1) * stride[0] + reach[0]
        found = F.unfold(
            x[:, :, first:last], layer.kernel_size, layer.dilation, stride=stride
        )  # [B, groups * K, rows * width]
        columns = found.transpose(0, 1).reshape(layer.groups, -1, len(x) * rows * width)
        yield columns[:, :, ::apart]


def _apart(there: int, at_most: int | None) -> int:
    return 1 if at_most is None else max(1, there // at_most) | 1


def _padded(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """What a convolution without padding would read; a transposed one reads x among zeros."""
    if isinstance(layer, nn.Conv2d):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    down, right = layer.stride
    spread = x.new_zeros(*x.shape[:2], (x.shape[2] - 1) * down + 1, (x.shape[3] - 1) * right + 1)
    spread[:, :, ::down, ::right] = x
    sides: list[int] = []
    for axis in (1, 0):  # F.pad begins with the last
        before = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - int(layer.padding[axis])
        sides += [before, before + layer.output_padding[axis]]
    return F.pad(spread, sides)


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
