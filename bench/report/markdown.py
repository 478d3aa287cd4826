"""Tables for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table, numbers to three digits, `-` for None."""
    cells = [[_cell(value) for value in row] for row in rows]
    return tabulate(cells, headers=header, tablefmt="github", disable_numparse=True) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
