"""`clock`: which tensors step, their step counts and sizes; its tables of options and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.ops.plane import (
    plane_count,
)
from soap_fast.backends.triton.ops.work import Work
from soap_fast.options import StepOptions
from soap_fast.step.layout import Layout, padded
from soap_fast.step.rounding import noise_scale
from soap_fast.triton_kernels.columns import (
    OPTIONS,
    ROTATE,
    TENSOR,
)

LR_DTYPES = (torch.float32, torch.float64)
Shares = dict[int, tuple[int, int]]  # by tensor: the first tile that sums n² of it, and how many


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


def option_row(options: StepOptions) -> torch.Tensor:  # [len(OPTIONS)] float64
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


def shares_of_directions(last: Work, adam: Work) -> tuple[Shares, int, int]:
    """Tiles of the last rotation, then those of `adam`, each with a sum of n².

    Returns:
        Each tensor's tiles, where those of `adam` begin, and how many there are.
    """
    shares: Shares = {}
    tiles = 0
    for records in last.tiles:
        index = int(records[0, ROTATE["tensor"]])
        first, count = shares.get(index, (tiles, 0))
        shares[index] = first, count + len(records)
        tiles += len(records)
    tiles = of_adam = padded(tiles)
    for task, covered in zip(adam.tasks, adam.tiles, strict=True):
        shares[task[0]] = (tiles, len(covered))
        tiles += len(covered)
    return shares, of_adam, tiles


def tensor_rows(
    layouts: Sequence[Layout], states: Sequence[Mapping[str, Any]], shares: Shares
) -> tuple[list[list[int]], int]:
    """Rows of TENSOR, their options yet to be filled in, and how many tiles `gather` sums g² of."""
    rows, squares = [], 0
    for index, (layout, state) in enumerate(zip(layouts, states, strict=True)):
        tiles = plane_count(layout, TUNING["gather"].constants)
        row = [0] * len(TENSOR)
        for clock in ("step", "skipped"):
            row[TENSOR[clock]] = state[clock].data_ptr()
        for factor in [k for k in state["GG"] if k is not None][:1]:
            row[TENSOR["factor"]] = factor.data_ptr()
            row[TENSOR["factor_size"]] = factor.shape[0]
        row[TENSOR["first_square"]], row[TENSOR["squares"]] = squares, tiles
        row[TENSOR["first_direction"]], row[TENSOR["directions"]] = shares[index]
        row[TENSOR["numel"]] = layout.numel
        squares += tiles
        rows.append(row)
    return rows, squares


class Clock(NamedTuple):
    taken: torch.Tensor  # [] bool
    step: torch.Tensor  # []
    skipped: torch.Tensor  # [] int64
    size: torch.Tensor  # [] float64
    decay: torch.Tensor  # [] float64
    floor: torch.Tensor  # []


def clock(
    square: torch.Tensor,
    step: torch.Tensor,
    skipped: torch.Tensor,
    options: StepOptions,
    *,
    factor: torch.Tensor | None = None,
    has_grad: bool = True,
    found_inf: bool = False,
) -> Clock:
    """Whether a step is taken, its sizes, and the floor of what counts.

    taken = sum g² is finite, and nothing else forbids it;  step += taken;  skipped += not taken
    size  = lr sqrt(1 - beta2^step) / (1 - beta1^step), or lr without correct_bias and before step 1
    decay = lr weight_decay
    floor = noise sqrt(beta_s trace K + (1 - beta_s) sum g²), see soap_fast/step/rounding.py

    Args:
        square: [], sum g².
        step, skipped: [], the tensor's clocks. Without a gradient they stand still.
        factor: [d, d], K of some mode before this gradient; None without, the floor is then 0.
    """
    taken = square.isfinite() & (has_grad and not found_inf)
    step = step + taken
    skipped = skipped + (has_grad & taken.logical_not())
    lr, t = torch.as_tensor(options.lr, dtype=torch.float64), step.double()
    size = lr
    if options.correct_bias and step > 0:
        size = lr * (1 - options.beta2**t).sqrt() / (1 - options.beta1**t)
    floor = torch.zeros_like(square)
    if factor is not None:
        trace = options.shampoo_beta * factor.trace() + (1 - options.shampoo_beta) * square
        floor = noise_scale(options, torch.float32) * trace.sqrt()
    return Clock(taken, step, skipped, size, lr * options.weight_decay, floor)
