"""Whether directions agree: those of several losses within a step, and those of two steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite, sqrt
from typing import Any

import torch
import torch.distributed as dist

from soap_fast.diagnostics.preconditioners import Gradients, Preconditioner, preconditioner_of
from soap_fast.names import label

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Scores:
    """How far directions agree: 1 the same, -1 opposite.

    Attributes:
        overall: of all tensors that were compared, taken as one vector; NaN where there is none.
        per_tensor: of each of them, by the parameter's name or place.
        cosines: [n, n] of each pair of directions, overall.
        skipped: why a tensor was not compared, by its name; it is not in `overall` either.
        standard_error: of `overall`, where a sample of entries was looked at; else 0.
    """

    overall: float
    per_tensor: dict[str, float]
    cosines: tuple[tuple[float, ...], ...]
    skipped: dict[str, str] = field(default_factory=dict)
    standard_error: float = 0.0


def intra_step_score(
    optimizer: torch.optim.Optimizer,
    losses: Sequence[torch.Tensor | Gradients],
    *,
    preconditioner: Preconditioner | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Scores:
    """How far the updates agree that an optimizer would make of each of several losses' gradients.

    With u_i = P(g_i), P what the optimizer's present state makes of a gradient, and n losses

        score = 2 |sum_i u_i / |u_i| / n|² - 1,    for two losses the cosine of u_1 and u_2.

    P is `soap_fast.precondition` for SOAP; g / (sqrt(v) + eps), v corrected for its bias, for Adam;
    g for SGD; likewise for torch's other optimizers whose state is such a scale. Momentum, weight
    decay and learning rates, which are common to all losses, are left out, so that a loss scaled
    for float16 has the same score.

    It costs one backward pass and one P for each loss, for SOAP that is the rotations of a step
    there and back, and memory for n updates of the model and one gradient. For two losses, every
    k steps, it adds 2 / k to a run's backward passes. It waits for the device twice, to read its
    numbers, and with `process_group` once more for each loss. `.grad` is not touched, and the
    losses' graph can be used again.

    Args:
        optimizer: with its state as of now; call it before `step`, or after.
        losses: at least two: scalars with a graph, which is kept, or gradients, one for each
            parameter in the order of `param_groups`, or None. Of `DistributedDataParallel` they
            are this process's.
        preconditioner: in place of P: from gradients in that order to as many updates.
        process_group: average gradients over its processes first, all of which must call this.

    Returns:
        Scores over the tensors that have a gradient in every loss and a state; the others are in
        `skipped`: a decoder has no gradient of the rate.

    Raises:
        ValueError: fewer than two losses, one without a graph or that is no scalar or reaches no
            parameter, gradients that do not fit the parameters, or an optimizer that is not known.

    Source: arXiv 2502.00604, the gradient alignment score; arXiv 2601.20769 applies intra-step and
    inter-step scores to rate and distortion.
    """
    if len(losses) < 2:
        raise ValueError(f"{len(losses)} losses: a score compares two or more")
    names, params = named_parameters(optimizer)
    apply = preconditioner_of(optimizer) if preconditioner is None else preconditioner
    updates: list[Gradients] = []
    finite: list[list[torch.Tensor | None]] = []
    reasons = {n: "complex" for n, p in zip(names, params, strict=True) if p.is_complex()}
    for index, loss in enumerate(losses):
        grads = _gradients(loss, index, params)
        if process_group is not None:
            grads = _averaged(grads, params, process_group)
        updates.append(apply(grads))
        if len(updates[-1]) != len(params):
            raise ValueError(f"preconditioner gave {len(updates[-1])} for {len(params)} gradients")
        for name, grad, update in zip(names, grads, updates[-1], strict=True):
            if grad is None:
                reasons.setdefault(name, f"no gradient in loss {index}")
            elif update is None:
                reasons.setdefault(name, "no state yet: it has not been stepped")
        finite.append([None if grad is None else grad.isfinite().all() for grad in grads])
    # A preconditioner may make zeros of what is not finite, so that updates alone do not tell.
    present = [
        (name, i, f)
        for i, of in enumerate(finite)
        for name, f in zip(names, of, strict=True)
        if f is not None
    ]
    for (name, index, _), is_finite in zip(present, to_host([f for *_, f in present]), strict=True):
        if not is_finite:
            reasons.setdefault(name, f"gradient of loss {index} is not finite")
    what = [f"update of loss {index}" for index in range(len(losses))]
    return aligned(names, params, updates, reasons, what)


def inter_step_score(
    optimizer: torch.optim.Optimizer, earlier: Gradients, later: Gradients
) -> Scores:
    """The cosine between two updates of an optimizer's parameters; see `InterStepScore`.

    Args:
        optimizer: whose parameters they are of; its state is not looked at.
        earlier, later: one update for each parameter in the order of `param_groups`, or None.

    Source: as `intra_step_score`, of the updates of steps t - 1 and t.
    """
    names, params = named_parameters(optimizer)
    updates = [_gradients(given, place, params) for place, given in enumerate((earlier, later))]
    missing = {
        name: "no update in one of the steps"
        for name, *pair in zip(names, *updates, strict=True)
        if any(update is None for update in pair)
    }
    return aligned(names, params, updates, missing, ("earlier update", "later update"))


@torch.no_grad()
def aligned(
    names: Sequence[str],
    params: Sequence[torch.Tensor],
    updates: Sequence[Gradients],
    skipped: Mapping[str, str],
    what: Sequence[str],
) -> Scores:
    """Scores of n lists of updates, called `what`, over the tensors that are not skipped."""
    seen: set[int] = set()  # a tied weight may stand twice
    grams: dict[str, torch.Tensor] = {}
    for name, param, *vectors in zip(names, params, *updates, strict=True):
        present = [v.detach().flatten().double() for v in vectors if v is not None]
        if name in skipped or len(present) < len(vectors) or id(param) in seen:
            continue
        seen.add(id(param))
        rows = torch.stack(present)  # [n, numel] float64
        grams[name] = rows @ rows.T
    found = dict(zip(grams, to_host(list(grams.values())), strict=True))
    return score_of_grams(found, skipped, what)


def score_of_grams(
    grams: Mapping[str, Matrix], skipped: Mapping[str, str], what: Sequence[str]
) -> Scores:
    """Scores from the dot products [n, n] of the updates of each tensor."""
    n, skipped = len(what), dict(skipped)
    for name, gram in grams.items():
        for index in range(n):
            if not isfinite(gram[index][index]):
                skipped.setdefault(name, f"{what[index]} is not finite")
            elif gram[index][index] == 0:
                skipped.setdefault(name, f"{what[index]} is zero")
    kept = {name: gram for name, gram in grams.items() if name not in skipped}
    total = [[sum(gram[i][j] for gram in kept.values()) for j in range(n)] for i in range(n)]
    cosines = _cosines(total)
    scores = {name: _score(_cosines(gram)) for name, gram in kept.items()}
    return Scores(_score(cosines), scores, cosines, skipped)


def named_parameters(optimizer: torch.optim.Optimizer) -> tuple[list[str], list[torch.Tensor]]:
    """All of an optimizer's parameters, in the order of param_groups, and what to call them."""
    groups = optimizer.param_groups
    names = [
        label(group, place, index)
        for place, group in enumerate(groups)
        for index in range(len(group["params"]))
    ]
    return names, list(chain.from_iterable(group["params"] for group in groups))


