"""What a demo run is made of; two runs with equal configs give equal results on the CPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Config:
    steps: int
    batch: int
    crop: int  # side of a training crop in pixels
    lam: float  # weight of the distortion, lambda
    width: int  # feature channels of the model
    seed: int
    optimizers: tuple[str, ...]
    rates: dict[str, float]  # learning rate of each optimizer
    precondition_frequency: int
    threads: int  # sums are split over threads, so their number moves the last bits
    device: str
    photos: str  # fingerprint of the pixels

    @property
    def evaluate_every(self) -> int:
        return max(1, self.steps // 40)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"optimizers": list(self.optimizers)}

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """`name: here, there` for every field in which a saved config differs from this one."""
        mine = self.as_dict()
        return [
            f"{field.name} is {mine[field.name]}, was {saved.get(field.name)}"
            for field in fields(self)
            if mine[field.name] != saved.get(field.name)
        ]
