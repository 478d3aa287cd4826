"""What is recorded of a run, and the summary that is made of it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from bench.lic.training.config import Config

WARMUP = 5  # steps left out of the timings: first allocations, first bases
PER_STEP = ("losses", "data_seconds", "step_seconds", "optimizer_seconds")


def _numbers() -> array[float]:
    return array("d")


@dataclass
class History:
    """One number per step or per evaluation. A million steps are 32 MB, saved in milliseconds."""

    losses: array[float] = field(default_factory=_numbers)  # of the training batches
    data_seconds: array[float] = field(default_factory=_numbers)  # waiting for each step's batch
    step_seconds: array[float] = field(default_factory=_numbers)  # without that wait
    optimizer_seconds: array[float] = field(default_factory=_numbers)
    evaluated_at: list[int] = field(default_factory=list)  # steps
    evaluations: list[list[float]] = field(default_factory=list)  # [loss, bpp, psnr] held out
    starts: list[int] = field(
        default_factory=lambda: [0]
    )  # steps done as a process took up the run
    ran_on: list[dict[str, Any]] = field(default_factory=list)  # see provenance.py
    watched: list[dict[str, Any]] = field(default_factory=list)  # see bench/lic/study/watched.py
    peak_memory: int = 0  # bytes, of what `peak_memory_of` says
    peak_memory_of: str = ""  # "device memory" on a GPU, on a CPU "optimizer state"

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, which torch loads with weights_only."""
        tensors = {name: torch.from_numpy(np.array(getattr(self, name))) for name in PER_STEP}
        return {**vars(self), **tensors}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        numbers = {name: array("d", state[name].numpy().tobytes()) for name in PER_STEP}
        return cls(**{**state, **numbers})


def summarise(history: History, config: Config) -> dict[str, Any]:
    """One result object: final quality, timings in milliseconds, the curve and the config.

    A run that diverged has no final quality: rd_loss, bpp and psnr are None. `seconds`, and those
    of the curve, are of steps, without waiting for images and without compilation.
    """
    step_seconds, compiling = _without_compilation(history, config)
    steps_ms = [1e3 * seconds for seconds in step_seconds]
    optimizer_ms = [1e3 * seconds for seconds in history.optimizer_seconds]
    elapsed = list(accumulate(step_seconds))
    curve = [
        {
            "step": step,
            "seconds": elapsed[step - 1] if step else 0.0,
            "rd_loss": _number(loss),
            "bpp": _number(bpp),
            "psnr": _number(psnr),
        }
        for step, (loss, bpp, psnr) in zip(history.evaluated_at, history.evaluations, strict=True)
    ]
    kept = slice(WARMUP if len(steps_ms) > WARMUP else 0, None)
    step, optimizer = fmean(steps_ms[kept]), fmean(optimizer_ms[kept])
    diverged = not all(map(math.isfinite, (history.losses[-1], history.evaluations[-1][0])))
    return {
        "optimizer": config.optimizer,
        "lr": config.lr,
        "steps": len(steps_ms),
        "diverged": diverged,
        **{key: None if diverged else curve[-1][key] for key in ("rd_loss", "bpp", "psnr")},
        "step_ms": step,
        "step_ms_median": median(steps_ms[kept]),
        "optimizer_ms": optimizer,
        "optimizer_ms_median": median(optimizer_ms[kept]),
        "optimizer_share": optimizer / step,
        "seconds": elapsed[-1],
        "data_seconds": sum(history.data_seconds),
        "compile_seconds": compiling,
        "peak_memory": history.peak_memory,
        "peak_memory_of": history.peak_memory_of,
        "ran_on": history.ran_on,
        "curve": curve,
        **({"watched": history.watched} if history.watched else {}),
        "config": config.as_dict(),
    }


def _without_compilation(history: History, config: Config) -> tuple[Sequence[float], float]:
    """Seconds of the steps, and those that torch.compile took in the first one of each process.

    That step then counts as much as half of all steps do at most.
    """
    seconds = array("d", history.step_seconds)
    if config.compile is not None:
        usual = median(seconds)
        for step in history.starts:
            if step < len(seconds):
                seconds[step] = min(seconds[step], usual)
    return seconds, sum(history.step_seconds) - sum(seconds)


def _number(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