def _gradients(
    loss: torch.Tensor | Gradients, index: int, params: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Those of a loss with a graph, or as given, checked."""
    if isinstance(loss, torch.Tensor):
        return _differentiated(loss, index, params)
    if len(loss) != len(params):
        raise ValueError(
            f"loss {index} has {len(loss)} gradients for {len(params)} parameters: give one for "
            "each, in the order of param_groups, or None"
        )
    for place, (grad, param) in enumerate(zip(loss, params, strict=True)):
        if grad is not None and grad.shape != param.shape:
            found, expected = list(grad.shape), list(param.shape)
            raise ValueError(
                f"gradient {place} of loss {index} is {found}, its parameter {expected}"
            )
    return list(loss)


def _differentiated(
    loss: torch.Tensor, index: int, params: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    if loss.numel() != 1:
        raise ValueError(
            f"loss {index} is {list(loss.shape)}, not a scalar: reduce it, or give a list of "
            "gradients"
        )
    if not loss.requires_grad:
        raise ValueError(
            f"loss {index} has no graph: compute it with gradients enabled and do not detach it, "
            "or give its gradients"
        )
    wanted = list({id(param): param for param in params if param.requires_grad}.values())
    try:
        grads = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise ValueError(
            f"the graph of loss {index} has been freed: compute the score before backward(), or "
            "call backward(retain_graph=True)"
        ) from None
    if all(grad is None for grad in grads):
        raise ValueError(f"loss {index} reaches no parameter of the optimizer")
    by_param = {
        id(param): grad.to_dense() if grad is not None and grad.is_sparse else grad
        for param, grad in zip(wanted, grads, strict=True)
    }
    return [by_param.get(id(param)) for param in params]


def _averaged(
    grads: Gradients, params: Sequence[torch.Tensor], group: dist.ProcessGroup
) -> list[torch.Tensor | None]:
    """Mean over processes. A tensor with a gradient in some of them counts as 0 in the others."""
    device = params[0].device
    has = torch.tensor([grad is not None for grad in grads], dtype=torch.int32, device=device)
    dist.all_reduce(has, group=group)
    means: list[torch.Tensor | None] = []
    for count, grad, param in zip(has.tolist(), grads, params, strict=True):
        if count == 0:
            means.append(None)
            continue
        mean = torch.zeros_like(param) if grad is None else grad.detach().clone()
        dist.all_reduce(mean, group=group)
        means.append(mean / dist.get_world_size(group))
    return means


def to_host(tensors: Sequence[torch.Tensor]) -> list[Any]:
    """Values of small tensors of one shape, in one transfer from each device."""
    devices = list(dict.fromkeys(tensor.device for tensor in tensors))
    values: dict[int, Any] = {}
    for device in devices:
        here = [place for place, tensor in enumerate(tensors) if tensor.device == device]
        read = torch.stack([tensors[place] for place in here]).tolist()
        values |= dict(zip(here, read, strict=True))
    return [values[place] for place in range(len(tensors))]


def _cosines(gram: Matrix) -> tuple[tuple[float, ...], ...]:
    lengths = [sqrt(row[index]) for index, row in enumerate(gram)]
    return tuple(
        tuple(
            value / (lengths[i] * lengths[j]) if lengths[i] * lengths[j] else float("nan")
            for j, value in enumerate(row)
        )
        for i, row in enumerate(gram)
    )


def _score(cosines: Matrix) -> float:
    """2 |sum_i u_i / |u_i| / n|² - 1; the square of that sum is the sum of all cosines."""
    return 2 * sum(map(sum, cosines)) / len(cosines) ** 2 - 1
