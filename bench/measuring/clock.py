"""How long work takes on a device, and how samples of it are summed up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

FLUSHED_BYTES = 2**28  # more than the L2 of any GPU so far


def synchronize(device: str | torch.device) -> None:
    """Wait for what a GPU still has to do; the CPU has nothing of that kind."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Spans of work on one device: by events on CUDA, by the wall clock on the CPU.

    Events stand in the stream, so that nobody waits between two spans. With `cold`, memory larger
    than the L2 is written before each span on CUDA, so that no work finds its data there; while
    the GPU does that, about 100 us, the host prepares what follows, and no gap is timed.
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
        return [
            1e-3 * span[0].elapsed_time(span[1]) if self.on_gpu else float(span) for span in spans
        ]


def samples(
    work: Callable[[], object],
    device: str | torch.device,
    repeats: int,
    *,
    cold: bool = False,
    before: Callable[[], object] = lambda: None,
) -> list[float]:
    """Seconds of each of `repeats` after a warm-up; `before` precedes each and is not timed."""
    watch = Stopwatch(device, cold=cold)
    before()
    work()
    for _ in range(repeats):
        before()
        watch(work)
    return watch.seconds()


def replayed(work: Callable[[], object], calls: int = 100, repeats: int = 7) -> list[float]:
    """Seconds of one call when a CUDA graph of so many of them is replayed; on the current GPU."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # loads kernels and takes memory, which a capture must not
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            work()
    return [seconds / calls for seconds in samples(graph.replay, "cuda", repeats)]


class Quartiles(NamedTuple):
    lower: float
    median: float
    upper: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Of at least one sample."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(lower, median, upper)
