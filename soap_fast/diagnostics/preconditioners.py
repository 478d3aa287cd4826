"""What torch's own optimizers make of a gradient by their present state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from soap_fast.inspect.precondition import precondition
from soap_fast.soap import SOAP
from soap_fast.step.call import state_dtype

Gradients = Sequence[torch.Tensor | None]  # one per parameter, in the order of param_groups
Preconditioner = Callable[[Gradients], Gradients]
Entry = Mapping[str, torch.Tensor]  # of a parameter, in optimizer.state
Options = Mapping[str, Any]  # of a group
Rule = Callable[[torch.Tensor, Entry, Any], torch.Tensor]  # g, entry, group -> P(g)


def preconditioner_of(optimizer: torch.optim.Optimizer) -> Preconditioner:
    """The map by which this optimizer's present state rescales a gradient.

    Momentum, learning rate and weight decay are no part of it: they are common to all losses. A
    parameter that has not been stepped yet has no state and gets None.

    Raises:
        ValueError: an optimizer that is not known here.
    """
    if isinstance(optimizer, SOAP):
        return lambda grads: precondition(optimizer, _of_stepped(optimizer, grads))
    rule = RULES.get(type(optimizer))
    if rule is None:
        known = ", ".join(["SOAP", *(kind.__name__ for kind in RULES)])
        raise ValueError(
            f"the preconditioner of {type(optimizer).__name__} is not known ({known} are): "
            "pass preconditioner=, a function from the gradients in the order of param_groups, "
            "some of them None, to as many preconditioned ones"
        )
    return lambda grads: _by_rule(optimizer, rule, grads)


def _of_stepped(optimizer: SOAP, grads: Gradients) -> list[torch.Tensor | None]:
    params = (param for group in optimizer.param_groups for param in group["params"])
    stepped = (bool(optimizer.state.get(param, {}).get("calls")) for param in params)
    return [grad if is_stepped else None for grad, is_stepped in zip(grads, stepped, strict=True)]


@torch.no_grad()
def _by_rule(
    optimizer: torch.optim.Optimizer, rule: Rule, grads: Gradients
) -> list[torch.Tensor | None]:
    found: list[torch.Tensor | None] = []
    places = ((group, param) for group in optimizer.param_groups for param in group["params"])
    for (group, param), grad in zip(places, grads, strict=True):
        entry = optimizer.state.get(param, {})  # not [param], which would add an entry
        if grad is None or (rule is not _as_it_is and not entry):
            found.append(None)
        else:
            found.append(rule(grad.to(state_dtype(param)), entry, group))
    return found


def _as_it_is(grad: torch.Tensor, entry: Entry, group: Options) -> torch.Tensor:
    return grad


def _scaled(grad: torch.Tensor, v: torch.Tensor, eps: float) -> torch.Tensor:
    return grad / (v.sqrt() + eps)


def _adam(grad: torch.Tensor, entry: Entry, group: Options) -> torch.Tensor:
    """g / (sqrt(v / (1 - beta2^t)) + eps); with amsgrad the largest v so far (arXiv 1412.6980)."""
    v = entry["max_exp_avg_sq"] if group.get("amsgrad") else entry["exp_avg_sq"]
    correction: torch.Tensor = 1 - group["betas"][1] ** entry["step"].double()
    return _scaled(grad, v / correction, group["eps"])


def _radam(grad: torch.Tensor, entry: Entry, group: Options) -> torch.Tensor:
    """Adam's, eps before the correction, times the rectification; g before it (1908.03265)."""
    beta2, step = group["betas"][1], entry["step"].to(grad.device).double()
    correction = 1 - beta2**step
    last = 2 / (1 - beta2) - 1
    rho = last - 2 * step * beta2**step / correction
    square = (rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho)
    adaptive = (square * correction).clamp(min=0).sqrt()
    return torch.where(rho > 5, adaptive * _scaled(grad, entry["exp_avg_sq"], group["eps"]), grad)


def _adamax(grad: torch.Tensor, entry: Entry, group: Options) -> torch.Tensor:
    """g / u, u the decayed largest |g|; 0 where u is 0."""
    return (grad / entry["exp_inf"]).masked_fill(entry["exp_inf"] == 0, 0)


def _rmsprop(grad: torch.Tensor, entry: Entry, group: Options) -> torch.Tensor:
    """g / (sqrt(v) + eps); centered takes the mean's square off v."""
    v = entry["square_avg"]
    if group["centered"]:
        v = v - entry["grad_avg"].square()
    return _scaled(grad, v, group["eps"])


def _adagrad(grad: torch.Tensor, entry: Entry, group: Options) -> torch.Tensor:
    """g / (sqrt(sum g²) + eps)."""
    return _scaled(grad, entry["sum"], group["eps"])


def _adadelta(grad: torch.Tensor, entry: Entry, group: Options) -> torch.Tensor:
    """g sqrt(E[u²] + eps) / sqrt(E[g²] + eps) (arXiv 1212.5701)."""
    eps: float = group["eps"]
    return grad * ((entry["acc_delta"] + eps) / (entry["square_avg"] + eps)).sqrt()


def _rprop(grad: torch.Tensor, entry: Entry, group: Options) -> torch.Tensor:
    """sign(g) times each entry's present step."""
    return grad.sign() * entry["step_size"]


RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: _adam,
    torch.optim.RAdam: _radam,
    torch.optim.Adamax: _adamax,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
    torch.optim.Adadelta: _adadelta,
    torch.optim.Rprop: _rprop,
    torch.optim.SGD: _as_it_is,
    torch.optim.ASGD: _as_it_is,
}
