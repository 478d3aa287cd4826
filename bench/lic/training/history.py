"""What is recorded of a run, and the summary that is made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean, median
from typing import Any

from bench.lic.training.config import Config

WARMUP = 5  # steps left out of the timings: first allocations, first bases


@dataclass
class History:
    """Plain numbers only, one per step or per evaluation, so that it can be saved as it is."""

    losses: list[float] = field(default_factory=list)  # of the training batches
    step_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    evaluated_at: list[int] = field(default_factory=list)  # steps
    evaluations: list[list[float]] = field(default_factory=list)  # [loss, bpp, psnr] held out
    peak_memory: int = 0  # bytes, of what `peak_memory_of` says
    peak_memory_of: str = ""  # "device memory" on a GPU, on a CPU "optimizer state"


def summarise(history: History, config: Config) -> dict[str, Any]:
    """One result object: final quality, timings in milliseconds, the curve and the config."""
    steps_ms = [1e3 * seconds for seconds in history.step_seconds]
    optimizer_ms = [1e3 * seconds for seconds in history.optimizer_seconds]
    elapsed = list(accumulate(history.step_seconds))
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
    return {
        "optimizer": config.optimizer,
        "lr": config.lr,
        "steps": len(steps_ms),
        **{key: curve[-1][key] for key in ("rd_loss", "bpp", "psnr")},
        "step_ms": step,
        "step_ms_median": median(steps_ms[kept]),
        "optimizer_ms": optimizer,
        "optimizer_ms_median": median(optimizer_ms[kept]),
        "optimizer_share": optimizer / step,
        "seconds": elapsed[-1],
        "peak_memory": history.peak_memory,
        "peak_memory_of": history.peak_memory_of,
        "curve": curve,
        "config": config.as_dict(),
    }


def _number(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
