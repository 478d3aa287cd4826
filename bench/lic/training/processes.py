"""Processes that share each batch, what they say, and how Ctrl-C and SIGTERM end them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from tqdm import tqdm

from bench.lic.training.history import Quality


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


def say(line: str) -> None:
    """The line on standard error, once: of several processes the first says it."""
    if started()[0] == 0:
        print(line, file=sys.stderr, flush=True)


class Progress:
    """Loss, bpp and PSNR of one run; starts at `done` of `steps`."""

    def __init__(self, name: str, done: int, steps: int, shown: bool = True) -> None:
        self.name, self.steps, self.held_out = name, steps, ""
        hidden = not (shown and sys.stderr.isatty())
        self.bar = tqdm(total=steps, initial=done, desc=name, disable=hidden)

    def stepped(self, batch: Quality) -> None:
        self.bar.set_postfix_str(_describe(batch) + self.held_out, refresh=False)
        self.bar.update()

    def evaluated(self, step: int, quality: Quality) -> None:
        self.held_out = f" | held out {quality.loss:.3f}"
        if self.bar.disable:
            say(f"{self.name} {step}/{self.steps}: held out {_describe(quality)}")

    def close(self) -> None:
        self.bar.close()


def _describe(quality: Quality) -> str:
    return f"loss {quality.loss:.3f}, {quality.bpp:.3f} bpp, {quality.psnr:.2f} dB"


PATIENCE = 5.0  # seconds; the others of several processes wait for this one's step


class Interrupted(Exception):
    """Stopped by Ctrl-C or SIGTERM; the message says where."""


class StoppedWaiting(BaseException):
    """A request to stop that came while no step was underway; not to be caught as an error."""


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request that is met between two steps.

    Within `waiting` it is met at once, by an exception. The second one stops at once; but not among
    several processes, which torchrun tells as well as the terminal does, so that each of them gets
    two. There a step that others have begun gets its images if they come within PATIENCE.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, alone: bool = True) -> None:
        self.made, self.alone, self.waits = False, alone, False
        self.over = False
        self.since = 0.0  # when the request was made
        self.timer: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        self.previous = [signal.signal(number, self._note) for number in self.SIGNALS]
        return self

    def __exit__(self, *error: object) -> None:
        self.over = True
        if self.timer is not None:  # before its signal would meet another handler
            self.timer.cancel()
            self.timer.join()
        for number, previous in zip(self.SIGNALS, self.previous, strict=True):
            signal.signal(number, previous)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For what may be left at any moment, as no step is underway.

        Raises:
            StoppedWaiting: a request was made, or is made.
        """
        self.waits = True
        try:
            self._leave_if_due()
            yield
        finally:
            self.waits = False

    def _note(self, *received: object) -> None:
        if not self.made:
            self.made, self.since = True, time.monotonic()
        if self.alone:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._leave_if_due()
        if not self.alone and not self.over:
            self._ask_again()

    def _leave_if_due(self) -> None:
        due = self.made and (self.alone or time.monotonic() - self.since >= PATIENCE)
        if self.waits and due:
            raise StoppedWaiting

    def _ask_again(self) -> None:
        """By the same signal: an exception in the main thread can come from a handler only."""
        if self.timer is not None:
            self.timer.cancel()
        main = threading.main_thread().ident
        assert main is not None
        self.timer = threading.Timer(PATIENCE, signal.pthread_kill, (main, signal.SIGTERM))
        self.timer.daemon = True
        self.timer.start()
