"""The highest memory of a piece of work on the CPU, in a process that does nothing else.

It is resident memory as the system counts it, whoever allocates. The C library is told to give back
at once what is freed (glibc's thresholds), or memory it keeps would count. The system counts in
pages and lazily, so that some 100 kB mean nothing. Of a GPU, torch's allocator counts along:
`bench.measuring.memory`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.command import ROOT

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def in_a_process(module: str, name: str, wanted: list[Any], limit: float | None) -> int | None:
    """Bytes that `python -m module` prints last; None where there are none, which is said.

    Args:
        name: whose memory it is, for people.
        wanted: what the module gets of `arguments`.
        limit: seconds it may take.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", module, json.dumps([*wanted, torch.get_num_threads()])]
    environment = os.environ | GIVE_BACK | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=limit
        )
    except subprocess.TimeoutExpired:
        print(f"no peak memory of {name}: took longer than {limit:g} s", file=sys.stderr)
        return None
    if done.returncode == 0:
        return int(done.stdout.splitlines()[-1])
    last = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
    print(f"no peak memory of {name}: {last}", file=sys.stderr)
    return None


def arguments() -> list[Any]:
    """In the process: what was wanted, with as many threads as the one that asked has."""
    *wanted, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    return wanted


def reset_peak() -> int:
    """Bytes in use now, from which on the peak counts."""
    Path("/proc/self/clear_refs").write_text("5")  # 5: the peak is the present
    return _status("VmRSS")


def peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status, which has kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
