"""Memory that an optimizer needs on top of parameters and gradients, measured by the system.

Each optimizer has a process of its own that makes three calls under a precondition frequency of 2:
the first, a plain and a refreshing one. `peak_bytes` is the highest resident memory of that process
during these calls minus what was resident before them, with parameters and gradients in place: the
state and whatever else was needed at the worst moment, workspaces of LAPACK and of extensions
included, whoever allocates. Calls on one small matrix come before, so that libraries are loaded
and threads running. The C library is told to give back at once what is freed (glibc's thresholds),
or memory it keeps would count. The system counts in pages and lazily, so that some 100 kB mean
nothing. On CUDA it is the peak of torch's allocator instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from bench import shapes
from bench.peers.optimizers import build

ROOT = Path(__file__).parent.parent.parent
CALLS, FREQUENCY = 3, 2
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_bytes(name: str, inventory: str, device: str, backend: str | None) -> int | None:
    """Additional bytes at the peak of a step; None where it cannot be measured, which is said.

    Args:
        name: of an optimizer that can be built here.
        inventory: name or path.
    """
    wanted = json.dumps([name, inventory, device, backend, torch.get_num_threads()])
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers.memory", wanted],
        capture_output=True,
        text=True,
        env=os.environ | GIVE_BACK | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    if done.returncode == 0:
        return int(done.stdout.splitlines()[-1])
    last = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
    print(f"no peak memory of {name}: {last}", file=sys.stderr)
    return None


def _measure(name: str, inventory: str, device: str, backend: str | None) -> int:
    """In the process of its own."""
    warm_up = shapes.Inventory("warm-up", (shapes.Entry("w", (64, 64), True),))
    _calls(name, warm_up, device, backend)
    return _calls(name, shapes.load(inventory), device, backend)


def _calls(name: str, inventory: shapes.Inventory, device: str, backend: str | None) -> int:
    params = inventory.parameters(device)
    optimizer = build(name, params, FREQUENCY, backend)
    inventory.set_gradients(params, seed=1)
    before = _reset_peak(device)
    for call in range(CALLS):
        if call:
            optimizer.zero_grad()  # or two sets of gradients would be there
            inventory.set_gradients(params, seed=1 + call)
        optimizer.step()
    return _peak(device) - before


def _reset_peak(device: str) -> int:
    """Bytes in use now, from which on the peak counts."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # 5: the peak is the present
    return _status("VmRSS")


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status, which has kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    *wanted, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    print(_measure(*wanted))
