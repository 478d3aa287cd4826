"""Memory that optimizers and training need: of a GPU by torch's allocator, else by the system.

On a GPU several workloads of a process take turns: what is allocated within a turn is of whoever
has it. On the CPU each has a process of its own, which takes the first, a plain and a refreshing
step. There the peak is resident memory as the system counts it, in pages and lazily, minus what was
resident before; the C library is told to give back at once what is freed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from bench import shapes, workloads
from bench.command import ROOT
from bench.optimizers import build

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
    """Have cuBLAS take the workspaces that it keeps for this thread and for that of backward."""
    if torch.device(device).type == "cuda":
        x = torch.ones(8, 8, device=device, requires_grad=True)
        (x @ x).sum().backward()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state."""
    held = tree_leaves(list(optimizer.state.values()))
    return sum(value.nbytes for value in held if isinstance(value, torch.Tensor))


def peak_bytes(kind: str, name: str, wanted: list[Any], limit: float | None = None) -> int | None:
    """The peak on the CPU; None where it cannot be measured, which is said.

    Args:
        kind: `step`, beside parameters and gradients, or `train`, all that training takes.
        wanted: of a step [shapes, device, backend]; of training [model, device, backend, settings].
        limit: seconds that a step may take.
    """
    request = json.dumps([kind, name, torch.get_num_threads(), *wanted])
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | GIVE_BACK | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    within = None if limit is None else STEPS * limit
    command = [sys.executable, "-m", "bench.memory", request]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=within
        )
        if done.returncode == 0:
            return int(done.stdout.splitlines()[-1])
        why = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        why = f"took longer than {within:g} s"
    print(f"no peak memory of {name}: {why}", file=sys.stderr)
    return None


# In the process of its own -----------------------------------------------------------------------


def main(kind: str, name: str, threads: int, what: str, device: str, *more: Any) -> int:
    """Something small comes first, so that libraries are loaded and threads running."""
    torch.set_num_threads(threads)
    if kind == "train":
        backend, settings = more
        _trained(name, backend, workloads.DEMO, device, workloads.Settings(1, 64, 8))
        return _trained(name, backend, what, device, workloads.Settings(*settings))
    small = shapes.Inventory("warm-up", (shapes.Entry("w", (64, 64), True),))
    _stepped(name, *more, small, device)
    return _stepped(name, *more, shapes.load(what), device)


def _stepped(name: str, backend: str | None, inventory: shapes.Inventory, device: str) -> int:
    params = inventory.parameters(device)
    optimizer = build(name, params, FREQUENCY, backend)
    inventory.set_gradients(params, seed=0)
    return _peak(optimizer, lambda: inventory.set_gradients(params, seed=1), _reset_peak())


def _trained(name: str, backend: str | None, *of: Any) -> int:
    before = _reset_peak()
    workload = workloads.build(*of)
    optimizer = build(name, workload.params, FREQUENCY, backend)
    return _peak(optimizer, lambda: workload.loss().backward(), before)


def _peak(optimizer: torch.optim.Optimizer, backward: Callable[[], object], before: int) -> int:
    for _ in range(STEPS):
        optimizer.zero_grad()  # or two sets of gradients would be there
        backward()
        optimizer.step()
    return _resident("VmHWM") - before


def _reset_peak() -> int:
    """Bytes in use now, from which on the peak counts."""
    Path("/proc/self/clear_refs").write_text("5")  # 5: the peak is the present
    return _resident("VmRSS")


def _resident(field: str) -> int:
    """Bytes of a line of /proc/self/status, which has kB."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


if __name__ == "__main__":
    print(main(*json.loads(sys.argv[1])))
