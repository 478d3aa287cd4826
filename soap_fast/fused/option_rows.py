"""What the table of options on the device holds for each distinct set of step options."""

from __future__ import annotations

from typing import Any

import torch

from soap_fast.fused.columns import OPTIONS
from soap_fast.options import StepOptions
from soap_fast.rounding import noise_scale

LR_DTYPES = (torch.float32, torch.float64)


def reads_lr(lr: float | torch.Tensor) -> bool:
    """Whether the kernel `clock` can read it: a number, a tensor on the CPU, or of these dtypes."""
    return not isinstance(lr, torch.Tensor) or lr.device.type == "cpu" or lr.dtype in LR_DTYPES


def fingerprint(options: StepOptions) -> tuple[Any, ...]:
    """What tells whether options have changed: an lr on the device may, its address may not."""
    given = options.lr
    lr: object = given
    if isinstance(given, torch.Tensor):
        on_host = given.device.type == "cpu"
        lr = float(given) if on_host else (given.data_ptr(), given.dtype)
    return (
        lr, options.beta1, options.beta2, options.shampoo_beta, options.eps, options.weight_decay,
        options.correct_bias, options.normalize_grads, options.noise_floor,
    )  # fmt: skip


def row(options: StepOptions) -> torch.Tensor:  # [len(OPTIONS)] float64
    values = torch.zeros(len(OPTIONS), dtype=torch.float64, device="cpu")
    lr = options.lr
    if isinstance(lr, torch.Tensor) and lr.device.type != "cpu":
        values.view(torch.int64)[OPTIONS["lr_address"]] = lr.data_ptr()
        values[OPTIONS["lr_double"]] = float(lr.dtype == torch.float64)
    else:
        values[OPTIONS["lr"]] = float(lr)
    values[OPTIONS["beta1"]], values[OPTIONS["beta2"]] = options.beta1, options.beta2
    values[OPTIONS["beta_s"]], values[OPTIONS["eps"]] = options.shampoo_beta, options.eps
    values[OPTIONS["weight_decay"]] = options.weight_decay
    values[OPTIONS["correct_bias"]] = float(options.correct_bias)
    values[OPTIONS["normalize"]] = float(options.normalize_grads)
    values[OPTIONS["noise"]] = noise_scale(options, torch.float32)
    return values
