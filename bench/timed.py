"""Parts of a step, each timed: launches of the Triton backend, or operators under a profiler."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.clock import Stopwatch
from bench.command import Row, progress
from bench.costs import PLAN, Cost, costs
from bench.shapes import Inventory
from soap_fast import SOAP
from soap_fast.backends.triton.backend import TritonBackend
from soap_fast.backends.triton.engine import Engine
from soap_fast.backends.triton.launch.launcher import Launch, TritonLauncher
from soap_fast.backends.triton.ops.work import Work
from soap_fast.step.refresh import Refreshed

# Steps of every kind, and of every one after another, before the first that is timed.
UNTIMED = ("plain", "plain", "refresh", "refresh", "plain")
PREFIXES = ("soap_fast.", "soap_fast::")  # our ranges, and operators of the extension


class Stepper:
    """An optimizer on the parameters of a model; the first step begins the state."""

    PHASES = ("first", "plain", "refresh")

    def __init__(self, inventory: Inventory, device: str, backend: str | None) -> None:
        """ValueError for a backend that is unknown or does not run here."""
        self.inventory, self.device = inventory, device
        self.params = inventory.parameters(device)
        self.optimizer = SOAP(self.params, backend=backend)
        self.calls = 0

    def step(self, phase: str) -> None:
        """A step of that kind, on gradients of its own; the first one must be `first`."""
        self.prepare(phase)
        self.optimizer.step()

    def prepare(self, phase: str) -> None:
        self.inventory.set_gradients(self.params, seed=1 + self.calls)
        self.calls += 1
        frequency = 1 if phase == "refresh" else 10**9
        self.optimizer.param_groups[0]["precondition_frequency"] = frequency

    def profiled(self, phase: str) -> profile:
        self.prepare(phase)
        on_gpu = self.device.startswith("cuda")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as found:
            self.optimizer.step()
            if on_gpu:
                torch.cuda.synchronize(self.device)
        return found


def warmed_up(inventory: Inventory, device: str, backend: str | None) -> Stepper:
    """A new stepper, where another one has compiled and loaded what its steps need, profiled too.

    Raises:
        ValueError: a backend that is unknown or does not run here.
    """
    before = Stepper(inventory, device, backend)
    for phase in Stepper.PHASES:
        before.profiled(phase)
    return Stepper(inventory, device, backend)


# Operators -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A named part of a step.

    Attributes:
        times: how often it occurred.
        host: microseconds on the host, whole; on the CPU that is the work itself.
        device: microseconds of kernels launched within it, or None on the CPU.
    """

    times: int
    host: float
    device: float | None


def parts(found: profile, device: str) -> dict[str, Part]:
    """The named parts, in the order in which they began."""
    first: dict[str, float] = {}
    for event in found.events():
        first[event.name] = min(event.time_range.start, first.get(event.name, float("inf")))
    # On CUDA a range occurs a second time, on the device, by the same name.
    averages: list[Any] = [e for e in found.key_averages() if e.device_type == DeviceType.CPU]
    named = [e for e in averages if e.key.startswith(PREFIXES)]
    on_gpu = device.startswith("cuda")
    named.sort(key=lambda e: first[e.key])
    return {
        e.key: Part(e.count, e.cpu_time_total, e.device_time_total if on_gpu else None)
        for e in named
    }


def operators(inventory: Inventory, device: str, backend: str | None, steps: int) -> list[Row]:
    """Medians over `steps` plain and as many refreshing steps; the first step happens once.

    Raises:
        ValueError: a backend that is unknown or does not run here.
    """
    stepper = warmed_up(inventory, device, backend)
    known = costs((entry.shape for entry in inventory.entries), PLAN)
    seen: dict[tuple[str, str], list[Part]] = {}
    timed = ["first", *["plain"] * steps, *["refresh"] * steps]
    for phase in progress(timed, "steps", "step"):
        profiled = stepper.profiled(phase)
        if phase == "first":
            for untimed in UNTIMED:
                stepper.step(untimed)
        for name, part in parts(profiled, device).items():
            seen.setdefault((name, phase), []).append(part)
    return [
        _operator(name, phase, found, known.get(name), stepper.optimizer.backend)
        for (name, phase), found in seen.items()
        if _belongs(name, phase) and ("::" not in name or name in known)
    ]


def _belongs(name: str, phase: str) -> bool:
    """What a plain step has as well is told of plain steps; empty acts are told of none."""
    act = {"first": "begin", "refresh": "refresh"}.get(phase, "update")
    base = name.removeprefix("soap_fast.").removeprefix("soap_fast::")
    return PHASE_OF.get(base, "plain") == phase or base == act


# Everything else belongs to an update.
PHASE_OF = {
    **dict.fromkeys(("begin", "eigh", "eigh_eager"), "first"),
    **dict.fromkeys(("refresh", "refresh_", "refresh_eager", "carry_", "carry"), "refresh"),
}


def _operator(name: str, phase: str, found: list[Part], cost: Cost | None, backend: str) -> Row:
    host = [part.host for part in found]
    work = [part.device for part in found if part.device is not None] or host
    return {
        "name": name,
        "phase": phase,
        "by": backend,
        "times": found[0].times,
        "us": statistics.median(work),
        "host_us": statistics.median(host),
        "samples": {"us": work, "host_us": host},
        "flops": None if cost is None else cost.flops,
        "bytes": None if cost is None else cost.bytes,
        "precision": "float32",
    }


# Launches --------------------------------------------------------------------------------------


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


def launches(inventory: Inventory, device: str, steps: int) -> list[Row]:
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
    rows = list(_launch_rows("plain", seen["plain"], engine))
    return [*rows, *_launch_rows("refresh", [step[plain:] for step in seen["refresh"]], engine)]


def multiprocessors(device: str) -> int:
    if not device.startswith("cuda"):
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _launch_rows(phase: str, steps: list[list[Timed]], engine: Engine) -> Iterator[Row]:
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
