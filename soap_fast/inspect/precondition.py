"""What an optimizer would do to other gradients than those it steps with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

from soap_fast import ambient
from soap_fast.names import label_of
from soap_fast.step.call import Scaling, TensorCall
from soap_fast.step.modes import rotate
from soap_fast.step.update import averaged_factors, averaged_moments, below_noise, direction_of

if TYPE_CHECKING:
    from soap_fast.soap import SOAP

__all__ = ["precondition"]


@torch.no_grad()
def precondition(
    optimizer: SOAP, grads: Sequence[torch.Tensor | None], *, momentum: bool = False
) -> list[torch.Tensor | None]:
    """Apply an optimizer's preconditioner to any gradients; neither it nor its parameters change.

    Without momentum this is the linear map by which the present state rescales a gradient,
    P(g) = R⁻¹(R(g) / (sqrt(v) + eps)), 0 where sqrt(v) is below the optimizer's noise floor: what
    to compare the gradients of two losses by. With
    momentum it is the update direction u of the next step, should these be its gradients: m and v
    average them first, as in semantics of a step, and the parameter would move by -a u before its
    weight decay. With `normalize_grads` either is divided by its root mean square.

    Computed in plain torch on the parameters' devices, whatever the backend.

    Args:
        optimizer: all of whose parameters with a gradient here have been stepped at least once.
        grads: one for each parameter, in the order of `param_groups`, as torch.autograd.grad
            returns them; of the parameter's shape and device, any floating dtype; or None.
        momentum: whether to go through the moments, as a step does.

    Returns:
        One tensor for each gradient, of its shape, float32 (float64 for float64 parameters), or
        None for None. Zeros where a gradient is not finite, which a step leaves out.

    Raises:
        ValueError: not one gradient for each parameter, one that does not fit its parameter, or a
            parameter that has no bases yet.
        RuntimeError: a step was left between its launches, and the state lies between two.

    Source: arXiv 2409.11321, Algorithm 3.
    """
    params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    if len(grads) != len(params):
        raise ValueError(
            f"{len(grads)} gradients for {len(params)} parameters: give one for each, in the order "
            "of param_groups, or None"
        )
    optimizer._backend.check_whole()
    optimizer._sharing.check_whole()
    given = _by_parameter(optimizer, params, grads)
    calls = list(optimizer._calls(Scaling(), lambda param: given[id(param)]))
    for call in calls:
        if call.is_first:
            name = label_of(optimizer.param_groups, call.param)
            raise ValueError(
                f"{name} has not been stepped yet and has no bases: take a step first, or give "
                "None for it"
            )
    with ambient.neutral({call.param.device.type for call in calls}):
        found = {id(call.param): _preconditioned(call, momentum) for call in calls}
    pairs = zip(params, grads, strict=True)
    return [None if grad is None else found[id(param)] for param, grad in pairs]


def _by_parameter(
    optimizer: SOAP, params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor | None]
) -> dict[int, torch.Tensor | None]:
    """Gradients by the id of their parameter, which may stand twice but has one gradient."""
    given: dict[int, torch.Tensor | None] = {}
    for param, grad in zip(params, grads, strict=True):
        known = given.get(id(param))
        if known is not None and grad is not None and not torch.equal(known, grad):
            name = label_of(optimizer.param_groups, param)
            raise ValueError(
                f"{name} stands twice among the parameters and has two gradients: give their sum "
                "at one place, None at the other"
            )
        given[id(param)] = known if grad is None else grad
    return given


def _preconditioned(call: TensorCall, momentum: bool) -> torch.Tensor:
    grad = call.gather()
    usable = call.is_usable(grad)
    rotated = rotate(grad, call.state["Q"], call.plan)
    factors = call.state["GG"]
    exp_avg, exp_avg_sq = rotated, call.state["exp_avg_sq"]
    if momentum:
        factors = averaged_factors(call, grad)
        exp_avg, exp_avg_sq = averaged_moments(call, rotated)
    exp_avg = exp_avg.masked_fill(below_noise(call, factors, exp_avg_sq), 0)
    return torch.where(usable, direction_of(call, exp_avg, exp_avg_sq), 0)
