"""What every kernel of `triton_kernels` computes, in plain torch: one function per op, no tricks.

They work in any floating dtype, on one tensor and its layout instead of tables, and return what a
kernel writes. In float64 they are what the kernels are tested against.

Axis letters: F positions along the fold, P positions of a plane behind it, padding included, d the
size of a mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from soap_fast.fused.layout import Layout, padded
from soap_fast.modes import from_modes, to_modes
from soap_fast.options import StepOptions
from soap_fast.plan import Group
from soap_fast.refresh import LEFT_OUT, REFRESHED
from soap_fast.rounding import noise_scale


class Gathered(NamedTuple):
    plane: torch.Tensor  # [F, P]
    square: torch.Tensor  # []
    joint: torch.Tensor  # [F, F]


class Clock(NamedTuple):
    taken: torch.Tensor  # [] bool
    step: torch.Tensor  # []
    skipped: torch.Tensor  # [] int64
    size: torch.Tensor  # [] float64
    decay: torch.Tensor  # [] float64
    floor: torch.Tensor  # []


def gather(
    grad: torch.Tensor, basis: torch.Tensor | None, layout: Layout, inverse_scale: float = 1.0
) -> Gathered:
    """plane = Qᵀ g along the fold; sum g²; J = g gᵀ of the fold, before its rotation.

    Args:
        grad: [d_1 .. d_k], the parameter's shape, any strides.
        basis: [F, F], Q of the folded modes as `derive` joins them; None without a fold.
        inverse_scale: multiplies the gradient first.
    """
    g = to_plane(grad * inverse_scale, layout)  # [F, P], zeros where padded
    plane = g if basis is None else basis.T @ g
    return Gathered(plane, g.square().sum(), g @ g.T)


def clock(
    square: torch.Tensor,
    step: torch.Tensor,
    skipped: torch.Tensor,
    options: StepOptions,
    *,
    factor: torch.Tensor | None = None,
    has_grad: bool = True,
    found_inf: bool = False,
) -> Clock:
    """Whether a step is taken, its sizes, and the floor of what counts.

    taken = sum g² is finite, and nothing else forbids it;  step += taken;  skipped += not taken
    size  = lr sqrt(1 - beta2^step) / (1 - beta1^step), or lr without correct_bias and before step 1
    decay = lr weight_decay
    floor = noise sqrt(beta_s trace K + (1 - beta_s) sum g²), see soap_fast/rounding.py

    Args:
        square: [], sum g².
        step, skipped: [], the tensor's clocks. Without a gradient they stand still.
        factor: [d, d], K of some mode before this gradient; None without, the floor is then 0.
    """
    taken = square.isfinite() & (has_grad and not found_inf)
    step = step + taken
    skipped = skipped + (has_grad & taken.logical_not())
    lr, t = torch.as_tensor(options.lr, dtype=torch.float64), step.double()
    size = lr
    if options.correct_bias and step > 0:
        size = lr * (1 - options.beta2**t).sqrt() / (1 - options.beta1**t)
    floor = torch.zeros_like(square)
    if factor is not None:
        trace = options.shampoo_beta * factor.trace() + (1 - options.shampoo_beta) * square
        floor = noise_scale(options, torch.float32) * trace.sqrt()
    return Clock(taken, step, skipped, size, lr * options.weight_decay, floor)


def gram(
    plane: torch.Tensor, factor: torch.Tensor, beta_s: float, layout: Layout, group: Group
) -> torch.Tensor:  # [d, d]
    """K = beta_s K + (1 - beta_s) x xᵀ, x the plane unfolded along a mode that products rotate.

    A rotation along the fold changes nothing in x xᵀ: the plane that `gather` leaves will do.

    Args:
        plane: [F, P].
        factor: [d, d], K.
    """
    axis = len(layout.axes) - len(layout.products) + layout.products.index(group)
    x = without_padding(plane, layout.inner).view(layout.fold, *layout.axes)
    x = x.movedim(1 + axis, 0).reshape(group.size, -1)  # [d, numel / d]
    return beta_s * factor + (1 - beta_s) * (x @ x.T)


def fold_gram(
    joint: torch.Tensor, factor: torch.Tensor, beta_s: float, layout: Layout, mode: int
) -> torch.Tensor:  # [d, d]
    """K[a, b] = beta_s K[a, b] + (1 - beta_s) sum_{o, i} J[(o, a, i), (o, b, i)].

    Args:
        joint: [F, F], J.
        factor: [d, d], K of one of the folded modes.
    """
    assert layout.folded is not None
    modes, sizes = layout.folded.modes, layout.plan.modes
    place = modes.index(mode)
    outer, inner = (prod(sizes[m] for m in part) for part in (modes[:place], modes[place + 1 :]))
    d = sizes[mode]
    by_mode = joint.view(outer, d, inner, outer, d, inner)
    return beta_s * factor + (1 - beta_s) * torch.einsum("oaiobi->ab", by_mode)


def rotate(
    plane: torch.Tensor, matrix: torch.Tensor, layout: Layout, number: int
) -> torch.Tensor:  # [F, P']
    """out[j, ..] = sum_k M[j, k] x[.., k]: the contiguous mode leaves as the slowest of products.

    Args:
        plane: [F, P] after `number` products.
        matrix: [d, d], M: the transposed basis on the way there, the basis on the way back.
    """
    sizes = [group.size for group in layout.products]
    sizes = sizes[len(sizes) - number :] + sizes[: len(sizes) - number]
    batch = layout.fold * prod(group.size for group in layout.plain)
    x = without_padding(plane, sizes[-1]).view(batch, *sizes)
    out = (x @ matrix.T).movedim(-1, 1)  # [batch, d, ..]
    return with_padding(out.reshape(-1, out.shape[-1])).view(layout.fold, -1)


def adam(
    g: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    options: StepOptions,
    floor: torch.Tensor | float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g²;  n = m / (sqrt(v) + eps).

    Elementwise, all of one shape; n is 0 where both m and the denominator are, and where sqrt(v)
    is below the floor.

    Returns:
        m, v, n.
    """
    exp_avg = options.beta1 * exp_avg + (1 - options.beta1) * g
    exp_avg_sq = options.beta2 * exp_avg_sq + (1 - options.beta2) * g.square()
    root = exp_avg_sq.sqrt()
    denominator = root + options.eps
    n = torch.where((denominator == 0) | (root < floor), 0, exp_avg / denominator)
    return exp_avg, exp_avg_sq, n


