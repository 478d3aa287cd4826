"""One thing at a time made larger: settings of an optimizer, and its steps under all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from bench.measuring.calls import Call, Times, sequence, timed_step
from bench.output.progress import progress
from bench.shapes import Entry, Inventory
from soap_fast import SOAP

FREQUENCY = 2  # a refreshing call for each plain one


@dataclass(frozen=True)
class Setting:
    """One point of a sweep: `tensors` parameters of one shape."""

    x: int
    shape: tuple[int, ...]
    tensors: int = 1
    frequency: int = FREQUENCY
    threads: int | None = None


@dataclass(frozen=True)
class Sweep:
    """Settings that differ in one thing, called `axis`; each is stepped `calls` times."""

    name: str
    axis: str
    settings: tuple[Setting, ...]
    calls: int


def sweeps(quick: bool, repeats: int, device: str) -> dict[str, Sweep]:
    """All that this device has; `quick` takes fewer and smaller settings.

    Widths, counts and kernels cover those of compression models; a matrix [128, 128] is one whose
    products outweigh a call, and which a cache holds.
    """
    calls = FREQUENCY * repeats
    widths = (16, 32, 64) if quick else (32, 64, 128, 256, 512, 1024)
    counts = (1, 4, 16) if quick else (1, 3, 10, 30, 100, 300, 1000, 2000)
    kernels = (1, 3) if quick else (1, 3, 5, 7, 9, 11)
    frequencies = (1, 2, 5) if quick else (1, 2, 5, 10, 20, 50, 100)
    channels, matrix = ((8, 8), (16, 16)) if quick else ((64, 64), (128, 128))
    found = [
        Sweep("width", "width d of [d, d]", tuple(Setting(d, (d, d)) for d in widths), calls),
        Sweep(
            "tensors",
            "tensors of [16, 16]",
            tuple(Setting(n, (16, 16), tensors=n) for n in counts),
            calls,
        ),
        Sweep(
            "kernel",
            f"k of [{channels[0]}, {channels[1]}, k, k]",
            tuple(Setting(k, (*channels, k, k)) for k in kernels),
            calls,
        ),
        Sweep(
            "frequency",
            "precondition_frequency",
            tuple(Setting(f, matrix, tensors=4, frequency=f) for f in frequencies),
            max(frequencies),  # a whole period of the longest
        ),
    ]
    if not device.startswith("cuda"):
        cores = os.cpu_count() or 1
        counts = tuple(sorted({1, cores} if quick else {*_powers_of_two(cores), cores}))
        settings = tuple(Setting(n, matrix, tensors=16, threads=n) for n in counts)
        found.append(Sweep("threads", "threads", settings, calls))
    return {sweep.name: sweep for sweep in found}


def _powers_of_two(largest: int) -> set[int]:
    return {2**i for i in range(largest.bit_length()) if 2**i <= largest}


@dataclass
class Point:
    """A setting, an optimizer under it and what its calls took."""

    setting: Setting
    inventory: Inventory
    params: list[torch.nn.Parameter]
    optimizer: SOAP
    times: Times = field(default_factory=Times)

    @classmethod
    def of(cls, setting: Setting, device: str, backend: str | None) -> Point:
        entries = (Entry(f"p{i}", setting.shape, True) for i in range(setting.tensors))
        inventory = Inventory(str(setting.x), tuple(entries))
        params = inventory.parameters(device)

        def made() -> SOAP:
            return SOAP(params, precondition_frequency=setting.frequency, backend=backend)

        inventory.set_gradients(params, seed=1)
        made().step()  # compiles and loads what a first call needs
        return cls(setting, inventory, params, made())

    def begin(self) -> None:
        """The first call, and the refresh period after it that is not timed."""
        for call in sequence(self.setting.frequency, 0):
            self.call(call)

    def timed_call(self, number: int) -> None:
        """One of those after that, the first being 1."""
        self.call(Call(self.setting.frequency + number, True))

    def call(self, call: Call) -> None:
        self.inventory.set_gradients(self.params, seed=1 + call.number)
        elapsed = timed_step(self.optimizer, self.params[0].device)
        if call.timed:
            refresh = call.number % self.setting.frequency == 0
            self.times.add(elapsed, first=call.number == 0, refresh=refresh)


def measure(sweep: Sweep, device: str, backend: str | None) -> list[Point]:
    """The first calls of every setting, and then `calls` more that are timed, in turn.

    A slow minute of the machine then meets all settings and not one of them.

    Raises:
        ValueError: a backend that is unknown or does not run here.
    """
    points = [Point.of(setting, device, backend) for setting in sweep.settings]
    before = torch.get_num_threads()
    try:
        for number in progress(range(1 + sweep.calls), sweep.name, "round"):
            for point in points:
                _set_threads(point.setting.threads or before)
                if number == 0:
                    point.begin()
                else:
                    point.timed_call(number)
    finally:
        _set_threads(before)
    return points


def _set_threads(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def rows(sweep: Sweep, points: Sequence[Point], device: str) -> list[dict[str, object]]:
    """A row per setting: medians by kind of call, and the samples that they are of."""
    return [
        {
            "sweep": sweep.name,
            "axis": sweep.axis,
            "x": point.setting.x,
            "shape": list(point.setting.shape),
            "tensors": point.setting.tensors,
            "parameters": point.inventory.numel,
            "precondition_frequency": point.setting.frequency,
            "threads": point.setting.threads or torch.get_num_threads(),
            "device": device,
            "backend": point.optimizer.backend,
            **point.times.summary(point.setting.frequency),
            "samples": {"plain_ms": point.times.plain, "refresh_ms": point.times.refresh},
        }
        for point in points
    ]
