"""Steps of one device follow each other, whatever streams they are launched on."""

from __future__ import annotations

import torch

from soap_fast.step import capture


class StreamOrder:
    """The stream of a device that worked on an optimizer's state last, for the next one to wait.

    All steps share their workspace, their tables and the state. The order outlives engines: when
    one is made anew, launches of the one before may still be underway.

    Attributes:
        last: None before the first, and off CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last: torch.cuda.Stream | None = None

    def follow(self) -> torch.cuda.Stream | None:
        """What the current stream gets from here on waits for all that the last one has to do.

        Returns:
            The current stream, which is the last one now. None where there is no order to keep: off
            CUDA, and within a capture, which launches nothing.
        """
        now = current(self.device)
        if now is None or now == self.last:
            return now
        if capture.underway():
            return None
        if self.last is not None:
            now.wait_stream(self.last)
        self.last = now
        return now


def current(device: torch.device) -> torch.cuda.Stream | None:
    """None off CUDA, where what is called later comes later."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None
