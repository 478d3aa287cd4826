"""Tables for Markdown, without a package: a GPU machine for `bench device` need not have one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table, numbers to three digits and to the right, `-` for None."""
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    numbers = [any(isinstance(value, int | float) for value in column) for column in columns]
    lines = [header, ["---:" if number else "---" for number in numbers]]
    lines += [[_cell(value) for value in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|")
