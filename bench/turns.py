"""Optimizers that take turns, call by call: each with its limit, its failure and its memory.

Noise of the machine that lasts longer than a call hits all of them, and who begins goes round, so
that nobody always follows the same other one.
"""

from __future__ import annotations

import argparse
import gc
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from bench.clock import Elapsed, Times, timed_call
from bench.command import Row, common, progress
from bench.files import BadInput, told
from bench.memory import Share, settle
from bench.optimizers import OURS, PEERS, chosen, origin, peer

Result = TypeVar("Result")


def add_options(parser: argparse.ArgumentParser, beside: str, *more: str, **defaults: Any) -> None:
    """Of a command whose optimizers take turns."""
    of_turns = ("--periods", "--precondition-frequency", "--time-limit")
    common(parser, "--device", "--backend", *of_turns, *more, **defaults)
    peers = f"beside {beside}: {', '.join(PEERS)}, or any package.module:Class?option=value"
    parser.add_argument("--peers", type=chosen, default=(), metavar="NAME,...", help=peers)


class TookTooLong(BaseException):
    """No Exception, or libraries that try one way and then another would go on with the other."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TookTooLong within it once so much time has passed; None is no limit.

    By an alarm, which Python sees between two of its own instructions, on the main thread alone.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(*_: Any) -> None:
        raise TookTooLong(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Runner:
    """An optimizer, what its calls took and what becomes of it; subclasses say what a `call` is.

    Attributes:
        build: makes one; made twice, see `load`.
        needed: has no limit, and what it raises ends the run.
        limit: seconds that a call of a peer may take; compiling at the first ones can take long.
        missing: the command that brings a peer that is not installed.
        failed: what a peer raised that cannot step here; it then waits out the run.
        loading_ms: what the first call took that compiled kernels and loaded libraries.
        memory: that it takes of a GPU.
    """

    optimizer: Any = None
    missing: str | None = None
    failed: str | None = None
    loading_ms: float | None = None

    def __init__(
        self,
        name: str,
        device: str | torch.device,
        build: Callable[[], torch.optim.Optimizer],
        *,
        needed: bool = False,
        limit: float | None = None,
    ) -> None:
        self.name, self.device, self.build = name, device, build
        self.needed, self.limit = needed or name == OURS, limit
        self.memory, self.times = Share(device), Times()

    def call(self) -> None:
        """What is timed."""
        raise NotImplementedError

    def before(self) -> None:
        """Get ready for a call."""

    def after(self) -> None:
        """Free what a call has left behind."""

    def kept(self, elapsed: Elapsed, **kind: bool | None) -> None:
        """Keep what a timed call took; its kind as of `Times.add`."""
        self.times.add(elapsed, **kind)

    @property
    def waits(self) -> bool:
        return self.missing is not None or self.failed is not None

    def load(self) -> None:
        """Build one, take its first call and drop it for another: what compiles is not timed."""
        self.optimizer = self._tried(self.build, "being made")
        if self.waits:
            return
        self.before()
        elapsed = self._tried(self._work, "its first call")
        self.optimizer = None
        self.after()
        if elapsed is None:
            return
        self.loading_ms = elapsed.total
        gc.collect()  # it may be part of a cycle, and must not be freed in somebody else's turn
        with self.memory.turn():
            self.optimizer = self._tried(self.build, "being made again")

    def turn(self, call: int, timed: bool, frequency: int) -> None:
        self.before()
        with self.memory.turn():
            elapsed = self._tried(self._work, f"call {call}")
        self.after()
        if elapsed is not None and timed:
            again = peer(self.name).refreshed(self.optimizer, call, frequency)
            self.kept(elapsed, first=call == 0, refresh=again)

    def _work(self) -> Elapsed:
        return timed_call(self.call, self.device)

    def _tried(self, work: Callable[[], Result], when: str) -> Result | None:
        try:
            with time_limit(None if self.needed else self.limit):
                return work()
        except (Exception, TookTooLong) as error:
            if self.needed:
                refused = isinstance(error, ValueError) and self.optimizer is None
                raise BadInput(str(error)) if refused else error from None
            if isinstance(error, ImportError):
                self.missing = peer(self.name).install or ""
                why = f"is missing ({error}): {self.missing}; left out"
            else:
                self.failed = told(error)
                why = f"failed at {when}: {self.failed}"
            print(f"{self.name} {why}", file=sys.stderr)
            return None


def take_turns(
    runners: Sequence[Runner],
    frequency: int,
    periods: int,
    what: str,
    prepare: Callable[[int], None] = lambda call: None,
    budget: float | None = None,
    untimed: int | None = None,
) -> None:
    """Build all, load what they need, and take turns.

    The first call, `untimed` ones in which every kind of call occurs for the first time, by default
    a refresh period, and `periods` refresh periods that are timed. `prepare` gets the number of
    each call before all take it. After `budget` seconds the peers stop, and ours goes on alone.
    """
    untimed = frequency if untimed is None else untimed
    end = math.inf if budget is None else time.monotonic() + budget

    def has_time(runner: Runner, when: str) -> bool:
        left = end - time.monotonic()
        if not (runner.waits or runner.needed or budget is None):
            if left <= 0:
                runner.failed = f"stopped at {when}: the budget of {budget:g} s was over"
                print(f"{runner.name} {runner.failed}", file=sys.stderr)
            runner.limit = left if runner.limit is None else min(runner.limit, left)
        return not runner.waits

    prepare(0)
    for runner in runners:
        settle(runner.device)
        if has_time(runner, "its first call"):
            runner.load()
    for number in progress(range(1 + untimed + frequency * periods), what):
        prepare(number)
        first = number % len(runners)
        for runner in (*runners[first:], *runners[:first]):
            if has_time(runner, f"call {number}"):
                runner.turn(number, number == 0 or number > untimed, frequency)


def described(runner: Runner, frequency: int) -> Row:
    """What every row tells of an optimizer and, unless it is missing or failed, of its calls."""
    if runner.missing is not None:
        return {"name": runner.name, "missing": runner.missing}
    row = {
        "name": runner.name,
        "backend": getattr(runner.optimizer, "backend", None) if runner.name == OURS else None,
        "device": str(runner.device),
        "threads": torch.get_num_threads(),
        "precondition_frequency": frequency,
        **origin(runner.name),
    }
    if runner.failed is not None:
        return {**row, "failed": runner.failed}
    return {**row, **runner.times.summary(frequency), "loading_ms": runner.loading_ms}
