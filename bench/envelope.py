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

from bench.files import BadInput, replacing, told, write_text

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


def version(package: str) -> str | None:
    """None where it is not installed, or of no distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Version of Python and of every package that can move a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


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
    about = {"machine": machine(), "versions": versions(), "commit": commit()}
    content = {"command": command, **about, "results": results}
    text = json.dumps(content, indent=1, allow_nan=False)
    if target == "-":
        sys.stdout.write(text + "\n")
        return
    path = Path(target).resolve()  # a link stays one
    if path.exists() and not path.is_file():  # a device or a pipe, which cannot be replaced
        write_text(path, text + "\n")
        return
    with replacing(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text + "\n")


@dataclass(frozen=True)
class ResultFile:
    """What `python -m bench COMMAND --json` has written."""

    path: str
    command: str | None
    machine: Row
    versions: Row
    commit: str | None
    rows: list[Row]

    @property
    def origin(self) -> str:
        """Where the numbers were taken, and of what, a line each."""
        machine, peers = self.machine, {row.get("name") for row in self.rows}
        gpu = [f"{machine['gpu']}, driver {machine.get('driver')}"] if machine.get("gpu") else []
        host = f"{machine.get('processor')}, {machine.get('threads')} threads"
        packages = ["torch", *({"pytorch_optimizer"} & peers)]
        versions = [f"{name} {v}" for name in packages if (v := self.versions.get(name))]
        commit = [f"commit {self.commit[:10]}"] if self.commit else []
        return f"{', '.join([*gpu, host])},\n{', '.join([*versions, *commit])}"


def read(path: str) -> ResultFile:
    """BadInput for what no `--json` has written."""
    try:
        content = json.loads(Path(path).read_text())
        rows = [dict(row) for row in content["results"]]
        about = dict(content["machine"]), dict(content.get("versions", {}))
        return ResultFile(path, content.get("command"), *about, content.get("commit"), rows)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; name a file that --json has written") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is nothing that --json has written ({told(error)})") from None


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
