"""How the learning rate falls, and half precision of a forward pass with its loss scale."""

from __future__ import annotations

import math
from bisect import bisect_right
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bench.lic.training.config import Config


class Schedule:
    """Sets the rate of every step; all but plateau are functions of the number of the step.

    cosine     half a cosine from the rate to zero: the last steps then measure progress, not noise
    constant   the rate
    multistep  gamma times less after each milestone
    plateau    gamma times less after `patience` evaluations in turn that are not better than the
               best one
    """

    def __init__(self, config: Config, optimizer: torch.optim.Optimizer) -> None:
        self.config, self.optimizer = config, optimizer
        self.plateau: ReduceLROnPlateau | None = None
        if config.schedule == "plateau":
            self.plateau = ReduceLROnPlateau(
                optimizer, factor=config.gamma, patience=config.patience
            )

    def before_step(self, done: int) -> None:
        """Set the rate of the step that follows `done` others."""
        if self.plateau is None:
            rate = self.config.lr * multiplier(self.config, done)
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def evaluated(self, loss: float) -> None:
        if self.plateau is not None:
            self.plateau.step(loss)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.plateau is None else self.plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.plateau is not None:
            self.plateau.load_state_dict(state)


def multiplier(config: Config, done: int) -> float:
    """Of the rate, after so many steps."""
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done / config.steps))
    if config.schedule == "multistep":
        return config.gamma ** bisect_right(config.milestones, done)
    return 1.0


TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# The largest gradient is that of the last layer's biases, 2 lambda 255² mean(error) / 3: at most
# 2168 where lambda <= 0.05, so that the first step fits into float16, whose largest number is
# 65504. From torch's own first scale, 65536, the first eleven steps would be lost.
FIRST_SCALE = 16.0


def autocast(amp: str | None, device: str) -> AbstractContextManager[object]:
    """For the model's forward. Entropy models leave it by themselves: likelihoods are float32."""
    if amp is None:
        return nullcontext()
    return torch.autocast(torch.device(device).type, TYPES[amp])


def scaler(amp: str | None, device: str) -> torch.amp.GradScaler:
    """Does nothing but for float16, whose smallest number a gradient would soon be below."""
    kind = torch.device(device).type
    return torch.amp.GradScaler(kind, init_scale=FIRST_SCALE, enabled=amp == "fp16")
