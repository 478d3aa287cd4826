"""Crop number i, a function of the seed and of i alone, and batch number s, or a share of it.

Worker processes prepare batches, and end with their loader, whatever ends it.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from bench.files import BadInput
from bench.lic.data.decoding import Unusable
from bench.lic.data.sources import Recent, Source, Sources

MOST_REPLACED = 1000  # unusable images in a row; a folder with that many is the wrong one


class Crops(Dataset[Tensor]):
    """An endless sequence of random square crops, half of them mirrored.

    Crop i of seed s is drawn by the counter-based generator Philox with key s at counter i, as
    four words: image, top, left, mirrored. An unusable image is replaced by what the next four
    words say. Workers, ranks and resumed runs thus draw the same crops, knowing only i.

    Args:
        training: images; those with a side below `side` are replaced.
        side: of a crop, in pixels.
        seed: 0 <= seed < 2^63.
        flip: whether to mirror half of the crops left to right.
    """

    def __init__(
        self, training: Sequence[Source], side: int, seed: int, *, flip: bool = True
    ) -> None:
        self.sources = training if isinstance(training, Sources) else Sources(training)
        self.side, self.seed, self.flip = side, seed, flip
        self.unusable: set[int] = set()  # indices that this process need not try again
        self.recent = Recent()

    def __getitem__(self, number: int) -> Tensor:
        """Crop `number`  # [3, side, side] uint8."""
        crop, reasons = self.draw(number)
        self.sources.found_unusable(reasons)
        return crop

    def draw(self, number: int) -> tuple[Tensor, list[str]]:
        """Crop `number`, and `path (reason)` of images that this process first found unusable.

        Raises:
            BadInput: a thousand images in a row are unusable.
        """
        words = _words(self.seed, number)
        reasons: list[str] = []
        for _ in range(MOST_REPLACED):
            index = _below(len(self.sources), next(words))
            place = next(words), next(words), next(words)
            if index in self.unusable:
                continue
            try:
                image = self.recent.pixels(self.sources[index], self.side)  # [3, height, width]
            except Unusable as reason:
                self.unusable.add(index)
                reasons.append(str(reason))
                continue
            return self._cut(image, *place), reasons
        last = f", the last one newly found being {reasons[-1]}" if reasons else ""
        raise BadInput(
            f"{MOST_REPLACED} images drawn in a row are unusable{last}; "
            "name another --data folder or a smaller --crop"
        )

    def _cut(self, image: Tensor, top_word: int, left_word: int, mirror_word: int) -> Tensor:
        top = _below(image.shape[1] - self.side + 1, top_word)
        left = _below(image.shape[2] - self.side + 1, left_word)
        crop = image[:, top : top + self.side, left : left + self.side]
        return crop.flip(2) if self.flip and _below(2, mirror_word) else crop.contiguous()


def _words(seed: int, number: int) -> Iterator[int]:
    """64-bit words; the raw words of Philox are the same in every version of numpy."""
    philox = np.random.Philox(key=seed, counter=[0, 0, 0, number])
    while True:
        yield from philox.random_raw(4).tolist()


def _below(limit: int, word: int) -> int:
    """A number in [0, limit) from a 64-bit word; uneven by no more than limit / 2^64."""
    return word * limit >> 64


T = TypeVar("T")

JOIN_SECONDS = 5.0  # for a killed process that still waits for a disk


class Workers:
    """Processes that nothing but their loader needs.

    They keep nothing, so that they are killed. Both torch and multiprocessing send SIGTERM, which
    workers ignore (see batches.py), and then wait: of torch for 5 seconds each, of multiprocessing,
    when this process ends, for ever.
    """

    def __init__(self) -> None:
        self.owner, self.processes = os.getpid(), set[BaseProcess]()

    def started_by(self, start: Callable[[], T]) -> T:
        """What `start` returns; the processes that it starts are these, also where it raises."""
        before = set(active_children())
        try:
            return start()
        finally:
            self.processes |= set(active_children()) - before
            # After torch and multiprocessing have registered theirs, hence called before them.
            atexit.register(self.end)

    def end(self) -> None:
        """Return once all have ended."""
        if os.getpid() == self.owner:  # a process that was forked has none of them
            with _deaths_unseen():
                for process in self.processes:
                    process.kill()
                for process in self.processes:
                    process.join(JOIN_SECONDS)
            self.processes.clear()
        atexit.unregister(self.end)


@contextmanager
def _deaths_unseen() -> Iterator[None]:
    """Without torch's handler, which raises RuntimeError when a worker has died by a signal."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    previous = _without_handler()
    try:
        yield
    finally:
        if previous is not None:  # else it was set by C, which Python cannot set again
            signal.signal(signal.SIGCHLD, previous)


def _without_handler() -> signal._HANDLER:
    while True:
        try:
            return signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError:  # of a worker that has just died; told once, and it is to end anyway
            continue


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
