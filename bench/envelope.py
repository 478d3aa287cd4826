"""The one form of every result file: {command, machine, versions, commit, results: [rows]}."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.files import BadInput, replacing, writing

Row = dict[str, Any]
PACKAGES = ("soap_fast", "torch", "triton", "pytorch_optimizer", "heavyball", "numpy")


def machine() -> Row:
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


def write(target: str, results: list[Row], command: str | None = None) -> None:
    """Write the results of a command to the file `target`, or to standard output when it is `-`.

    The file is whole, or as it was before, whenever the process dies.

    Raises:
        CannotWrite: the disk is full, for instance.
    """
    content = {
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "results": results,
    }
    text = json.dumps(content, indent=1, allow_nan=False)
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


@dataclass(frozen=True)
class ResultFile:
    """A result file, ours or pytest-benchmark's, whose command is `pytest bench/`."""

    path: str
    command: str | None
    machine: Row
    versions: Row
    commit: str | None
    rows: list[Row]


def read(path: str) -> ResultFile:
    """A result of `python -m bench .. --json` or of `pytest bench/ --benchmark-json`.

    Raises:
        BadInput: it cannot be read, or is neither.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; name a file that --json has written") from None
    except ValueError as error:
        text = f"{path} is not JSON ({error}): name a file that --json has written"
        raise BadInput(text) from None
    fields = set(content) if isinstance(content, dict) else set()
    try:
        if {"machine_info", "benchmarks"} <= fields:
            return _of_the_plugin(path, content)
        if {"machine", "results"} <= fields:
            rows = [dict(row) for row in content["results"]]
            about = dict(content["machine"]), dict(content.get("versions", {}))
            return ResultFile(path, content.get("command"), *about, content.get("commit"), rows)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"{path} is damaged ({type(error).__name__}: {error})") from None
    raise BadInput(
        f"{path} is no result file: it needs {{machine, results}}, as --json writes, or is what "
        "pytest bench/ --benchmark-json writes"
    )


def _of_the_plugin(path: str, content: Row) -> ResultFile:
    about = dict(content["machine_info"])
    versions = about.pop("versions", {})
    rows = [
        {**(one["extra_info"] or {"name": one["fullname"]}), "seconds": one["stats"]["median"]}
        for one in content["benchmarks"]
    ]
    commit = content.get("commit_info", {}).get("id")
    return ResultFile(path, "pytest bench/", about, versions, commit, rows)


def differences(one: Row, other: Row) -> str | None:
    """What tells two machines apart, e.g. `cores 4 and 2`; None where nothing does."""
    fields = dict.fromkeys((*one, *other))
    differ = [f"{k} {one.get(k)} and {other.get(k)}" for k in fields if one.get(k) != other.get(k)]
    return "; ".join(differ) or None


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
