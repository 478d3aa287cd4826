"""Kernels that spill registers or load operands in small pieces, by the compiler's own report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.command import ROOT, BadInput, Row
from bench.gates.check import RESULTS, check
from bench.output import envelope
from bench.output.files import read

FIELDS = ("stack_bytes", "spill_bytes", "load_bytes")
HOW = "python -m bench kernels --aot --json FILE"


def expected(triton: str) -> dict[str, Row] | None:
    """What was recorded under this version of Triton, by configuration; None for another one."""
    for path in sorted((RESULTS / "kernels").glob("aot*.json")):
        content = json.loads(path.read_text())
        if content["versions"]["triton"] == triton:
            return by_configuration(content["results"])
    return None


def compiled(given: str | None) -> list[Row]:
    """Every kernel, compiled now, or as a file has it that this very tree has written.

    Raises:
        BadInput: the file is of another commit, or kernels do not compile here.
    """
    if given is not None:
        file = read(given)
        if file.commit != envelope.commit() or not all("spill_bytes" in row for row in file.rows):
            raise BadInput(f"--kernels {given} is not of this commit: write it by {HOW}")
        return file.rows
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "aot.json"
        # A process of its own: one cannot compile kernels that it has interpreted.
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-m", "bench", "kernels", "--aot", "--json", str(target)],
            capture_output=True, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
            raise BadInput(f"kernels cannot be compiled here: {last}")
        return read(str(target)).rows


def checks(rows: list[Row], recorded: dict[str, Row] | None) -> Iterator[Row]:
    """A row for each configuration that is not as recorded, and one for all others.

    Under a Triton without a record nothing may spill at all.
    """
    found = by_configuration(rows)
    wanted = recorded or {
        name: {**row, **dict.fromkeys(FIELDS[:2], 0)} for name, row in found.items()
    }
    good = 0
    for name in dict.fromkeys((*found, *wanted)):
        here, there = told(found.get(name)), told(wanted.get(name))
        if here == there:
            good += 1
        else:
            yield check("kernel", name, here, "==", there, False)
    yield check("kernels", "as recorded", good, "==", len(wanted), good == len(wanted))


def by_configuration(rows: list[Row]) -> dict[str, Row]:
    return {
        f"{row['kernel']} {row['options']} sm_{row['sm']}".replace("  ", " "): row for row in rows
    }


def told(row: Row | None) -> str:
    """E.g. `stack 0 spill 0 load 16`."""
    if row is None:
        return "not there"
    return " ".join(f"{field.removesuffix('_bytes')} {row[field]}" for field in FIELDS)
