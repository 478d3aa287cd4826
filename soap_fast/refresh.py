"""Refresh the bases of one tensor by a round of orthogonal iteration, and carry its moments over.

Source: arXiv 2409.11321, Algorithm 4 (`get_orthogonal_matrix_QR` of the reference).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from soap_fast.call import TensorCall
from soap_fast.modes import from_modes, rotate, to_modes
from soap_fast.update import commit


class Refreshed(NamedTuple):
    """What a refresh makes of one basis."""

    Q: torch.Tensor  # [d, d] the new basis
    order: torch.Tensor  # [d] int64, the old columns by descending eigenvalue estimate
    carry: torch.Tensor  # [d, d] Q_oldᵀ Q_new: coordinates of old in new


def refresh(call: TensorCall, taken: torch.Tensor) -> None:
    """Refresh every basis of one tensor in place, unless this call's step was left out.

    Args:
        call: the tensor, its factors K already updated by this call's gradient.
        taken: [] bool, whether this call's step was taken.
    """
    state, plan = call.state, call.plan
    renewed = [
        None if k is None else refresh_basis(k, q)
        for k, q in zip(state["GG"], state["Q"], strict=True)
    ]

    # v is only permuted along each mode; m is carried over exactly, m = R_new(R_old⁻¹(m)).
    exp_avg_sq = to_modes(state["exp_avg_sq"], plan)
    for mode, basis in enumerate(renewed):
        if basis is not None:
            exp_avg_sq = exp_avg_sq.index_select(mode, basis.order)
    carries = [None if basis is None else basis.carry for basis in renewed]
    exp_avg = rotate(state["exp_avg"], carries, plan)

    commit(
        taken,
        (exp_avg, state["exp_avg"]),
        (from_modes(exp_avg_sq, plan), state["exp_avg_sq"]),
        *((new.Q, q) for new, q in zip(renewed, state["Q"], strict=True) if new is not None),
    )


def refresh_basis(k: torch.Tensor, q: torch.Tensor) -> Refreshed:
    """QR of K Q with its columns sorted by descending diag(Qᵀ K Q).

    A zero factor has no eigenvectors to move towards, and one that is not finite none at all: both
    keep their basis, exactly.

    Args:
        k: factor [d, d], symmetric.
        q: its present basis [d, d], orthogonal.
    """
    kq = k @ q  # [d, d]
    eigenvalues = (q * kq).sum(0)  # [d] estimates, diag(Qᵀ K Q)
    order = eigenvalues.argsort(descending=True, stable=True)
    usable = kq.isfinite().all() & kq.any()
    # QR of the identity where K is unusable: LAPACK must not see NaN.
    identity = torch.eye(q.shape[0], dtype=q.dtype, device=q.device)
    q_new = torch.linalg.qr(torch.where(usable, kq[:, order], identity)).Q
    return Refreshed(
        Q=torch.where(usable, q_new, q),
        order=torch.where(usable, order, torch.arange(order.numel(), device=order.device)),
        carry=torch.where(usable, q.T @ q_new, identity),
    )
