"""Batch number s of a run, or a rank's share of it, prepared by worker processes."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from bench.files import BadInput
from bench.lic.data.crops import Crops
from bench.lic.data.workers import Workers

# Crops or why there are none, as one line, and the images newly found unusable. The line, since an
# exception in a worker would arrive with that process's whole traceback as its message.
Share = tuple[Tensor | np.ndarray | str, list[str]]


def batches(
    crops: Crops,
    batch: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    *,
    pin_memory: bool | None = None,
) -> Generator[Tensor]:
    """Shares of global batches start, start + 1, ...  # [batch / world, 3, side, side] uint8.

    Global batch s is crops s * batch ... (s + 1) * batch - 1, whatever the workers; rank r takes
    the r-th part of them. Without end, and nothing is drawn from torch's random generators. Files
    that a worker finds unusable arrive with the batch that was to hold them, and are named and
    counted here, in the main process. Worker processes start with the first batch and end when
    the iterator is closed or forgotten, or this process ends.

    Args:
        pin_memory: of the batches, which stay on the CPU (default: where there is a GPU).

    Raises:
        BadInput: batch is no multiple of world, or no usable image is found for a batch.
    """
    if batch % world:
        raise BadInput(f"--batch {batch} cannot be shared by {world} processes; take a multiple")
    return _delivered(
        _loader(_Shares(crops, batch, rank, world), start, workers, pin_memory), crops
    )


def _delivered(loader: DataLoader[Share], crops: Crops) -> Generator[Tensor]:
    workers = Workers()
    try:
        for share, reasons in workers.started_by(lambda: iter(loader)):
            crops.sources.found_unusable(reasons)
            if isinstance(share, str):
                raise BadInput(share)
            yield torch.from_numpy(share) if isinstance(share, np.ndarray) else share
    finally:
        workers.end()


def _loader(
    shares: _Shares, start: int, workers: int, pin_memory: bool | None
) -> DataLoader[Share]:
    return DataLoader(
        shares,
        batch_size=None,  # an item is a batch already
        sampler=_Onwards(start),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        worker_init_fn=_leave_interrupts,
        generator=torch.Generator(),  # else it takes a number from the one that the noise is of
    )


class _Shares(Dataset[Share]):
    """Item s is one rank's share of global batch s."""

    def __init__(self, crops: Crops, batch: int, rank: int, world: int) -> None:
        self.crops, self.batch = crops, batch
        self.share = range(rank * batch // world, (rank + 1) * batch // world)

    def __getitem__(self, step: int) -> Share:
        try:
            drawn = [self.crops.draw(step * self.batch + place) for place in self.share]
        except BadInput as error:
            return str(error), []
        reasons = [reason for _, found in drawn for reason in found]
        return _sendable(torch.stack([crop for crop, _ in drawn])), reasons


def _sendable(share: Tensor) -> Tensor | np.ndarray:
    """In shared memory, or where that is full, as what goes through a pipe.

    Left to torch, it is put there by a thread of the queue, which drops what it fails to put: the
    batch would never arrive. A container has 64 MB of it by default.
    """
    if get_worker_info() is None:  # not in a worker
        return share
    try:
        return share.share_memory_()
    except RuntimeError:
        return share.numpy()


class _Onwards(Sampler[int]):
    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def _as_it_is(share: Any) -> Any:
    return share


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal, and a machine that is taken away sends SIGTERM to
    all that run on it; the main one decides, and still needs batches. It ends workers by a signal
    that none can ignore."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
