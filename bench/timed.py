"""Parts of a step, each timed: launches of the Triton backend, or operators under a profiler."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.clock import Stopwatch
from bench.command import Row, progress
from bench.costs import PLAN, costs
from bench.shapes import Inventory
from soap_fast import SOAP
from soap_fast.backends.triton.backend import TritonBackend
from soap_fast.backends.triton.launch.launcher import Launch, TritonLauncher
from soap_fast.backends.triton.ops.work import Work
from soap_fast.step.refresh import Refreshed

# Steps of every kind, and of every one after another, before the first that is timed.
UNTIMED = ("plain", "plain", "refresh", "refresh", "plain")


class Stepper:
    """An optimizer on the parameters of a model, with gradients of its own for every step."""

    def __init__(self, inventory: Inventory, device: str, backend: str | None) -> None:
        """ValueError for a backend that is unknown or does not run here."""
        self.inventory, self.device = inventory, device
        self.params = inventory.parameters(device)
        self.optimizer = SOAP(self.params, backend=backend)
        self.calls = 0

    def step(self, phase: str) -> None:
        """A step of that kind, `first`, `plain` or `refresh`; the first one must be `first`."""
        self.prepare(phase)
        self.optimizer.step()

    def prepare(self, phase: str) -> None:
        self.inventory.set_gradients(self.params, seed=1 + self.calls)
        self.calls += 1
        frequency = 1 if phase == "refresh" else 10**9
        self.optimizer.param_groups[0]["precondition_frequency"] = frequency


# Operators -------------------------------------------------------------------------------------

PREFIXES = ("soap_fast.", "soap_fast::")  # our ranges, and operators of the extension
# Phase of a part by its name; everything else belongs to an update.
PHASE_OF = {
    **dict.fromkeys(("begin", "eigh", "eigh_eager"), "first"),
    **dict.fromkeys(("refresh", "refresh_", "refresh_eager", "carry_", "carry"), "refresh"),
}


class Part(NamedTuple):
    """How often a named part occurred in a step, and microseconds of it.

    Attributes:
        host: whole; on the CPU that is the work itself.
        device: of kernels launched within it, or None on the CPU.
    """

    times: int
    host: float
    device: float | None


def profiled(stepper: Stepper, phase: str) -> dict[str, Part]:
    """Take a step under the profiler; its named parts, in the order in which they began."""
    stepper.prepare(phase)
    on_gpu = stepper.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        stepper.optimizer.step()
        if on_gpu:
            torch.cuda.synchronize(stepper.device)
    first: dict[str, float] = {}
    for event in found.events():
        first.setdefault(event.name, event.time_range.start)
    # On CUDA a range occurs a second time, on the device, by the same name.
    named: list[Any] = [
        e for e in found.key_averages()
        if e.device_type == DeviceType.CPU and e.key.startswith(PREFIXES)
    ]  # fmt: skip
    return {
        e.key: Part(e.count, e.cpu_time_total, e.device_time_total if on_gpu else None)
        for e in sorted(named, key=lambda e: first[e.key])
    }


def operators(inventory: Inventory, device: str, backend: str | None, steps: int) -> list[Row]:
    """Medians over `steps` plain and as many refreshing steps; the first step happens once.

    Raises:
        ValueError: a backend that is unknown or does not run here.
    """
    loading = Stepper(inventory, device, backend)
    for phase in ("first", "plain", "refresh"):
        profiled(loading, phase)
    stepper = Stepper(inventory, device, backend)
    seen: dict[tuple[str, str], list[Part]] = {}
    timed = ["first", *["plain"] * steps, *["refresh"] * steps]
    for phase in progress(timed, "steps", "step"):
        found = profiled(stepper, phase)
        if phase == "first":
            for untimed in UNTIMED:
                stepper.step(untimed)
        for name, part in found.items():
            seen.setdefault((name, phase), []).append(part)
    known = costs((entry.shape for entry in inventory.entries), PLAN)
    rows = []
    for (name, phase), parts in seen.items():
        base = name[len(PREFIXES[0 if name.startswith(PREFIXES[0]) else 1]) :]
        # What a plain step has as well is told of plain steps.
        if PHASE_OF.get(base, "plain") != phase or ("::" in name and name not in known):
            continue
        host = [part.host for part in parts]
        work = [part.device for part in parts if part.device is not None] or host
        cost = known.get(name)
        rows.append(
            {
                "name": name,
                "phase": phase,
                "by": stepper.optimizer.backend,
                "times": parts[0].times,
                "us": statistics.median(work),
                "host_us": statistics.median(host),
                "samples": {"us": work, "host_us": host},
                "flops": None if cost is None else cost.flops,
                "bytes": None if cost is None else cost.bytes,
                "precision": "float32",
            }
        )
    return rows


# Launches --------------------------------------------------------------------------------------


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

    def taken(self) -> list[tuple[str, float]]:
        """Op and seconds of all timed since this was last asked; waits for the device."""
        ops, self._ops = self._ops, []
        return list(zip(ops, self._watch.seconds(), strict=True))


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
    seen: dict[str, list[list[tuple[str, float]]]] = {"plain": [], "refresh": []}
    for phase in progress(["plain"] * steps + ["refresh"] * steps, "steps", "step"):
        stepper.step(phase)
        seen[phase].append(launcher.taken())
    (engine,) = backend.engines.values()
    plain = len(seen["plain"][0])
    names, rows = _names(engine.works), []
    for phase, steps_seen in (("plain", seen["plain"]), ("refresh", seen["refresh"])):
        first = 0 if phase == "plain" else plain
        for same in zip(*(step[first:] for step in steps_seen), strict=True):
            rows.append(_launch(same, phase, names, engine.precision))
    return rows


def multiprocessors(device: str) -> int:
    if not device.startswith("cuda"):
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _launch(same: Any, phase: str, names: dict[str, Iterator[Any]], precision: str) -> Row:
    """The row of a launch; steps of a kind launch the same, one after the other."""
    op = same[0][0]
    name, work = next(names[op], (op, None)) if op in names else (op, None)
    times = [1e6 * seconds for _, seconds in same]
    return {
        "name": name,
        "phase": phase,
        "by": "triton",
        "times": 1,
        "us": statistics.median(times),
        "samples": {"us": times},
        "flops": None if work is None else work.needed,
        "bytes": None if work is None else work.bytes,
        "precision": precision,
    }


def _names(works: dict[str, Work]) -> dict[str, Iterator[tuple[str, Work]]]:
    """By op, its launches of a plain step in their order: `rotate` is launched several times."""
    found: dict[str, list[tuple[str, Work]]] = {}
    for name, work in works.items():
        if work.count:
            found.setdefault("rotate" if name.startswith("rotate") else name, []).append(
                (name, work)
            )
    return {op: iter(launches) for op, launches in found.items()}
