"""Time on the device in place of the host's, for pytest-benchmark.

The plugin reads a timer before and after its loop of calls. `event_timer` makes one that records an
event on the current stream and waits for it: between two readings lies what the device did, and the
calls of one loop follow each other without a gap as long as the host keeps ahead. Where it does
not, `replay` turns a call into a CUDA graph first, which leaves out the host altogether.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def event_timer(new_event: Callable[[], Any] | None = None) -> Callable[[], float]:
    """A timer by CUDA events, in seconds; no device is touched before it is read.

    Args:
        new_event: makes events; other than CUDA's for tests.
    """
    new_event = new_event or (lambda: torch.cuda.Event(enable_timing=True))
    last: list[Any] = []
    seconds = 0.0

    def device_time() -> float:
        # Spans of two neighbouring events are added up: one since the beginning, a float32 of
        # milliseconds, would be too coarse after a minute.
        nonlocal seconds
        event = new_event()
        event.record()
        event.synchronize()
        if last:
            seconds += last.pop().elapsed_time(event) / 1e3
        last.append(event)
        return seconds

    return device_time


def replay(call: Callable[[], object], warm_up: int = 3) -> Callable[[], None]:
    """The call as a CUDA graph, whose replay this returns; it must not wait for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
