"""What a step must be so that a CUDA graph can hold it.

A graph repeats what was launched while it was captured. What the host decided then is decided for
ever: numbers, addresses, and whether the call ends with a refresh.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soap_fast.step.call import TensorCall


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
