"""What a call must have made of a tensor's moments and factors, from the gradient it was given.

In float64 and by the rotations and Gram matrices of `oracle.py`, which shares no code with the
package: a gradient that was read transposed, or a factor that no gradient has reached, shows here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from oracle import OracleSOAP

TERMS = 64  # roundings in a row of what is summed up
PLANNING = ("max_precond_dim", "merge_dims", "precondition_1d", "data_format")


def check_averages(
    grad: torch.Tensor,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    group: Mapping[str, Any],
    *,
    refreshed: bool,
) -> None:
    """K = b_s K + (1 - b_s) g gᵀ at every call; m and v where none of the bases has changed.

    Args:
        grad: g, finite, of the parameter's shape.
        old, new: the tensor's entries before and after the call; without moments before the first.
        group: options of its parameter group.
        refreshed: whether the call went on to a refresh, which permutes v and carries m.
    """
    if not grad.numel():
        return
    oracle = OracleSOAP([], **{name: group[name] for name in PLANNING})
    beta1, beta2 = group["betas"]
    beta_s = group["shampoo_beta"] if group["shampoo_beta"] >= 0 else beta2
    g = grad.double()
    size = float(g.norm())  # bounds every entry of R(g)
    first = "GG" not in old

    for mode, gram in enumerate(oracle.grams(g)):
        k = new["GG"][mode]
        if k is None:  # without a factor, or of size 1
            continue
        before = torch.zeros_like(gram) if first else old["GG"][mode].double()
        assert_near(k, beta_s * before + (1 - beta_s) * gram, size**2, f"GG[{mode}]")
        if first:
            q = new["Q"][mode].double()
            inside = q.T @ k.double() @ q
            assert_near((inside - inside.diag().diag()).to(k.dtype), 0 * inside, size**2, "QᵀKQ")
    if first:
        assert not new["exp_avg"].any()
        assert not new["exp_avg_sq"].any()
    elif not refreshed:
        rotated = oracle.project(g, [None if q is None else q.double() for q in old["Q"]])
        m = beta1 * old["exp_avg"].double() + (1 - beta1) * rotated
        v = beta2 * old["exp_avg_sq"].double() + (1 - beta2) * rotated**2
        assert_near(new["exp_avg"], m, size, "exp_avg")
        assert_near(new["exp_avg_sq"], v, size**2, "exp_avg_sq")


def assert_near(found: torch.Tensor, wanted: torch.Tensor, added: float, name: str) -> None:
    """To the roundings of a sum whose terms are as large as what was there and what was added."""
    numbers = torch.finfo(found.dtype)
    bound = TERMS * numbers.eps / 2 * max(added, float(wanted.abs().max())) + numbers.tiny
    error = float((found.double() - wanted).abs().max())
    assert error <= bound, (name, tuple(found.shape), error, bound)
