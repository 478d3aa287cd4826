"""One model, one optimizer, and the steps they take together."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.lic.config import Config
from bench.lic.data import Crops, Images, batches
from bench.lic.evaluation import Quality, evaluate
from bench.lic.loss import psnr, rate_distortion
from bench.lic.models import MeanScaleHyperprior
from bench.lic.optimizers import aux_parameters, build, main_parameters

CLIP_NORM = 1.0
AUX_RATE = 1e-3


@dataclass
class History:
    """Plain numbers only, one per step or per evaluation, so that it can be saved as it is."""

    losses: list[float] = field(default_factory=list)  # of the training batches
    step_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    evaluated_at: list[int] = field(default_factory=list)  # steps
    evaluations: list[list[float]] = field(default_factory=list)  # [loss, bpp, psnr] held out


class Training:
    """A run of one optimizer; `state_dict` holds all that later steps depend on."""

    def __init__(self, name: str, config: Config, photos: Images) -> None:
        self.name, self.config, self.held_out = name, config, photos.held_out
        torch.manual_seed(config.seed)  # initial weights and, from here on, the noise
        self.model = MeanScaleHyperprior(config.width).to(config.device)
        self.optimizer = build(name, self.model, config.rates[name], config.precondition_frequency)
        self.aux_optimizer = torch.optim.Adam(aux_parameters(self.model), lr=AUX_RATE)
        self.crops = Crops(photos.training, config.crop, config.seed)
        self.batches: Iterator[Tensor] | None = None  # from the next step on, once one is taken
        self.history = History()

    @property
    def steps(self) -> int:
        return len(self.history.losses)

    @property
    def diverged(self) -> bool:
        return self.steps > 0 and not math.isfinite(self.history.losses[-1])

    @property
    def finished(self) -> bool:
        return self.diverged or self.steps >= self.config.steps

    def step(self) -> Quality:
        """One training step; returns the cost of its batch."""
        start = self._now()
        self._set_rate()
        images = self._batch().to(self.config.device).float() / 255  # [batch, 3, crop, crop]
        self.optimizer.zero_grad()
        self.aux_optimizer.zero_grad()
        cost = rate_distortion(self.model(images), images, self.config.lam)
        cost.loss.backward()
        torch.nn.utils.clip_grad_norm_(main_parameters(self.model), CLIP_NORM)
        before = self._now()
        self.optimizer.step()
        after = self._now()
        self.model.aux_loss().backward()
        self.aux_optimizer.step()
        self.history.optimizer_seconds.append(after - before)
        self.history.step_seconds.append(self._now() - start)
        self.history.losses.append(cost.loss.item())
        return Quality(cost.loss.item(), cost.bpp.item(), psnr(cost.mse.item()))

    def evaluation_due(self) -> bool:
        return self.steps % self.config.evaluate_every == 0 or self.finished

    def evaluate(self) -> Quality:
        quality = evaluate(self.model, self.held_out, self.config.lam, self.config.device)
        self.history.evaluated_at.append(self.steps)
        self.history.evaluations.append(list(quality))
        return quality

    def state_dict(self) -> dict[str, Any]:
        on_gpu = self.config.device.startswith("cuda")
        return {
            "name": self.name,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "aux_optimizer": self.aux_optimizer.state_dict(),
            "noise": torch.get_rng_state(),
            "noise_cuda": torch.cuda.get_rng_state(self.config.device) if on_gpu else None,
            "history": asdict(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        self.batches = None
        torch.set_rng_state(state["noise"])
        if state["noise_cuda"] is not None:
            torch.cuda.set_rng_state(state["noise_cuda"], self.config.device)
        self.history = History(**state["history"])

    def _batch(self) -> Tensor:
        """The next one  # [batch, 3, crop, crop] uint8; its crops depend on seed and step alone."""
        if self.batches is None:
            self.batches = batches(self.crops, self.config.batch, start=self.steps)
        return next(self.batches)

    def _set_rate(self) -> None:
        """Half a cosine from the rate to zero: the last steps then measure progress, not noise."""
        done = self.steps / self.config.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rates[self.name] * 0.5 * (1 + math.cos(math.pi * done))

    def _now(self) -> float:
        """Seconds, once the device has finished what it was given."""
        if self.config.device.startswith("cuda"):
            torch.cuda.synchronize(self.config.device)
        return time.perf_counter()
