"""Tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as they must be, numbers to the right and to three digits, `-` for None."""
    cells = [[_cell(value) for value in row] for row in rows]
    columns = zip(header, *cells, strict=True)
    widths = [max(map(len, column)) for column in columns]
    numbers = [
        any(isinstance(row[place], int | float) for row in rows) for place in range(len(header))
    ]
    lines = [list(header), ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
