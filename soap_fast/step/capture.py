"""What a step must be so that a CUDA graph can hold it.

A graph repeats what was launched while it was captured. What the host decided then is decided for
ever: numbers, addresses, and whether the call ends with a refresh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from soap_fast.names import Group, label_of
from soap_fast.step.call import TensorCall


class Capturing(Protocol):
    """A backend, as far as it concerns captures."""

    def captured(self, calls: Sequence[TensorCall]) -> AbstractContextManager[None]: ...


def underway() -> bool:
    """Whether the current stream is being captured."""
    # Whoever captures has used CUDA. Where nobody has, asking raises on a CUDA build of torch
    # without a driver, which is what PyPI has for Linux.
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return used and torch.cuda.is_current_stream_capturing()


def not_capturable(calls: Sequence[TensorCall]) -> tuple[TensorCall | None, str] | None:
    """Why these calls cannot be captured, with the one at fault where it is one; None if they can.

    All of them have begun, `lr` is a tensor on their device, and all are on one clock and under one
    schedule. A graph is then one of plain calls, one of calls that refresh all bases, or, under
    "staggered", one of any call.
    """
    if not calls:
        return None, "no parameter has a gradient: there is nothing to capture"
    for call in calls:
        if call.is_first:
            return call, (
                "has not been stepped yet, and a first call waits for the device: take two steps "
                "outside of the capture first"
            )
        if call.owed is not None:
            return call, (
                "owes a refresh from a step that was interrupted, which the graph would repeat for "
                "ever: take a step outside of the capture first"
            )
        lr = call.options.lr
        if not isinstance(lr, torch.Tensor) or lr.device != call.param.device:
            return call, (
                f"has lr={lr!r}, which the graph would repeat for ever: make it a tensor on "
                f"{call.param.device} and change that in place"
            )
        if call.is_staggered != calls[0].is_staggered:
            return call, "has another refresh_schedule than others: a graph needs one for all"
    clocks: dict[tuple[int, int], TensorCall] = {}
    for call in calls:
        clocks.setdefault((call.state["calls"], call.options.precondition_frequency), call)
    if len(clocks) > 1:
        (other, _), (one, call), *_ = clocks.items()
        return call, (
            f"has had {one[0]} calls and refreshes every {one[1]}, another parameter {other[0]} "
            f"and {other[1]}: a graph needs all of them on one clock"
        )
    return None


@contextmanager
def captured(
    calls: Sequence[TensorCall], groups: Sequence[Group], backend: Capturing
) -> Iterator[None]:
    """Within it a step is launched into a CUDA graph: nothing happens yet, no clock moves.

    Raises:
        RuntimeError: these calls cannot be captured.
    """
    reason = not_capturable(calls)
    if reason is not None:
        call, text = reason
        name = label_of(groups, call.param) if call else ""
        raise RuntimeError(f"{name} {text}".strip())
    clocks = [call.state["calls"] for call in calls]
    try:
        with backend.captured(calls):
            yield
    finally:
        for call, clock in zip(calls, clocks, strict=True):
            call.state["calls"] = clock
            call.state.pop("owed", None)
