"""The one form of every result file: {machine, versions, commit, results: [one per thing]}."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.output.writing import replacing, writing

PACKAGES = ("soap_fast", "torch", "triton", "pytorch_optimizer", "heavyball", "numpy")


def machine() -> dict[str, Any]:
    """What the numbers were taken on: processor, cores, threads and GPU, never a host name."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": gpu,
        "driver": _driver() if gpu else None,
    }


def versions() -> dict[str, str | None]:
    """Version of Python and of every package that can move a result; None where it is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """Commit of the clone, with `+changes` when files differ from it; None outside a clone."""
    head = _output("git", "rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+changes" if _output("git", "status", "--porcelain", "-uno") else "")


def envelope(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "results": results,
    }


def write(target: str, results: list[dict[str, Any]]) -> None:
    """Write the results to the file `target`, or to standard output when it is `-`.

    The file is whole, or as it was before, whenever the process dies.

    Raises:
        CannotWrite: the disk is full, for instance.
    """
    text = json.dumps(envelope(results), indent=1, allow_nan=False)
    if target == "-":
        sys.stdout.write(text + "\n")
        return
    path = Path(target).resolve()  # a link stays one
    if path.exists() and not path.is_file():  # a device or a pipe, which cannot be replaced
        with writing(path):
            path.write_text(text + "\n")
        return
    with replacing(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text + "\n")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    answer = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0] if answer else None


def _output(*command: str) -> str | None:
    """Standard output of a command run in this clone, stripped; None when it fails."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
