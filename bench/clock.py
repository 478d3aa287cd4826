"""How long work takes: spans, CUDA graphs of calls, and an optimizer's calls by kind."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

FLUSHED_BYTES = 2**28  # more than the L2 of any GPU so far


def synchronize(device: str | torch.device) -> None:
    """Wait for what a GPU still has to do; the CPU has nothing of that kind."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Spans of work on one device: by events on CUDA, by the wall clock on the CPU.

    Events stand in the stream: nobody waits between two spans. With `cold`, memory larger than the
    L2 is written before each span on CUDA, about 100 us in which the host prepares what follows.
    """

    def __init__(self, device: str | torch.device, *, cold: bool = False) -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        self.device = device
        self._spans: list[Any] = []
        self._flushed = None
        if cold and self.on_gpu:
            self._flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, work: Callable[[], Any]) -> Any:
        """Do the work, time it, and return what it returns."""
        if not self.on_gpu:
            start = time.perf_counter()
            result = work()
            self._spans.append(time.perf_counter() - start)
            return result
        if self._flushed is not None:
            self._flushed.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result = work()
        end.record()
        self._spans.append((start, end))
        return result

    def seconds(self) -> list[float]:
        """Of every span since this was last asked; waits for the device."""
        synchronize(self.device)
        spans, self._spans = self._spans, []
        return [1e-3 * s[0].elapsed_time(s[1]) if self.on_gpu else float(s) for s in spans]


def samples(
    works: Sequence[Callable[[], object]],
    device: str | torch.device,
    repeats: int,
    before: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Seconds of each of `repeats` of each work, in turn after a warm-up; `before` is not timed."""
    watches = [Stopwatch(device) for _ in works]
    for _ in range(repeats + 1):
        for watch, work in zip(watches, works, strict=True):
            before()
            watch(work)
    return [watch.seconds()[1:] for watch in watches]


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """The work as a CUDA graph, whose replay this returns; it must not wait for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # loads kernels and takes memory, which a capture must not
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph.replay


# Calls of an optimizer -------------------------------------------------------------------------


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


@dataclass
class Times:
    """Milliseconds of every timed call."""

    first: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    refresh: list[float] = field(default_factory=list)
    unsorted: list[float] = field(default_factory=list)  # where nobody knows what refreshes
    host: list[float] = field(default_factory=list)  # of all but the first, until they returned

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
        falls, and `plain_ms` is the median of all. What did not occur is None.
        """
        plain, refresh = median(self.unsorted or self.plain), median(self.refresh)
        if self.unsorted:
            mean = statistics.fmean(self.unsorted)
        elif plain is None or refresh is None:
            mean = refresh if plain is None else plain
        else:
            mean = (plain * (frequency - 1) + refresh) / frequency
        first = self.first[0]
        return {"first_ms": first, "plain_ms": plain, "refresh_ms": refresh, "mean_ms": mean}

    def samples(self) -> dict[str, list[float]]:
        """Every call's, by its name in `summary`; `mean_ms` for unsorted calls only."""
        plain = self.unsorted or self.plain
        found = {"first_ms": self.first, "plain_ms": plain, "refresh_ms": self.refresh}
        return {n: v for n, v in (found | {"mean_ms": self.unsorted}).items() if v}

    def later(self) -> list[float]:
        """Of all calls but the first."""
        return [*self.plain, *self.refresh, *self.unsorted]

    def tail(self) -> dict[str, float | None]:
        """Of all calls but the first: the median until they returned, and the 99th percentile."""
        later = sorted(self.later())
        slow = later[math.ceil(0.99 * len(later)) - 1] if later else None
        return {"host_ms": median(self.host), "p99_ms": slow}


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
