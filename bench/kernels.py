"""`kernels`: what every kernel or operator of a step takes, and its share of this machine's roof.

On CUDA each launch of the Triton backend, cold: 256 MiB are written before it. Elsewhere the
operators and stations of a step, by torch's profiler, as they follow one another. `share` is the
least time that flops and bytes need under the roofs of `python -m bench roof`, over the time taken.
`--aot` needs no GPU: every Triton kernel compiled ahead of time, with what the compiler made of it;
`load_bytes` is the narrowest load that brings an operand of a product to shared memory or
registers, `store_bytes` the narrowest store of a plane or moment. `--check` fails on a spill, where
either is not 16, on a tile that is walked across memory (`unordered`), on a running sum that goes
through two products (`chained`), and on more shared memory than an architecture has. With
`--shapes` besides, what every launch of that model's step issues, moves and takes: docs/cost.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench import shapes
from bench.clock import Stopwatch, synchronize
from bench.command import Row, common, positive, progress, show
from bench.cost import aot
from bench.costs import PLAN, Cost, costs
from bench.files import BadInput
from bench.recorded import named
from bench.roof import Roofs, measure
from bench.shapes import Inventory
from soap_fast import SOAP
from soap_fast.backends.triton.backend import PRECISIONS, TritonBackend, interpreted
from soap_fast.backends.triton.launch.launcher import Launch, TritonLauncher
from soap_fast.step.refresh import Refreshed

COLUMNS = (
    "name", "shapes", "phase", "by", "times", "us", "gflop", "mb", "gflop_s", "gb_s", "share",
)  # fmt: skip
# Steps of every kind, and of every one after another, before the first that is timed.
UNTIMED = ("plain", "plain", "refresh", "refresh", "plain")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    common(parser, "--shapes", "--device", "--backend", shapes=None)
    of = "of the Triton backend, or of the one that runs (default: launches on cuda)"
    add("--of", choices=("launches", "operators"), help=of)
    add("--steps", type=positive(int), default=5, help="of each kind (default: %(default)s)")
    add("--aot", action="store_true", help="compile ahead of time, no GPU")
    add("--check", action="store_true", help="with --aot: fail on what must not be")
    every = {"nargs": "+", "help": "with --aot; default: all"}
    add("--precision", choices=PRECISIONS, default=PRECISIONS, **every)
    add("--sm", type=int, choices=aot.ARCHITECTURES, default=aot.ARCHITECTURES, **every)


def run(options: argparse.Namespace) -> list[Row] | int:
    if options.aot and options.shapes:
        return predict(options)
    if options.aot:
        return aot.run(options.precision, options.sm, options.check, options.json)
    on_gpu = options.device.startswith("cuda")
    of = options.of or ("launches" if on_gpu else "operators")
    if of == "launches" and not on_gpu and not interpreted():
        raise BadInput("--of launches: torch sees no NVIDIA GPU; take --of operators, or --aot")
    inventory = shapes.load(options.shapes or "elic")
    try:
        if of == "launches":
            rows = launches(inventory, options.device, options.steps)
        else:
            rows = operators(inventory, options.device, options.backend, options.steps)
    except ValueError as error:
        raise BadInput(str(error)) from None
    roofs = Roofs.of_rows(measure(options.device))
    for row in rows:
        row |= {**_rates(row, roofs), "shapes": inventory.model, "device": options.device}
        row["threads"] = torch.get_num_threads()
    return rows


def predict(options: argparse.Namespace) -> int:
    """`--aot --shapes`: what every launch of a model's plain step costs, without a GPU."""
    if options.check:
        raise BadInput("--check looks at every kernel, whatever the model: leave --shapes out")
    aot.check_compiles()
    from bench.cost import rows as cost  # needs numpy, which a GPU's machine may lack

    found = cost.rows(shapes.load(options.shapes), options.sm, options.precision)
    show(found, cost.COLUMNS, options.json, "kernels --aot --shapes")
    return 0


def _rates(row: Row, roofs: Roofs) -> Row:
    """What is derived from time, flops and bytes; None where these are not known."""
    seconds, flops, moved = 1e-6 * row["us"], row["flops"], row["bytes"]
    if flops is None or moved is None or seconds <= 0:
        return dict.fromkeys(("gflop", "mb", "gflop_s", "gb_s", "share"))
    precision = row["precision"] if row["precision"] in roofs.gemm else "float32"
    return {
        "gflop": flops / 1e9,
        "mb": moved / 1e6,
        "gflop_s": flops / seconds / 1e9,
        "gb_s": moved / seconds / 1e9,
        "share": roofs.least_seconds(flops, moved, precision) / seconds,
    }


class Stepper:
    """An optimizer on the parameters of a model, with gradients of its own for every step."""

    def __init__(
        self, inventory: Inventory, device: str, backend: str | None, **options: Any
    ) -> None:
        self.inventory, self.device = inventory, device
        self.params = inventory.parameters(device)
        self.optimizer = SOAP(self.params, backend=backend, **options)
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


def _row(name: str, phase: str, by: str, samples: dict[str, list[float]], work: Cost | None) -> Row:
    """Medians of microseconds by name, and what the part has to compute and to move."""
    return {
        "name": name,
        "phase": phase,
        "by": by,
        **{field: statistics.median(values) for field, values in samples.items()},
        "samples": samples,
        "flops": None if work is None else work.flops,
        "bytes": None if work is None else work.bytes,
    }


