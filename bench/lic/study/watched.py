"""Training that looks at itself now and then: do losses and steps agree, are there outliers."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.lic.data import Crops, batches
from bench.lic.evaluation.int8 import LAYERS
from bench.lic.models.model import rate_distortion
from bench.lic.training import Quality, Training
from bench.lic.training.schedules import autocast
from soap_fast.diagnostics import ActivationStatistics, InterStepScore, Outliers, intra_step_score

SEED = 2**40  # of the crops looked at and of their noise: no run has it, and all look at the same
EVALUATIONS = 4  # from one look to the next; a look is a forward and two backward passes
NEEDED = 3  # parameters before it that a score between steps is made of
LATENTS = ("analysis", "hyper_analysis")  # of our models; what they put out is y and z


class Watched(Training):
    """A run whose history also has `watched`: what was seen after every fourth evaluation.

    A look is a dictionary:

        step: taken so far
        intra: cosine of what the optimizer makes of the gradients of rate and of distortion
        inter: cosine of the last two updates; None where the run was taken up between them, or the
            look before is fewer than three steps ago
        kurtosis: median over layers of their outputs' kurtosis, of the last look for each layer
        latents: {name: [kurtosis, max over rms, share beyond 6 sigma]}
        layers: of the last look, as latents
        seconds: what looking took; no time of training has it

    Steps are those of a run that does not look, to the bit: it draws its noise from a seed of its
    own, and every step seeds its own noise.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.between: InterStepScore | None = None
        self.crops: Tensor | None = None  # [batch, 3, crop, crop]

    def step(self) -> Quality:
        quality = super().step()
        left = self._left()
        if left == NEEDED - 1:
            self.between = InterStepScore(self.optimizer, every=NEEDED)
        if left < NEEDED and self.between is not None:
            self.between.update()
        return quality

    def evaluate(self) -> Quality:
        quality = super().evaluate()
        if self._left() == 0 and not self.diverged:
            start = self._now()
            seen = self._look()
            self.history.watched.append({**seen, "seconds": self._now() - start})
        return quality

    def _left(self) -> int:
        """Steps until the next look."""
        every = EVALUATIONS * self.config.evaluation_interval
        return min(-self.steps % every, self.config.steps - self.steps)

    def _look(self) -> dict[str, Any]:
        if self.crops is None:
            self.crops = self._first_batch()
        torch.manual_seed(SEED)
        names = [n for n, module in self.model.named_modules() if isinstance(module, LAYERS)]
        latents = [name for name in LATENTS if hasattr(self.model, name)]
        with (
            ActivationStatistics(self.model, dict.fromkeys([*names, *latents])) as statistics,
            autocast(self.config.amp, self.device),
        ):
            coded = self.model(self.crops)
        cost = rate_distortion(coded, self.crops, self.config.lam)
        intra = intra_step_score(self.optimizer, [cost.bpp, cost.loss - cost.bpp])
        inter, self.between = self.between, None
        found = statistics.summary()
        layers = {name: _plain(found[name]) for name in names if name in found}
        known = [values[0] for values in layers.values() if values[0] is not None]
        if self.on_gpu:  # a look is none of the memory that training needs
            torch.cuda.reset_peak_memory_stats(self.device)
        return {
            "step": self.steps,
            "intra": _number(intra.overall),
            "inter": None if inter is None else _number(inter.score().overall),
            "kurtosis": median(known) if known else None,
            "latents": {name: _plain(found[name]) for name in latents if name in found},
            "layers": layers if self.finished else {},
        }

    def _first_batch(self) -> Tensor:
        crops = Crops(self.images.training, self.config.crop, SEED, flip=self.config.flip)
        drawn = batches(crops, self.config.batch)
        try:
            return next(drawn).to(self.device).float() / 255
        finally:
            drawn.close()


def _plain(seen: Outliers) -> list[float | None]:
    return [_number(v) for v in (seen.kurtosis, seen.max_over_rms, seen.beyond_6_sigma)]


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
