"""Several processes that share each batch, as `torchrun` starts them; or one alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed


class Processes:
    """This process's place among all; every method is called by all of them, or by none."""

    def __init__(self, rank: int = 0, world: int = 1, device: str = "cpu") -> None:
        self.rank, self.world, self.device = rank, world, device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, prints and evaluates."""
        return self.rank == 0

    def mean(self, values: list[float]) -> list[float]:
        """The means over all processes, the same bits in each."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return (total / self.world).tolist()

    def any(self, mine: bool) -> bool:
        return self.mean([float(mine)])[0] > 0

    def from_all(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The first process's value."""
        if self.world == 1:
            return value
        carried = [value]
        distributed.broadcast_object_list(carried, device=torch.device(self.device))
        return carried[0]


ALONE = Processes()


def started() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine) as torchrun tells; (0, 1, 0) without it."""
    names = ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)
    rank, world, local = (int(os.environ.get(name, usual)) for name, usual in names)
    return rank, world, local


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """All processes of this run: NCCL between GPUs, one each, and gloo between CPUs."""
    rank, world, local = started()
    if world == 1:
        yield Processes(device=device)
        return
    if device.startswith("cuda"):
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    # Depthwise filters of LALIC have it, and it costs a copy of 25 numbers a channel.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(rank, world, device)
    finally:
        distributed.destroy_process_group()