# Operators -------------------------------------------------------------------------------------

PREFIXES = ("soap_fast.", "soap_fast::")  # our ranges, and operators of the extension
# Phase of a part by its name; everything else belongs to an update.
PHASE_OF = {
    **dict.fromkeys(("begin", "eigh", "eigh_eager"), "first"),
    **dict.fromkeys(("refresh", "refresh_", "refresh_eager", "carry_", "carry"), "refresh"),
}


def profiled(stepper: Stepper, phase: str) -> dict[str, Any]:
    """Take a step under the profiler; what it tells of named parts, in their order."""
    stepper.prepare(phase)
    activities = [ProfilerActivity.CPU]
    if stepper.device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        stepper.optimizer.step()
        synchronize(stepper.device)
    parts: Any = found.key_averages()  # on CUDA a range is among them a second time, on the device
    on_host = (part for part in parts if part.device_type == DeviceType.CPU)
    return {part.key: part for part in on_host if part.key.startswith(PREFIXES)}


def operators(inventory: Inventory, device: str, backend: str | None, steps: int) -> list[Row]:
    """Medians over `steps` plain and as many refreshing steps; the first step happens once."""
    loading = Stepper(inventory, device, backend)
    for phase in ("first", "plain", "refresh"):
        profiled(loading, phase)
    stepper = Stepper(inventory, device, backend)
    seen: dict[tuple[str, str], list[Any]] = {}
    timed = ["first", *["plain"] * steps, *["refresh"] * steps]
    for phase in progress(timed, "steps", "step"):
        for name, part in profiled(stepper, phase).items():
            seen.setdefault((name, phase), []).append(part)
        if phase == "first":
            for untimed in UNTIMED:
                stepper.step(untimed)
    known = costs((entry.shape for entry in inventory.entries), PLAN)
    rows, on_gpu = [], device.startswith("cuda")
    for (name, phase), parts in seen.items():
        # What a plain step has as well is told of plain steps.
        base = name.removeprefix(PREFIXES[0]).removeprefix(PREFIXES[1])
        if PHASE_OF.get(base, "plain") != phase or ("::" in name and base not in known):
            continue
        host = [part.cpu_time_total for part in parts]
        us = [part.device_time_total for part in parts] if on_gpu else host
        samples = {"us": us, "host_us": host}
        row = _row(name, phase, stepper.optimizer.backend, samples, known.get(base))
        rows.append(row | {"times": parts[0].count, "precision": "float32"})
    return rows


# Launches --------------------------------------------------------------------------------------


class TimingLauncher(TritonLauncher):
    """Launches, and times those that it `watches` by their op, each with cold caches."""

    def __init__(self, device: str = "cuda") -> None:
        processors = 1
        if device.startswith("cuda"):
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        super().__init__(processors)
        self.watches: Callable[[str], bool] = lambda op: False
        self._watch = Stopwatch(device, cold=True)
        self._ops: list[str] = []

    def __call__(self, launch: Launch) -> None:
        launched = partial(super().__call__, launch)
        if self.watches(launch.op):
            self.timed(launch.op, launched)
        else:
            launched()

    def timed(self, op: str, work: Callable[[], Any]) -> Any:
        """Whatever it launches is part of it."""
        watches, self.watches = self.watches, lambda op: False
        self._ops.append(op)
        try:
            return self._watch(work)
        finally:
            self.watches = watches

    def taken(self) -> list[tuple[str, float]]:
        """Op and microseconds of all timed since this was last asked; waits for the device."""
        ops, self._ops = self._ops, []
        return [(op, 1e6 * t) for op, t in zip(ops, self._watch.seconds(), strict=True)]


class TimedBackend(TritonBackend):
    """The operator `refresh_` is one span."""

    launcher: TimingLauncher

    def refresh_op(self, *arguments: Any, **options: Any) -> Refreshed:
        refresh = partial(super().refresh_op, *arguments, **options)
        return self.launcher.timed("refresh_", refresh)


def launches(inventory: Inventory, device: str, steps: int) -> list[Row]:
    """Medians over `steps` plain and as many refreshing steps, each launch for itself."""
    stepper = Stepper(inventory, device, "triton")
    launcher = TimingLauncher(device)
    stepper.optimizer._backend = backend = TimedBackend(launcher=launcher)
    for phase in ("first", *UNTIMED):
        stepper.step(phase)
    launcher.taken()
    launcher.watches = lambda op: True
    seen: dict[str, list[list[tuple[str, float]]]] = {"plain": [], "refresh": []}
    for phase in progress(["plain"] * steps + ["refresh"] * steps, "steps", "step"):
        stepper.step(phase)
        seen[phase].append(launcher.taken())
    (engine,) = backend.engines.values()
    update = len(seen["plain"][0])  # a refreshing step begins with it
    phases = {"plain": seen["plain"], "refresh": [step[update:] for step in seen["refresh"]]}
    # Steps of a kind launch the same, one after the other.
    alike = [(phase, same) for phase, of in phases.items() for same in zip(*of, strict=True)]
    names = named((same[0][0] for _, same in alike), engine.works)
    rows = []
    for (phase, same), (name, work) in zip(alike, names, strict=True):
        cost = None if work is None else Cost(work.needed, work.bytes)
        row = _row(name, phase, "triton", {"us": [us for _, us in same]}, cost)
        rows.append(row | {"times": 1, "precision": engine.precision})
    return rows
