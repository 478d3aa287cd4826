"""Options of a parameter group: read from its dict, checked, and named as the step uses them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import torch

from soap_fast.values import plain

DataFormat = Literal["channels_first", "channels_last"]
RefreshSchedule = Literal["periodic", "staggered"]
DATA_FORMATS = ("channels_first", "channels_last")
REFRESH_SCHEDULES = ("periodic", "staggered")
PLAN_OPTIONS = ("max_precond_dim", "merge_dims", "precondition_1d", "data_format")
STEP_OPTIONS = (
    "lr",
    "betas",
    "shampoo_beta",
    "eps",
    "weight_decay",
    "precondition_frequency",
    "normalize_grads",
    "correct_bias",
)
OUR_OPTIONS = ("refresh_tolerance", "refresh_schedule", "noise_floor")  # not the reference's
NAMES = frozenset((*PLAN_OPTIONS, *STEP_OPTIONS, *OUR_OPTIONS))


@dataclass(frozen=True)
class PlanOptions:
    """What decides which modes of a tensor carry a factor."""

    max_precond_dim: int
    merge_dims: bool
    precondition_1d: bool
    data_format: DataFormat


@dataclass(frozen=True)
class StepOptions:
    """What a step computes with; may change from one call to the next."""

    lr: float | torch.Tensor
    beta1: float
    beta2: float
    shampoo_beta: float
    eps: float
    weight_decay: float
    precondition_frequency: int
    normalize_grads: bool
    correct_bias: bool
    refresh_tolerance: float
    refresh_schedule: RefreshSchedule
    noise_floor: float


def plain_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group, or defaults, with plain Python values for all numbers; checks nothing."""
    return plain(group, NAMES)


def plan_options(group: Mapping[str, Any]) -> PlanOptions:
    """Read and check the options a plan depends on.

    Raises:
        ValueError: an option is outside its range; the message names value, rule and way out.
    """
    _complete(group, PLAN_OPTIONS)
    group = plain_options(group)
    largest = group["max_precond_dim"]
    _require(
        _is_integer(largest) and largest >= 0,
        "max_precond_dim",
        largest,
        "an integer >= 0",
        "the largest size of a mode that gets a factor, e.g. 10000",
    )
    for name in ("merge_dims", "precondition_1d"):
        _require_flag(group, name)
    data_format = group["data_format"]
    _require(
        data_format in DATA_FORMATS,
        "data_format",
        data_format,
        f"one of {DATA_FORMATS}",
        "'channels_first' fits every torch.nn layer",
    )
    return PlanOptions(int(largest), group["merge_dims"], group["precondition_1d"], data_format)


def step_options(group: Mapping[str, Any]) -> StepOptions:
    """Read and check the options a step computes with. A negative shampoo_beta stands for betas[1].

    Raises:
        ValueError: an option is outside its range; the message names value, rule and way out.
    """
    _complete(group, STEP_OPTIONS + OUR_OPTIONS)
    group = plain_options(group)
    lr = group["lr"]
    if isinstance(lr, torch.Tensor):
        lr = _tensor_lr(lr)
    else:
        _require(_at_least_zero(lr), "lr", lr, "a finite number >= 0", "e.g. 3e-3")
    betas = group["betas"]
    _require(
        isinstance(betas, tuple) and len(betas) == 2,
        "betas",
        betas,
        "a pair of numbers",
        "e.g. (0.95, 0.95)",
    )
    for i, beta in enumerate(betas):
        _require(
            _at_least_zero(beta) and beta < 1,
            f"betas[{i}]",
            beta,
            "inside [0, 1)",
            "0.95 is the published value",
        )
    shampoo_beta = group["shampoo_beta"]
    _require(
        _is_real(shampoo_beta) and shampoo_beta < 1,
        "shampoo_beta",
        shampoo_beta,
        "below 1",
        "a negative value takes betas[1]",
    )
    eps, weight_decay = group["eps"], group["weight_decay"]
    _require(_at_least_zero(eps), "eps", eps, "a finite number >= 0", "e.g. 1e-8")
    _require(
        _at_least_zero(weight_decay),
        "weight_decay",
        weight_decay,
        "a finite number >= 0",
        "0 switches it off",
    )
    frequency = group["precondition_frequency"]
    _require(
        _is_integer(frequency) and frequency >= 1,
        "precondition_frequency",
        frequency,
        "an integer >= 1",
        "10 refreshes the bases every ten steps",
    )
    for name in ("normalize_grads", "correct_bias"):
        _require_flag(group, name)
    return StepOptions(
        lr=lr,
        beta1=float(betas[0]),
        beta2=float(betas[1]),
        shampoo_beta=float(shampoo_beta if shampoo_beta >= 0 else betas[1]),
        eps=float(eps),
        weight_decay=float(weight_decay),
        precondition_frequency=int(frequency),
        normalize_grads=group["normalize_grads"],
        correct_bias=group["correct_bias"],
        refresh_tolerance=_refresh_tolerance(group),
        refresh_schedule=_refresh_schedule(group),
        noise_floor=_noise_floor(group),
    )


def _refresh_tolerance(group: Mapping[str, Any]) -> float:
    tolerance = group["refresh_tolerance"]
    inside = _at_least_zero(tolerance) and tolerance < 1
    _require(inside, "refresh_tolerance", tolerance, "inside [0, 1)", "0 refreshes all bases")
    return float(tolerance)


def _refresh_schedule(group: Mapping[str, Any]) -> RefreshSchedule:
    schedule: RefreshSchedule = group["refresh_schedule"]
    rule = f"one of {REFRESH_SCHEDULES}"
    way_out = "'periodic' is the published one"
    _require(schedule in REFRESH_SCHEDULES, "refresh_schedule", schedule, rule, way_out)
    return schedule


def _noise_floor(group: Mapping[str, Any]) -> float:
    floor = group["noise_floor"]
    rule = "a finite number >= 0"
    _require(_at_least_zero(floor), "noise_floor", floor, rule, "1 is derived, 0 switches it off")
    return float(floor)


def _tensor_lr(lr: torch.Tensor) -> torch.Tensor:  # []
    """Checked but for its value on a device, which would have to be waited for."""
    usable = lr.numel() == 1 and lr.is_floating_point()
    usable = usable and lr.layout == torch.strided and not lr.is_meta
    rule = "a dense floating point tensor of one element"
    _require(usable, "lr", lr, rule, "e.g. torch.tensor(3e-3)")
    if lr.device.type == "cpu":
        _require(_at_least_zero(lr.item()), "lr", lr, "finite and >= 0", "e.g. torch.tensor(3e-3)")
    return lr.detach().reshape(())


def _complete(group: Mapping[str, Any], names: Iterable[str]) -> None:
    missing = [name for name in names if name not in group]
    if missing:
        raise ValueError(f"a parameter group has lost {missing}: options cannot be deleted")


def _require(holds: bool, name: str, value: object, rule: str, way_out: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r} is not {rule}: {way_out}")


def _require_flag(group: Mapping[str, Any], name: str) -> None:
    _require(isinstance(group[name], bool), name, group[name], "True or False", "pass a bool")


def _is_real(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _at_least_zero(value: Any) -> bool:
    return _is_real(value) and value >= 0
