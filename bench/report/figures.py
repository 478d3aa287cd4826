"""What all drawings share: no display, one size of panel, one set of colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = ("#1f5a8a", "#c8543a", "#3a8a5c", "#8a5ca8", "#b08a2a", "#555555", "#2aa0b0")
PANEL = (4.6, 3.6)  # inches
ACROSS = 3


def subplots(count: int) -> tuple[Any, list[Any]]:
    """A figure with so many panels, at most three in a row."""
    from matplotlib.figure import Figure

    across = min(count, ACROSS)
    down = -(-count // across)
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels[:count]:
        panel.grid(alpha=0.3)
    for panel in panels[count:]:
        panel.remove()
    return figure, panels[:count]


def logarithmic(*axes: Any) -> None:
    """Axes (`panel.xaxis`) with ticks at 1, 2 and 5, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in axes:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        low, high = axis.get_view_interval()
        wide = high > 1e3 * low
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        # The default writes powers of ten as mathematics, whose fonts are not everywhere.
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: Path) -> None:
    """As PNG, whatever the name ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=90)
