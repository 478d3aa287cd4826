"""What a call of an optimizer takes, by what the call did, and what its state weighs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from bench.measuring.clock import synchronize


class Call(NamedTuple):
    """One of an optimizer's calls: its number, the first being 0, and whether it is timed."""

    number: int
    timed: bool


def sequence(frequency: int, periods: int) -> list[Call]:
    """The first call, a refresh period that is not timed, and `periods` refresh periods that are.

    In the period that is not timed every kind of call occurs, by a staggered schedule too: whatever
    compiles, loads or is allocated at the first call of a kind is in no sample but the first's.
    """
    return [Call(n, n == 0 or n > frequency) for n in range(1 + frequency * (1 + periods))]


@dataclass
class Times:
    """Milliseconds of every timed call: the first, those with a refresh, and plain ones.

    Attributes:
        unsorted: of an optimizer of which nobody knows which of its calls refresh: all but the
            first.
        host: of those after the first, until the call returned. On the CPU that is the whole call.
    """

    first: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    refresh: list[float] = field(default_factory=list)
    unsorted: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def add(self, elapsed: Elapsed, *, first: bool, refresh: bool | None) -> None:
        """Keep what one call took; a first call counts as nothing else, None is not known."""
        kinds = {None: self.unsorted, True: self.refresh, False: self.plain}
        (self.first if first else kinds[refresh]).append(elapsed.total)
        if not first:
            self.host.append(elapsed.host)

    def summary(self, frequency: int) -> dict[str, float | None]:
        """Milliseconds: medians by kind of call, and `mean_ms` over a period of `frequency` calls.

        The mean weighs the two medians as a period has their calls, which keeps noise out. Of calls
        that nobody can sort it is their arithmetic mean, so that no refresh vanishes wherever it
        falls, `plain_ms` the median of all, and `refresh_ms` None. What did not occur is None as
        well: plain calls under a frequency of 1, refreshes of an optimizer that has none.
        """
        if self.unsorted:
            return {
                "first_ms": self.first[0],
                "plain_ms": statistics.median(self.unsorted),
                "refresh_ms": None,
                "mean_ms": statistics.fmean(self.unsorted),
            }
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

    def samples(self) -> dict[str, list[float]]:
        """Every call's, by its name in `summary`: what `bench compare` resamples.

        `mean_ms` is there for unsorted calls only; another mean is had from the two kinds.
        """
        found = {
            "first_ms": self.first,
            "plain_ms": self.unsorted or self.plain,
            "refresh_ms": self.refresh,
            "mean_ms": self.unsorted,
        }
        return {name: values for name, values in found.items() if values}

    def later(self) -> list[float]:
        """Of all calls but the first."""
        return [*self.plain, *self.refresh, *self.unsorted]

    def tail(self) -> dict[str, float | None]:
        """Of all calls but the first: the median until they returned, and the 99th percentile.

        Of fewer than a hundred calls `p99_ms` is the slowest, which as a rule refreshes.
        """
        later = sorted(self.later())
        return {
            "host_ms": statistics.median(self.host) if self.host else None,
            "p99_ms": later[math.ceil(0.99 * len(later)) - 1] if later else None,
        }


class Elapsed(NamedTuple):
    """Milliseconds of a call: until its work is done on the device, and until it returned."""

    total: float
    host: float


def timed_call(call: Callable[[], object], on: torch.device | str) -> Elapsed:
    synchronize(on)
    start = time.perf_counter()
    call()
    returned = time.perf_counter()
    synchronize(on)
    return Elapsed(1e3 * (time.perf_counter() - start), 1e3 * (returned - start))


def timed_step(optimizer: torch.optim.Optimizer, on: torch.device) -> Elapsed:
    return timed_call(optimizer.step, on)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state."""

    def size(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.nbytes
        if isinstance(value, dict):
            return sum(size(item) for item in value.values())
        return sum(map(size, value)) if isinstance(value, list) else 0

    return sum(size(entry) for entry in optimizer.state.values())
