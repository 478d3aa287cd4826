"""`kernels --of launches`: every launch of the Triton backend, with what it computes and moves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from bench.command import Row
from bench.measuring.clock import Stopwatch
from bench.measuring.profiles import UNTIMED, Stepper
from bench.output.progress import progress
from bench.shapes import Inventory
from soap_fast.backends.triton.backend import TritonBackend
from soap_fast.backends.triton.engine import Engine
from soap_fast.backends.triton.launch.launcher import Launch, TritonLauncher
from soap_fast.backends.triton.ops.work import Work
from soap_fast.step.refresh import Refreshed


class Timed(NamedTuple):
    op: str
    seconds: float


class TimingLauncher(TritonLauncher):
    """Launches, and times what it is told to, each with cold caches.

    Attributes:
        watches: decides by its op whether a launch is timed.
    """

    def __init__(self, multiprocessors: int, device: str = "cuda") -> None:
        super().__init__(multiprocessors)
        self.watches: Callable[[str], bool] = lambda op: False
        self._watch = Stopwatch(device, cold=True)
        self._ops: list[str] = []

    def __call__(self, launch: Launch) -> None:
        if not self.watches(launch.op):
            super().__call__(launch)
            return
        self.timed(launch.op, lambda: super(TimingLauncher, self).__call__(launch))

    def timed(self, op: str, work: Callable[[], Any]) -> Any:
        self._ops.append(op)
        return self._watch(work)

    def taken(self) -> list[Timed]:
        """Everything timed since this was last asked, in order; waits for the device."""
        ops, self._ops = self._ops, []
        return [Timed(*pair) for pair in zip(ops, self._watch.seconds(), strict=True)]


class TimedBackend(TritonBackend):
    """The operator `refresh_` is one span, whatever it launches."""

    def __init__(self, launcher: TimingLauncher) -> None:
        super().__init__(launcher=launcher)
        self.timing = launcher

    def refresh_op(self, *arguments: Any, **options: Any) -> Refreshed:
        watches, self.timing.watches = self.timing.watches, lambda op: False
        try:
            refresh = super().refresh_op
            return self.timing.timed("refresh_", lambda: refresh(*arguments, **options))
        finally:
            self.timing.watches = watches


def measure(inventory: Inventory, device: str, steps: int) -> list[Row]:
    """Medians over `steps` plain and as many refreshing steps, each launch for itself.

    Raises:
        ValueError: the Triton backend cannot run here.
    """
    stepper = Stepper(inventory, device, "triton")
    launcher = TimingLauncher(multiprocessors(device), device)
    stepper.optimizer._backend = backend = TimedBackend(launcher)
    for phase in ("first", *UNTIMED):
        stepper.step(phase)
    launcher.taken()
    launcher.watches = lambda op: True
    seen: dict[str, list[list[Timed]]] = {"plain": [], "refresh": []}
    for phase in progress(["plain"] * steps + ["refresh"] * steps, "steps", "step"):
        stepper.step(phase)
        seen[phase].append(launcher.taken())
    (engine,) = backend.engines.values()
    plain = len(seen["plain"][0])
    rows = list(_rows("plain", seen["plain"], engine))
    return [*rows, *_rows("refresh", [step[plain:] for step in seen["refresh"]], engine)]


def multiprocessors(device: str) -> int:
    if not device.startswith("cuda"):
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _rows(phase: str, steps: list[list[Timed]], engine: Engine) -> Iterator[Row]:
    """A row per launch; steps of a kind launch the same, one after the other."""
    names = _names(engine) if phase == "plain" else {}
    for same in zip(*steps, strict=True):
        op = same[0].op
        name, work = next(names[op]) if op in names else (op, None)
        yield {
            "name": name,
            "phase": phase,
            "by": "triton",
            "times": 1,
            "us": 1e6 * statistics.median(timed.seconds for timed in same),
            "samples": {"us": [1e6 * timed.seconds for timed in same]},
            "flops": None if work is None else work.needed,
            "bytes": None if work is None else work.bytes,
            "precision": engine.precision,
        }


def _names(engine: Engine) -> dict[str, Iterator[tuple[str, Work]]]:
    """By op, its launches of a plain step in their order: `rotate` is launched several times."""
    found: dict[str, list[tuple[str, Work]]] = {}
    for name, work in engine.works.items():
        op = "rotate" if name.startswith("rotate") else name
        if work.count:
            found.setdefault(op, []).append((name, work))
    return {op: iter(launches) for op, launches in found.items()}
