"""Memory that optimizers and training need: of a GPU by torch's allocator, else by the system.

On a GPU several workloads of a process take turns, so that what is allocated within a turn is of
whoever has it. On the CPU each has a process of its own, which takes three steps under a
precondition frequency of 2: the first, a plain and a refreshing one. There the peak is resident
memory as the system counts it, whoever allocates, minus what was resident before. The C library is
told to give back at once what is freed, or memory it keeps would count. The system counts in pages
and lazily: some 100 kB mean nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench import shapes, workloads
from bench.command import ROOT
from bench.optimizers import around, build

STEPS, FREQUENCY = 3, 2
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Share:
    """The memory of one of several workloads on a GPU.

    Attributes:
        kept: bytes that it holds between its turns.
        peak: the most bytes it has held at once; None on the CPU.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.kept = 0
        self.peak: int | None = 0 if self.device.type == "cuda" else None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Count what is allocated and freed within; the others must wait meanwhile."""
        if self.peak is None:
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            yield
        finally:
            most = torch.cuda.max_memory_allocated(self.device) - before
            self.peak = max(self.peak, self.kept + most)
            self.kept += torch.cuda.memory_allocated(self.device) - before


def settle(device: str | torch.device) -> None:
    """Have cuBLAS take the workspaces that it keeps, or they were of whoever multiplies first.

    One is of this thread, the other of the one that runs backward passes.
    """
    if torch.device(device).type == "cuda":
        x = torch.ones(8, 8, device=device, requires_grad=True)
        (x @ x).sum().backward()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state."""

    def size(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.nbytes
        if isinstance(value, dict):
            return sum(size(item) for item in value.values())
        return sum(map(size, value)) if isinstance(value, list) else 0

    return sum(size(entry) for entry in optimizer.state.values())


def peak_bytes(kind: str, name: str, wanted: list[Any], limit: float | None = None) -> int | None:
    """The peak on the CPU; None where it cannot be measured, which is said.

    Args:
        kind: `step`, beside parameters and gradients, or `train`, all that training takes.
        name: of an optimizer that can be built here.
        wanted: of a step [shapes, device, backend]; of training [model, device, backend, settings].
        limit: seconds that a step may take.
    """
    request = json.dumps([kind, name, torch.get_num_threads(), *wanted])
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | GIVE_BACK | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    within = None if limit is None else STEPS * limit
    command = [sys.executable, "-m", "bench.memory", request]
    options: Any = {"capture_output": True, "text": True, "env": environment, "timeout": within}
    try:
        done = subprocess.run(command, **options)
        if done.returncode == 0:
            return int(done.stdout.splitlines()[-1])
        why = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        why = f"took longer than {within:g} s"
    print(f"no peak memory of {name}: {why}", file=sys.stderr)
    return None


# In the process of its own. Something small comes before, so that libraries are loaded and threads
# running.


def main(kind: str, name: str, threads: int, what: str, device: str, *more: Any) -> int:
    torch.set_num_threads(threads)
    if kind == "train":
        backend, settings = more
        small = workloads.Settings(batch=1, crop=64, width=8)
        _train(name, workloads.DEMO, device, backend, small)
        return _train(name, what, device, backend, workloads.Settings(*settings))
    warm_up = shapes.Inventory("warm-up", (shapes.Entry("w", (64, 64), True),))
    _step(name, warm_up, device, *more)
    return _step(name, shapes.load(what), device, *more)


def _step(name: str, inventory: shapes.Inventory, device: str, backend: str | None) -> int:
    params = inventory.parameters(device)
    optimizer = build(name, params, FREQUENCY, backend)
    inventory.set_gradients(params, seed=1)
    before = _reset_peak()
    for call in range(STEPS):
        if call:
            optimizer.zero_grad()  # or two sets of gradients would be there
            inventory.set_gradients(params, seed=1 + call)
        with around(name):
            optimizer.step()
    return _resident("VmHWM") - before


def _train(name: str, model: str, device: str, backend: str | None, settings: Any) -> int:
    before = _reset_peak()
    workload = workloads.build(model, device, settings)
    optimizer = build(name, workload.params, FREQUENCY, backend)
    for _ in range(STEPS):
        optimizer.zero_grad()
        workload.loss().backward()
        with around(name):
            optimizer.step()
    return _resident("VmHWM") - before


def _reset_peak() -> int:
    """Bytes in use now, from which on the peak counts."""
    Path("/proc/self/clear_refs").write_text("5")  # 5: the peak is the present
    return _resident("VmRSS")


def _resident(field: str) -> int:
    """Bytes of a line of /proc/self/status, which has kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(main(*json.loads(sys.argv[1])))
