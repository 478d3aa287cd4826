"""What a call of an optimizer takes, by what the call did, and what its state weighs."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Times:
    """Milliseconds of every call: the first, those with a refresh, and plain ones."""

    first: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    refresh: list[float] = field(default_factory=list)

    def add(self, elapsed: float, *, first: bool, refresh: bool) -> None:
        """Keep `elapsed` milliseconds of one call; a first call counts as nothing else."""
        (self.first if first else self.refresh if refresh else self.plain).append(elapsed)

    def summary(self, frequency: int) -> dict[str, float | None]:
        """Medians in milliseconds; `mean_ms` is over one refresh period of `frequency` calls.

        What did not occur is None: plain calls under a frequency of 1, refreshes of an optimizer
        that has none.
        """
        plain = statistics.median(self.plain) if self.plain else None
        refresh = statistics.median(self.refresh) if self.refresh else None
        if plain is None or refresh is None:
            mean = refresh if plain is None else plain
        else:
            mean = (plain * (frequency - 1) + refresh) / frequency
        return {
            "first_ms": self.first[0],
            "plain_ms": plain,
            "refresh_ms": refresh,
            "mean_ms": mean,
        }


def timed_step(optimizer: torch.optim.Optimizer, on: torch.device) -> float:
    """Milliseconds from the call until its work is done on the device."""
    synchronize = torch.cuda.synchronize if on.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    optimizer.step()
    synchronize()
    return (time.perf_counter() - start) * 1e3


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state."""

    def size(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.nbytes
        if isinstance(value, dict):
            return sum(size(item) for item in value.values())
        return sum(map(size, value)) if isinstance(value, list) else 0

    return sum(size(entry) for entry in optimizer.state.values())
