"""One thing that must be so, and what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.command import ROOT, BadInput, Row

RESULTS = ROOT / "bench" / "results"


def check(name: str, of: str, found: Any, rule: str, expected: Any, ok: bool) -> Row:
    """A row: `found` `rule` `expected`, e.g. 11 == 11."""
    return {
        "check": name, "of": of, "found": found, "rule": rule, "expected": expected, "ok": ok,
    }  # fmt: skip


def recorded(path: Path, how: str) -> dict[str, Any]:
    """A result file of this clone.

    Args:
        how: the command that writes it.

    Raises:
        BadInput: it is not there.
    """
    if not path.is_file():
        raise BadInput(f"{path} is not there, which has what is expected: run {how}")
    content: dict[str, Any] = json.loads(path.read_text())
    return content