def norm(size: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:  # []
    """size / (1e-30 + rms(n)), the size of a step under normalize_grads; bases keep the rms.

    Args:
        size: [], of `clock`.
        direction: [d_1 .. d_k], n without padding.
    """
    return size / (1e-30 + direction.square().mean().sqrt())


def apply(
    param: torch.Tensor,
    plane: torch.Tensor,
    basis: torch.Tensor | None,
    size: torch.Tensor,
    decay: torch.Tensor,
    layout: Layout,
) -> torch.Tensor:  # [d_1 .. d_k]
    """u = Q n along the fold;  p = p - size u;  p = p - decay p. Not rounded to a smaller dtype.

    Args:
        param: [d_1 .. d_k], p.
        plane: [F, P], n after the rotation back.
        basis: [F, F], Q of the folded modes; None without a fold.
        size, decay: [].
    """
    u = from_plane(plane if basis is None else basis @ plane, layout)
    param = param - size * u
    return param - decay * param


def derive(
    bases: Sequence[torch.Tensor], transposed: bool, rows: int, columns: int
) -> torch.Tensor:  # [rows, columns]
    """Q = Q_1 x Q_2 x ..  (Kronecker), or Qᵀ, with zeros below and to the right.

    Args:
        bases: [d_i, d_i] each, of the modes of one group in their order.
    """
    joint = bases[0]
    for basis in bases[1:]:
        joint = torch.kron(joint, basis)
    if transposed:
        joint = joint.T
    return pad(joint, (0, columns - joint.shape[1], 0, rows - joint.shape[0]))


def permute(
    exp_avg_sq: torch.Tensor, orders: Sequence[torch.Tensor | None], layout: Layout
) -> torch.Tensor:  # [numel]
    """v[order_1[i_1], .., order_k[i_k]], in the order in which moments lie in memory.

    Args:
        exp_avg_sq: [d_1 .. d_k], v.
        orders: [d_i] int64 per mode after merging, or None.
    """
    by_mode = to_modes(exp_avg_sq, layout.plan)
    for mode, order in enumerate(orders):
        if order is not None:
            by_mode = by_mode.index_select(mode, order)
    flat = exp_avg_sq.new_empty(layout.numel)
    layout.state_view(flat).copy_(from_modes(by_mode, layout.plan))
    return flat


def settle(
    plane: torch.Tensor, layout: Layout, exp_avg_sq: torch.Tensor | None = None
) -> torch.Tensor:  # [d_1 .. d_k]
    """A moment from the plane [F, P] in which its rotation ended, in the parameter's shape.

    Args:
        exp_avg_sq: [d_1 .. d_k]; where it is exactly 0, exp_avg is.
    """
    moment = from_plane(plane, layout)
    return moment if exp_avg_sq is None else moment.masked_fill(exp_avg_sq == 0, 0)


def count(
    refreshes: torch.Tensor,
    off_diagonal: torch.Tensor,
    due: Sequence[int],
    outcomes: torch.Tensor,
    shares: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """refreshes[outcome - 1] += 1;  off_diagonal[mode] = share, for modes that were looked at.

    Args:
        refreshes: [3] int64.
        off_diagonal: [modes].
        due: modes whose refresh fell due.
        outcomes: [due] int64, see soap_fast/refresh.py.
        shares: [due].

    Returns:
        refreshes, off_diagonal, whether a basis was refreshed and moments follow.
    """
    refreshes, off_diagonal = refreshes.clone(), off_diagonal.clone()
    for mode, outcome, share in zip(due, outcomes.tolist(), shares, strict=True):
        if outcome != LEFT_OUT:
            refreshes[outcome - 1] += 1
            off_diagonal[mode] = share
    return refreshes, off_diagonal, bool((outcomes == REFRESHED).any())


def to_plane(x: torch.Tensor, layout: Layout) -> torch.Tensor:  # [F, P]
    """A tensor of the parameter's shape as a plane, zeros where it is padded."""
    flat = x.new_empty(layout.numel)
    layout.state_view(flat).copy_(x)
    return with_padding(flat.view(-1, layout.inner)).view(layout.fold, layout.positions)


def from_plane(plane: torch.Tensor, layout: Layout) -> torch.Tensor:  # [d_1 .. d_k]
    """A plane in the parameter's shape."""
    return layout.state_view(without_padding(plane, layout.inner).flatten())


def with_padding(rows: torch.Tensor) -> torch.Tensor:  # [n, pitch]
    """Rows [n, inner] of the contiguous axis padded by zeros to a multiple of four elements."""
    return pad(rows, (0, padded(rows.shape[1]) - rows.shape[1]))


def without_padding(plane: torch.Tensor, inner: int) -> torch.Tensor:  # [n, inner]
    """The rows of a plane whose contiguous axis has `inner` elements."""
    return plane.reshape(-1, padded(inner))[:, :inner].contiguous()
