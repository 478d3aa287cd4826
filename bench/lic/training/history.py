"""What is recorded of a run: losses, times, quality on held-out images, code and machine."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench import envelope
from bench.files import BadInput, writing
from bench.lic.models.model import psnr, rate_distortion
from bench.lic.training.config import Config


class Quality(NamedTuple):
    """Of a batch, or means over the held-out images."""

    loss: float
    bpp: float
    psnr: float  # dB


@torch.no_grad()
def evaluate(model: nn.Module, images: Sequence[Tensor], lam: float, device: str) -> Quality:
    """R-D cost of uint8 `images` [3, H, W], with rounding in place of noise, in float32.

    The decoded image is clamped to [0, 1], as in writing it to a file. Draws no random number.
    """
    model.eval()
    rows = []
    for pixels in images:
        image = pixels[None].to(device).float() / 255  # [1, 3, H, W]
        coded = model(image)
        cost = rate_distortion(coded._replace(images=coded.images.clamp(0, 1)), image, lam)
        rows.append((cost.loss.item(), cost.bpp.item(), psnr(cost.mse.item())))
    model.train()
    return Quality(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))


MOVING = ("torch", "soap_fast")  # packages whose version moves the bits of a run


def note_where(history: History) -> None:
    """Add this process to `history.ran_on`, unless the run's last part was taken on the like."""
    versions = envelope.versions()
    here: dict[str, Any] = {
        "commit": _commit(),
        "machine": envelope.machine(),
        "versions": {name: versions[name] for name in MOVING},
    }
    before = {**history.ran_on[-1]} if history.ran_on else {}
    before.pop("from_step", None)
    if here != before:
        history.ran_on.append({"from_step": len(history.losses), **here})


@cache
def _commit() -> str | None:
    """Of the code that this process has loaded: the clone may change while it runs."""
    return envelope.commit()


class Board:
    """Records loss, bpp, PSNR and learning rate in `folder`; does nothing where that is None.

    What was recorded of steps after `done`, by a run that died, is taken out.

    Raises:
        BadInput: the package is missing.
        CannotWrite: the folder cannot be made.
    """

    def __init__(self, folder: Path | None, done: int) -> None:
        self.writer: Any = None
        if folder is not None:
            writer = _summary_writer()
            with writing(folder):
                self.writer = writer(str(folder), purge_step=done + 1)

    def stepped(self, step: int, batch: Quality, rate: float) -> None:
        if self.writer is not None:
            self._record("train", step, batch)
            self.writer.add_scalar("train/lr", rate, step)

    def evaluated(self, step: int, quality: Quality) -> None:
        if self.writer is not None:
            self._record("held_out", step, quality)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _record(self, part: str, step: int, quality: Quality) -> None:
        for name, value in quality._asdict().items():
            self.writer.add_scalar(f"{part}/{name}", value, step)


def check_board(folder: str | None) -> None:
    """Find out before the training whether it can be recorded.

    Raises:
        BadInput: the package is missing.
    """
    if folder is not None:
        _summary_writer()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadInput(
            "--tensorboard needs a package that is missing: pip install tensorboard, or leave "
            "the option out"
        ) from None
    return SummaryWriter


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
