"""Refresh in batched products and factorisations of plain torch: what a GPU does well.

The algorithm of csrc/refresh/phases for CUDA builds without the extension's kernels. With P the
order of the old columns:

    PᵀHP = L1 L1ᵀ ;  B = L1, its columns normalised ;  BᵀB = L2 L2ᵀ ;  X = Q P B L2^-T
    E = I - XᵀX ;    Q_new = X (I + E/2 + 3/8 E²) ;    carry = QᵀQ_new

X is the Q of a QR of K Q P, since K Q P = Q P L1 L1ᵀ and L1ᵀ is upper triangular. H is shifted by
what rounding may have taken from its pivots, and by 16 times that where a pivot still fails. Where
both fail, or X is far from orthogonal, the old basis stays and counts as failed. So does one that
mixes rows of zeros with others, as old checkpoints may, where K has a smaller rank than the rows
that are left.

In units of d³ a factor costs 19: eight products of 2, three factorisations and a solve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from soap_fast.ranges import station
from soap_fast.step.refresh import (
    FAILED,
    Examined,
    Refreshed,
    examine,
    refresh_eager,
    results_of,
    slots_of_bases,
)

SHIFTS = (2, 16 * 2)  # in units of eps sqrt(d) |H|_inf, tried one after the other
MOST_RESIDUAL = 0.03  # |E|_inf of an X that is taken: 5/16 of its cube is left, 8.4e-6
WORKSPACE = 2**30  # bytes of the factors that go together
MATRICES = 12  # [d, d] for each of them


@station
def refresh_batched(
    factors: Sequence[Tensor],
    bases: Sequence[Tensor],
    selections: Sequence[Tensor],
    allowed: Sequence[Tensor],
    tolerance: float,
) -> Refreshed:
    """As `refresh_eager`, but for factors that count as failed as above; waits for no device."""
    columns: list[list[Tensor]] = [[] for _ in Refreshed._fields]
    for stack, q, selection, flags in zip(factors, bases, selections, allowed, strict=True):
        together = max(1, WORKSPACE // (MATRICES * max(1, stack[:1].nbytes)))
        places = selection, slots_of_bases(stack, q, selection), flags
        parts = [torch.split(of, together) for of in places]
        found = [
            _refresh(stack, q, chosen, slots, may, tolerance)
            for chosen, slots, may in zip(*parts, strict=True)
        ]
        for column, results in zip(columns, zip(*found, strict=True), strict=True):
            column.append(torch.cat(results))
    return Refreshed(*columns)


def refresh_plain(factors: Sequence[Tensor], *arguments: Any, tolerance: float) -> Refreshed:
    """A refresh of stacks on one device without the extension: where QR is slow, without it."""
    op = plain_refresh_on(factors[0].device.type if factors else "cpu")
    return op(factors, *arguments, tolerance)


def plain_refresh_on(device_type: str) -> Callable[..., Refreshed]:
    return refresh_eager if device_type == "cpu" else refresh_batched


def _refresh(
    factors: Tensor, bases: Tensor, selection: Tensor, slots: Tensor, allowed: Tensor,
    tolerance: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    q = bases.index_select(0, slots)  # [k, d, d]
    found = examine(factors.index_select(0, selection), q, allowed, tolerance)
    identity = torch.eye(q.shape[1], dtype=q.dtype, device=q.device)  # [d, d]
    l1, factored = _factored(found, identity)  # [k, d, d], [k]
    b = l1 / torch.linalg.vector_norm(l1, dim=1, keepdim=True)
    l2 = torch.linalg.cholesky_ex(b.mT @ b).L
    z = q.gather(2, found.order[:, None].expand(q.shape)) @ b
    x = torch.linalg.solve_triangular(l2.mT, z, upper=True, left=False)
    x = _zero_rows_apart(x, found.zero)

    e = identity - x.mT @ x
    x = x + x @ (e @ (identity / 2 + 0.375 * e))
    residual = e.abs().sum(2).amax(1)  # [k] NaN is above any bound
    good = factored & (residual <= MOST_RESIDUAL)
    outcome = torch.where(found.change & ~good, FAILED, found.outcome)
    return results_of(found._replace(change=found.change & good, outcome=outcome), bases, x, q,
                      slots, allowed)  # fmt: skip


def _factored(found: Examined, identity: Tensor) -> tuple[Tensor, Tensor]:
    """L1 [k, d, d], the identity where the basis stays, and whether its pivots are positive [k]."""
    rows = found.order[:, :, None].expand(found.h.shape)
    h = ((found.h + found.h.mT) / 2).gather(1, rows).gather(2, rows.mT)
    largest = h.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    norm = h.abs().sum(2).amax(1)[:, None, None]
    unit = torch.finfo(h.dtype).eps * h.shape[1] ** 0.5 * (norm / largest)  # [k, 1, 1]
    l1, factored = identity.expand(h.shape), torch.zeros_like(found.change)
    for shift in reversed(SHIFTS):
        shifted = h / largest + shift * unit * identity
        shifted = torch.where(found.change[:, None, None], shifted, identity)
        lower, info = torch.linalg.cholesky_ex(shifted)
        l1 = torch.where((info == 0)[:, None, None], lower, l1)
        factored = factored | (info == 0)
    return l1, factored


def _zero_rows_apart(x: Tensor, zero: Tensor) -> Tensor:
    """X [k, d, d], of which the rows `zero` [k, d] are the unit vectors of its last columns."""
    place = zero.shape[1] - zero.sum(1, keepdim=True) + zero.cumsum(1) - 1  # [k, d]
    column = torch.arange(zero.shape[1], device=x.device)
    units = (column == place[:, :, None]) & zero[:, :, None]  # [k, d, d]
    last = units.any(1, keepdim=True)  # [k, 1, d]
    return torch.where(zero[:, :, None] | last, units.to(x.dtype), x)
