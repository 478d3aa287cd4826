"""Optimizers that take turns, call by call: each with its limit, its failure and its memory.

Noise of the machine that lasts longer than a call hits all of them, and who begins goes round, so
that nobody always follows the same other one.
"""

from __future__ import annotations

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
from bench.command import Row, progress
from bench.files import BadInput, told
from bench.memory import Share, settle
from bench.optimizers import OURS, around, origin, peer, refreshed

Result = TypeVar("Result")


class TookTooLong(BaseException):
    """No Exception, or libraries that try one way and then another would go on with the other."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise within it once so much time has passed; None is no limit.

    By an alarm, which Python sees between two of its own instructions: a single call into a
    library is waited for. In another thread than the main one, alarms do not reach us and nothing
    is limited.
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
        optimizer: None of a peer that could not be built.
        build: makes one; made twice, see `load`.
        needed: without this one there is nothing to tell: it has no limit, and what it raises ends
            the run.
        missing: the command that brings a peer that is not installed.
        failed: what a peer raised that cannot step here; it then waits out the run.
        limit: seconds that a call of a peer may take; compiling at the first ones can take long.
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
        """Get ready for a call, untimed."""

    def after(self) -> None:
        """Free what a call has left behind, untimed."""

    def kept(self, elapsed: Elapsed, *, first: bool, refresh: bool | None) -> None:
        """Keep what a timed call took."""
        self.times.add(elapsed, first=first, refresh=refresh)

    @property
    def waits(self) -> bool:
        return self.missing is not None or self.failed is not None

    def make(self) -> None:
        """Build the optimizer; of a peer that cannot be built, keep and say why.

        Raises:
            BadInput: a needed one refused what the user gave.
        """
        try:
            self.optimizer = self.build()
        except ImportError as error:
            if self.needed:
                raise
            self.missing = peer(self.name).install or ""
            print(f"{self.name} is missing ({error}): {self.missing}; left out", file=sys.stderr)
        except Exception as error:
            if self.needed:
                raise BadInput(str(error)) if isinstance(error, ValueError) else error from None
            self.failed = told(error)
            print(f"{self.name} cannot be made: {self.failed}", file=sys.stderr)

    def load(self) -> None:
        """Have a turn with an optimizer that is then dropped for another one of its kind.

        What a first call compiles and loads is there afterwards, so that the other one's first
        call is a call and nothing else.
        """
        self.before()
        elapsed = self._tried(self._work, "its first call")
        self.optimizer = None
        self.after()
        if elapsed is None:
            return
        self.loading_ms = elapsed.total
        gc.collect()  # it may be part of a cycle, and must not be freed in somebody else's turn
        self.optimizer = self._tried(lambda: self._counted(self.build), "being made again")

    def turn(self, call: int, timed: bool, frequency: int) -> None:
        self.before()
        elapsed = self._tried(lambda: self._counted(self._work), f"call {call}")
        self.after()
        if elapsed is not None and timed:
            again = refreshed(self.name, self.optimizer, call, frequency)
            self.kept(elapsed, first=call == 0, refresh=again)

    def _work(self) -> Elapsed:
        return timed_call(self.call, self.device)

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


def take_turns(
    runners: Sequence[Runner],
    frequency: int,
    periods: int,
    what: str,
    prepare: Callable[[int], None] = lambda call: None,
    budget: float | None = None,
) -> None:
    """Build all, load what they need, and take turns.

    The first call, a refresh period that is not timed, and `periods` refresh periods that are. In
    the period that is not timed every kind of call occurs, by a staggered schedule too: whatever
    compiles, loads or is allocated at the first call of a kind is in no sample but the first's.
    After `budget` seconds the peers stop, and ours goes on alone.

    Args:
        prepare: gets the number of each call before all take it.
    """
    end = math.inf if budget is None else time.monotonic() + budget
    for runner in runners:
        settle(runner.device)
        runner.make()

    def has_time(runner: Runner, when: str) -> bool:
        if not (runner.waits or runner.needed or budget is None):
            left = end - time.monotonic()
            if left <= 0:
                runner.failed = f"stopped at {when}: the budget of {budget:g} s was over"
                print(f"{runner.name} {runner.failed}", file=sys.stderr)
            # A last call must not take more than is left either.
            runner.limit = left if runner.limit is None else min(runner.limit, left)
        return not runner.waits

    prepare(0)
    for runner in runners:
        if has_time(runner, "its first call"):
            runner.load()
    for number in progress(range(1 + frequency * (1 + periods)), what):
        prepare(number)
        first = number % len(runners)
        for runner in (*runners[first:], *runners[:first]):
            if has_time(runner, f"call {number}"):
                runner.turn(number, number == 0 or number > frequency, frequency)


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
