"""What steps cost on GPUs: the folders that `python -m bench device` has left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.output.files import read
from bench.report import prices
from bench.report.page import PAGE

NOTHING = "Not measured on a GPU yet.\n"


def markdown(ledgers: Sequence[Path], root: Path) -> str:
    """A section per folder that holds a `parts.json` of a GPU: its page, and what a step costs.

    Args:
        root: of the clone; links are relative to it.
    """
    return "\n".join(found for path in ledgers if (found := _section(path, root))) or NOTHING


def _section(ledger: Path, root: Path) -> str | None:
    machine = json.loads(ledger.read_text()).get("machine") or {}
    if not machine.get("gpu"):
        return None  # a rehearsal
    folder = ledger.parent
    page = (folder / PAGE).relative_to(root).as_posix()
    paths = sorted((*folder.glob("step_*.json"), *folder.glob("peers_*.json")))
    steps = [read(str(path)) for path in paths]
    told = [file for file in steps if any("mean_ms" in row for row in file.rows)]
    table = f"\n{prices.markdown(told)}" if told else ""
    return f"{machine['gpu']}, driver {machine.get('driver')}: [{page}]({page})\n{table}"
