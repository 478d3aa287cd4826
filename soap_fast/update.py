"""One update of one tensor: semantics of every call after the first, in the order of the paper.

Source: arXiv 2409.11321, Algorithm 3, and the reference implementation nikhilvyas/SOAP.
"""

from __future__ import annotations

import torch

from soap_fast.call import TensorCall, is_usable
from soap_fast.modes import gram, rotate, rotate_back


def update(call: TensorCall) -> torch.Tensor:  # [] bool
    """Take one step for one tensor, or leave all of it untouched where the gradient is not usable.

    Everything new is computed before anything is written, so that an error half way (out of memory,
    an interrupt) leaves the tensor as it was.

    Returns:
        Whether the step was taken, on the tensor's device.
    """
    state, options, plan = call.state, call.options, call.plan
    bases, factors = state["Q"], state["GG"]
    beta1, beta2, beta_s = options.beta1, options.beta2, options.shampoo_beta

    grad = call.gather()  # g, [d_1 .. d_k]
    taken = is_usable(grad)
    rotated = rotate(grad, bases, plan)  # g' = R(g)

    step = state["step"] + 1
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * rotated
    exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * rotated.square()

    direction = rotate_back(adam_direction(exp_avg, exp_avg_sq, options.eps), bases, plan)  # u
    if options.normalize_grads:
        direction = direction / (1e-30 + direction.square().mean().sqrt())

    size = step_size(call, step).to(grad.dtype)  # a
    param = call.param.detach().to(grad.dtype)
    param = param - size * direction
    param = param - options.lr * options.weight_decay * param  # on the already updated parameter

    averaged = [
        None if k is None else beta_s * k + (1 - beta_s) * gram(grad, mode, plan)
        for mode, k in enumerate(factors)
    ]

    commit(taken, step, state["step"])
    commit(taken, exp_avg, state["exp_avg"])
    commit(taken, exp_avg_sq, state["exp_avg_sq"])
    commit(taken, param.to(call.param.dtype), call.param)
    for new, old in zip(averaged, factors, strict=True):
        if new is not None:
            commit(taken, new, old)
    state["skipped"].add_(taken.logical_not())
    state["calls"] += 1
    return taken


def adam_direction(exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, eps: float) -> torch.Tensor:
    """n = m / (sqrt(v) + eps), elementwise; v is not bias-corrected. With eps = 0 a 0 / 0 is 0."""
    denominator = exp_avg_sq.sqrt() + eps
    direction = exp_avg / denominator
    return direction if eps > 0 else direction.masked_fill_(denominator == 0, 0)


def step_size(call: TensorCall, step: torch.Tensor) -> torch.Tensor:  # [] float64
    """a = lr sqrt(1 - b2^step) / (1 - b1^step), or lr without correct_bias; stays on the device."""
    options = call.options
    t = step.double()
    if not options.correct_bias:
        return torch.ones_like(t) * options.lr
    bias1 = 1 - options.beta1**t
    bias2 = 1 - options.beta2**t
    return options.lr * bias2.sqrt() / bias1


def commit(taken: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> None:
    """Write `new` over `old` where the step is taken, in place; without a sync."""
    old.copy_(torch.where(taken, new, old))
