"""One update of one tensor: semantics of every call after the first, in the order of the paper.

Source: arXiv 2409.11321, Algorithm 3, and the reference implementation nikhilvyas/SOAP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soap_fast.interrupts import at_once
from soap_fast.ranges import station
from soap_fast.step.call import Parts, TensorCall, counting
from soap_fast.step.modes import grams, rotate, rotate_back
from soap_fast.step.rounding import noise_floor


def update(call: TensorCall) -> torch.Tensor:  # [] bool
    """Take one step for one tensor, or leave all of it untouched where the gradient is not usable.

    Everything new is computed before anything is written, so that an error half way, such as out
    of memory, leaves the tensor as it was.

    Returns:
        Whether the step was taken, on the tensor's device.
    """
    state, plan = call.state, call.plan

    grad = call.gather()  # g, [d_1 .. d_k]
    taken = call.is_usable(grad)
    rotated = rotate(grad, state["Q"], plan)  # g' = R(g)
    factors = averaged_factors(call, grad)

    step = state["step"] + 1
    exp_avg, exp_avg_sq = averaged_moments(call, rotated)
    known = exp_avg.masked_fill(below_noise(call, factors, exp_avg_sq), 0)
    direction = direction_of(call, known, exp_avg_sq)  # u

    size = step_size(call, step).to(grad.dtype)  # a
    param = call.param.detach().to(grad.dtype)
    param = param - size * direction
    param = param - decay(call, grad.dtype) * param  # on the already updated parameter

    commit(
        taken,
        (step, state["step"]),
        (exp_avg, state["exp_avg"]),
        (exp_avg_sq, state["exp_avg_sq"]),
        (param.to(call.param.dtype), call.param),
        *((new, old) for new, old in zip(factors, state["GG"], strict=True) if new is not None),
        count=state["skipped"],
        then=counting([call], [taken]),
    )
    return taken


def averaged_moments(call: TensorCall, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """m = b1 m + (1 - b1) g' and v = b2 v + (1 - b2) g'², in the rotated basis; new tensors."""
    state, beta1, beta2 = call.state, call.options.beta1, call.options.beta2
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * rotated
    exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * rotated.square()
    return exp_avg, exp_avg_sq


def averaged_factors(call: TensorCall, grad: torch.Tensor) -> list[torch.Tensor | None]:
    """K = b_s K + (1 - b_s) g_(i) g_(i)ᵀ per mode; new tensors, None where there is no factor."""
    beta_s = call.options.shampoo_beta
    return [
        None if k is None or new is None else beta_s * k + (1 - beta_s) * new
        for k, new in zip(call.state["GG"], grams(grad, call.plan), strict=True)
    ]


def below_noise(
    call: TensorCall, factors: Sequence[torch.Tensor | None], exp_avg_sq: torch.Tensor
) -> torch.Tensor:
    """Where sqrt(v) is below what the rotation's rounding can be; [d_1 .. d_k] bool."""
    return exp_avg_sq.sqrt() < noise_floor(factors, call.options)


def direction_of(call: TensorCall, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor) -> torch.Tensor:
    """u = R⁻¹(n), divided by its root mean square with normalize_grads; [d_1 .. d_k]."""
    rotated = adam_direction(exp_avg, exp_avg_sq, call.options.eps)
    direction = rotate_back(rotated, call.state["Q"], call.plan)
    if call.options.normalize_grads:
        direction = direction / (1e-30 + direction.square().mean().sqrt())
    return direction


@station
def adam_direction(exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, eps: float) -> torch.Tensor:
    """n = m / (sqrt(v) + eps), elementwise; v is not bias-corrected. Where both are 0, n is 0."""
    denominator = exp_avg_sq.sqrt() + eps
    direction = exp_avg / denominator
    if eps < torch.finfo(exp_avg.dtype).tiny:  # in this dtype eps may be zero
        direction = direction.masked_fill(denominator == 0, 0)
    return direction


def step_size(call: TensorCall, step: torch.Tensor) -> torch.Tensor:  # [] float64
    """a = lr sqrt(1 - b2^step) / (1 - b1^step), or lr without correct_bias; stays on the device."""
    options = call.options
    t = step.double()
    if not options.correct_bias:
        return torch.ones_like(t) * options.lr
    bias1 = 1 - options.beta1**t
    bias2 = 1 - options.beta2**t
    return options.lr * bias2.sqrt() / bias1


def decay(call: TensorCall, dtype: torch.dtype) -> float | torch.Tensor:  # [] dtype
    """lr weight_decay in this dtype; an lr in a float32 tensor must not round it before."""
    lr = call.options.lr
    if isinstance(lr, torch.Tensor):
        return (lr.double() * call.options.weight_decay).to(dtype)
    return lr * call.options.weight_decay


@station
def commit(
    taken: torch.Tensor,
    *changes: tuple[torch.Tensor, torch.Tensor],
    count: torch.Tensor | None = None,
    then: Parts = (),
) -> None:
    """Write every (new, old) where the step is taken, in place; without a sync, all or nothing.

    All memory is taken before the first write, and the writes are one call, which no handler of a
    signal divides.

    Args:
        taken: [] bool, on the tensors' device.
        changes: pairs of equal shape and dtype.
        count: [] int64, incremented where the step is not taken.
        then: what belongs to the writes, for `at_once`.
    """
    old = [old for _, old in changes]
    new = [torch.where(taken, new, old) for new, old in changes]
    if count is not None:
        old.append(count)
        new.append(count + taken.logical_not())
    at_once(map(torch._foreach_copy_, (old,), (new,)), *then)
