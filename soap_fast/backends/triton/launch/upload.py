"""From the host to the device without waiting for it."""

from __future__ import annotations

import torch


def upload(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device; from pinned memory, so that nobody waits."""
    return staged(table, device).to(device, non_blocking=True)


def upload_into(target: torch.Tensor, table: torch.Tensor) -> None:
    """The first elements of `target` become those of `table`, in the order of its stream."""
    first = target if target.numel() == table.numel() else target[: len(table)]
    first.copy_(staged(table, target.device), non_blocking=True)


def staged(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """In memory that a copy can start from at once; torch keeps it until the copy is done.

    While a CUDA graph is captured the memory belongs to the graph (torch >= 2.11).
    """
    return table.pin_memory() if device.type == "cuda" else table
