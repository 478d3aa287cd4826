"""SOAP in the reference's order of work: tensor by tensor, mode by mode, a product at a time.

Source: nikhilvyas/SOAP and arXiv 2409.11321, Algorithm 3. It is what a step costs when it is
written as it reads; nothing is joined, batched or left out. For one tensor [d_1 .. d_k]:

- A plain step: four rotations, each one `torch.tensordot` with Q_i per mode (the gradient there,
  the direction back, exp_avg back, exp_avg there), and per mode one `torch.tensordot` of the
  gradient with itself over all other modes, the whole square and not its triangle.
- A refresh adds per factor three products [d_i, d_i] (two for the diagonal of Q_iᵀ K_i Q_i, one for
  K_i Q_i), one `torch.linalg.qr`, and a selection of exp_avg_sq along the mode.
- The first call: the Gram matrices, and one `torch.linalg.eigh` per factor.

Modes of size 1 have a 1 x 1 factor, as in the reference; vectors and modes that are too large have
none.
"""

from __future__ import annotations

import math
from typing import Any

import torch

Bases = list[torch.Tensor | None]  # per mode Q_i [d_i, d_i], or None


class OracleSOAP(torch.optim.Optimizer):
    """float32 and healthy gradients only; no weight decay, bias correction always."""

    def __init__(
        self,
        params: list[torch.nn.Parameter],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "precondition_frequency": precondition_frequency,
            "max_precond_dim": max_precond_dim,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if self.state[param]:
                    _update(param, param.grad, self.state[param], group)
                else:
                    self.state[param] = _begin(param.grad, group)


def _begin(grad: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
    _, beta2 = group["betas"]
    grams = [_gram(grad, mode, group) for mode in range(grad.dim())]
    factors = [None if gram is None else (1 - beta2) * gram for gram in grams]
    return {
        "step": 0,
        "exp_avg": torch.zeros_like(grad),
        "exp_avg_sq": torch.zeros_like(grad),
        "GG": factors,
        "Q": [None if k is None else torch.linalg.eigh(k).eigenvectors.flip(1) for k in factors],
    }


def _update(
    param: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    beta1, beta2 = group["betas"]
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    state["step"] += 1

    rotated = _project(grad, state["Q"])  # first rotation
    exp_avg.mul_(beta1).add_(rotated, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
    denominator = exp_avg_sq.sqrt().add_(group["eps"])
    direction = _project(exp_avg / denominator, state["Q"], back=True)  # second
    bias1, bias2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
    param.add_(direction, alpha=-group["lr"] * math.sqrt(bias2) / bias1)

    unrotated = _project(exp_avg, state["Q"], back=True)  # third
    for mode, factor in enumerate(state["GG"]):
        if factor is not None:
            factor.lerp_(_gram(grad, mode, group), 1 - beta2)
    if state["step"] % group["precondition_frequency"] == 0:
        _refresh(state)
    state["exp_avg"] = _project(unrotated, state["Q"])  # fourth


def _refresh(state: dict[str, Any]) -> None:
    """One step of power iteration per factor; exp_avg_sq follows the order of the columns."""
    for mode, (k, q) in enumerate(zip(state["GG"], state["Q"], strict=True)):
        if k is None:
            continue
        order = torch.diag(q.T @ k @ q).argsort(descending=True)
        state["exp_avg_sq"] = state["exp_avg_sq"].index_select(mode, order)
        state["Q"][mode] = torch.linalg.qr(k @ q[:, order]).Q


def _project(x: torch.Tensor, bases: Bases, back: bool = False) -> torch.Tensor:
    """x' = Q_iᵀ x along every mode i, or with `back` x = Q_i x'; [d_1 .. d_k] both."""
    for q in bases:  # the leading mode is contracted and comes out last: k times, and all are back
        x = x.movedim(0, -1) if q is None else torch.tensordot(x, q, dims=([0], [int(back)]))
    return x


def _gram(grad: torch.Tensor, mode: int, group: dict[str, Any]) -> torch.Tensor | None:
    """g_(i) g_(i)ᵀ [d_i, d_i], or None for a mode without a factor."""
    if grad.dim() == 1 or grad.shape[mode] > group["max_precond_dim"]:
        return None
    others = [axis for axis in range(grad.dim()) if axis != mode]
    return torch.tensordot(grad, grad, dims=(others, others))
