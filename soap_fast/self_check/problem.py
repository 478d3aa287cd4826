"""A few tensors for a dozen calls, against plain torch in float64.

Between them they take every kernel and every class of its tiles: two products and one, folds of 9
and of 25 entries, Gram matrices in parts, no factor at all, no axis at all, bfloat16, an update
that is normalized, a gradient with a NaN, and two refreshes. Gradients have full rank in every
mode, and eps is of the size of their rotated entries, so that a step is a smooth function of them
and rounding stays rounding: float32 parts from float64 by 3e-5 of the displacement (eager and
native on a CPU), products in plain tf32 by more than is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch

# The recorded trajectories of the reference, perturbed by 1e-7, part by up to 7e-5 of the
# displacement; what a wrong kernel makes of a step is far above this.
TOLERANCE = 5e-4

CALLS = 12
FREQUENCY = 5  # so that calls 6 and 11 refresh
NAN_CALL, NAN_TENSOR = 4, 3
NORMALIZED = 2  # this tensor's update is divided by its root mean square
OPTIONS: dict[str, Any] = {
    "lr": 3e-3,
    "eps": 2.0,
    "precondition_frequency": FREQUENCY,
    "max_precond_dim": 1000,
    "noise_floor": 0.0,  # by rounding, entries near it fall on either side
}
TENSORS: tuple[tuple[tuple[int, ...], torch.dtype], ...] = (
    ((144, 144, 3, 3), torch.float32),
    ((12, 10, 5, 5), torch.float32),
    ((16, 5, 5), torch.float32),
    ((96, 96), torch.float32),
    ((33,), torch.float32),
    ((), torch.float32),
    ((48, 48), torch.bfloat16),
    ((56, 8000), torch.float32),
)

MakeOptimizer = Callable[..., Any]


def largest_error(
    make: MakeOptimizer, backend: str, device: torch.device | str, **options: Any
) -> float:
    """How far a backend's float32 steps on a device part from eager ones in float64.

    Args:
        make: `soap_fast.SOAP`.
        backend: by name.
        options: for the optimizer that is checked, such as `input_precision`.

    Returns:
        The largest error of any tensor at any call, relative to the tensor's displacement (beyond
        the rounding of its dtype), and of any factor relative to its largest entry; inf for a
        value that is not finite, or a tensor that was skipped when it should not be or stepped
        when it should not be.
    """
    found = _steps(make, backend, torch.device(device), **options)
    expected = _steps(make, "eager", None)
    return max(_errors(f, e) for f, e in zip(found, expected, strict=True))


# Of each tensor after a call: parameter, factors, calls skipped.
Snapshot = list[tuple[torch.Tensor, list[torch.Tensor], int]]


def _steps(
    make: MakeOptimizer, backend: str, device: torch.device | None, **options: Any
) -> Iterator[Snapshot]:
    """What there is after each call; without a device in float64, on the CPU."""
    params = []
    for index, (_, dtype) in enumerate(TENSORS):
        params.append(torch.nn.Parameter(_as(_start(index), dtype, device)))
    groups = [
        {"params": params[:NORMALIZED] + params[NORMALIZED + 1 :]},
        {"params": [params[NORMALIZED]], "normalize_grads": True},
    ]
    optimizer = make(groups, backend=backend, **OPTIONS, **options)
    for call in range(CALLS):
        for index, param in enumerate(params):
            shape, dtype = TENSORS[index]
            # The same for both, in memory of its own.
            grad = _gradient(shape, seed=800 + 10 * call + index).to(dtype, copy=True)
            if (call, index) == (NAN_CALL, NAN_TENSOR):
                grad.view(-1)[5] = float("nan")
            param.grad = _as(grad.double(), dtype, device)
        optimizer.step()
        yield [_snapshot(param, optimizer.state[param]) for param in params]


def _snapshot(
    param: torch.Tensor, entry: dict[str, Any]
) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    factors = [k.to("cpu", torch.float64, copy=True) for k in entry["GG"] if k is not None]
    return param.detach().to("cpu", torch.float64, copy=True), factors, int(entry["skipped"])


def _errors(found: Snapshot, expected: Snapshot) -> float:
    worst = 0.0
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        dtype = TENSORS[index][1]
        (param, factors, skipped), (should_be, its_factors, its_skipped) = one, other
        moved = _distance(should_be, _start(index))
        rounding = 0.0
        if dtype != torch.float32:  # every call rounds the parameter once
            rounding = CALLS * torch.finfo(dtype).eps / 2 * float(should_be.abs().max())
        beyond = max(_distance(param, should_be) - rounding, 0.0)
        if moved:
            worst = max(worst, beyond / moved)
        elif beyond:
            return float("inf")
        for factor, k in zip(factors, its_factors, strict=True):
            worst = max(worst, _distance(factor, k) / float(k.abs().max()))
        if skipped != its_skipped:
            return float("inf")
    return worst


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    apart = (one - other).abs().max()
    return float(apart) if bool(apart.isfinite()) else float("inf")


def _start(index: int) -> torch.Tensor:  # float64, on the CPU
    """Where a tensor starts: at 0 where its rounding would else hide its displacement."""
    shape, dtype = TENSORS[index]
    start = 0.01 * _normal(shape, seed=index)
    return start.float().double() if dtype == torch.float32 else torch.zeros_like(start)


def _gradient(shape: tuple[int, ...], seed: int) -> torch.Tensor:  # float64, on the CPU
    """Normal numbers, every mode's rows from 1 to 3 in size, so that no eigenvalues are close."""
    grad = _normal(shape, seed)
    if len(shape) < 2:
        return grad
    for axis, size in enumerate(shape):
        scale = torch.logspace(0, 0.5, size, dtype=torch.float64, device="cpu")
        grad = grad * scale.view([-1 if i == axis else 1 for i in range(len(shape))])
    if (
        len(shape) == 2 and shape[0] == shape[1]
    ):  # a square matrix of normal numbers alone is nearly singular
        diagonal = torch.linspace(10, 40, shape[0], dtype=torch.float64, device="cpu")
        grad = grad + torch.diag(diagonal)
    return grad


# Of a call, and where tensors start: what is checked and what is expected of it step in turn.
@lru_cache(2 * len(TENSORS))
def _normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:  # float64, on the CPU
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)


def _as(value: torch.Tensor, dtype: torch.dtype, device: torch.device | None) -> torch.Tensor:
    return value.clone() if device is None else value.to(device, dtype, copy=True)
