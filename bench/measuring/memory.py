"""What one of several workloads of a process takes of a GPU's memory, by torch's allocator.

They take turns, so that what is allocated within a turn is of whoever has it. On the CPU, where the
system counts and nobody allocates alone, nothing is counted: see `bench.peers.peak`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Share:
    """The memory of one workload.

    Attributes:
        kept: bytes that it holds between its turns.
        peak: the most bytes it has held at once; None on the CPU.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.kept = 0
        self.peak: int | None = 0 if self.device.type == "cuda" else None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Count what is allocated and freed within; the others must wait meanwhile."""
        if self.peak is None:
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            yield
        finally:
            most = torch.cuda.max_memory_allocated(self.device) - before
            self.peak = max(self.peak, self.kept + most)
            self.kept += torch.cuda.memory_allocated(self.device) - before


def settle(device: str | torch.device) -> None:
    """Have cuBLAS take the workspaces that it keeps, or they were of whoever multiplies first.

    One is of this thread, the other of the one that runs backward passes.
    """
    if torch.device(device).type == "cuda":
        x = torch.ones(8, 8, device=device, requires_grad=True)
        (x @ x).sum().backward()
