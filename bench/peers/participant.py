"""One of several optimizers that take turns: its limit, its failure, its memory."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from bench.command import told
from bench.measuring.calls import Elapsed
from bench.measuring.memory import Share
from bench.peers.limit import TookTooLong, time_limit
from bench.peers.optimizers import OURS, around

Result = TypeVar("Result")


class Participant:
    """An optimizer and what becomes of it.

    Attributes:
        optimizer: None of a peer that could not be built.
        build: makes another one like it, for `load`.
        needed: without this one there is nothing to tell: it has no limit, and what it raises ends
            the run.
        failed: what a peer raised that cannot step here; it then waits out the run.
        limit: seconds that a call of a peer may take; compiling at the first ones can take long.
        loading_ms: what the first call took that compiled kernels and loaded libraries; None
            where none did that for others.
        memory: that it takes of a GPU.
    """

    def __init__(
        self,
        name: str,
        optimizer: torch.optim.Optimizer | None,
        device: str | torch.device,
        *,
        build: Callable[[], torch.optim.Optimizer] | None = None,
        needed: bool | None = None,
        failed: str | None = None,
        limit: float | None = None,
    ) -> None:
        self.name, self.optimizer, self.build = name, optimizer, build
        self.needed = name == OURS if needed is None else needed
        self.failed, self.limit = failed, limit
        self.loading_ms: float | None = None
        self.memory = Share(device)

    def take(self, work: Callable[[], Elapsed], when: str) -> Elapsed | None:
        """Have a turn; None where the peer failed, which is said and kept."""
        return self._tried(lambda: self._counted(work), when)

    def load(self, work: Callable[[], Elapsed]) -> None:
        """Have a turn with an optimizer that is then dropped for another one of its kind.

        What a first call compiles and loads is there afterwards, so that the other one's first
        call is a call and nothing else.
        """
        if self.build is None or self.failed is not None:
            return
        elapsed = self._tried(work, "its first call")
        self.optimizer = None
        if elapsed is None:
            return
        self.loading_ms = elapsed.total
        self.forget()
        gc.collect()  # it may be part of a cycle, and must not be freed in somebody else's turn
        build = self.build
        self.optimizer = self._tried(lambda: self._counted(build), "being made again")

    def forget(self) -> None:
        """Free what the dropped optimizer's call has left behind, for those that have some."""

    def _counted(self, work: Callable[[], Result]) -> Result:
        with self.memory.turn():
            return work()

    def _tried(self, work: Callable[[], Result], when: str) -> Result | None:
        try:
            with time_limit(None if self.needed else self.limit), around(self.name):
                return work()
        except (Exception, TookTooLong) as error:
            if self.needed:
                raise
            self.failed = told(error)
            print(f"{self.name} failed at {when}: {self.failed}", file=sys.stderr)
            return None
