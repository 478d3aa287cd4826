"""Profiled steps of an optimizer, and what their named parts took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.shapes import Inventory
from soap_fast import SOAP

# Steps of every kind, and of every one after another, before the first that is timed.
UNTIMED = ("plain", "plain", "refresh", "refresh", "plain")
PREFIXES = ("soap_fast.", "soap_fast::")  # our ranges, and operators of the extension


@dataclass(frozen=True)
class Part:
    """A named part of a step.

    Attributes:
        times: how often it occurred.
        host: seconds on the host, whole; on the CPU that is the work itself.
        device: seconds of kernels launched within it, or None on the CPU.
    """

    times: int
    host: float
    device: float | None


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
        with profiling(self.device) as found:
            self.optimizer.step()
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


@contextmanager
def profiling(device: str) -> Iterator[profile]:
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        yield found
        if on_gpu:
            torch.cuda.synchronize(device)


def parts(found: profile, device: str) -> dict[str, Part]:
    """The named parts, in the order in which they began."""
    first: dict[str, float] = {}
    for event in found.events():
        first[event.name] = min(event.time_range.start, first.get(event.name, float("inf")))
    # On CUDA a range occurs a second time, on the device, by the same name.
    averages: list[Any] = [e for e in found.key_averages() if e.device_type == DeviceType.CPU]
    named = [e for e in averages if e.key.startswith(PREFIXES)]
    on_gpu = device.startswith("cuda")
    return {
        e.key: Part(
            e.count,
            1e-6 * e.cpu_time_total,
            1e-6 * e.device_time_total if on_gpu else None,
        )
        for e in sorted(named, key=lambda e: first[e.key])
    }
