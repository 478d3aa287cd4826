"""How the learning rate falls."""

from __future__ import annotations

import math
from bisect import bisect_right
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
