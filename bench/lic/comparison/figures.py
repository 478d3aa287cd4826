"""Held-out loss of every variant against steps and seconds, with the spread over seeds."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.files import writing
from bench.lic.comparison.plan import variants
from bench.lic.comparison.runner import Comparison
from bench.lic.comparison.statistics import band, of_variant
from bench.lic.evaluation.runs import Group, Run, group
from bench.lic.style import lines, loss_frame, plain_text


@plain_text()
def losses(comparison: Comparison, path: Path) -> None:
    """A row for every model and lambda: against steps, and against seconds of training."""
    parts = [
        (members, lam)
        for members in group(comparison.runs)
        for lam in sorted({run.lam for run in members.runs})
    ]
    figure = Figure(figsize=(11, 0.3 + 3.8 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), 2, squeeze=False, sharey="row")
    for (by_steps, by_seconds), (members, lam) in zip(panels, parts, strict=True):
        chosen = variants(comparison.preset)
        drawn = lines({variant.name: variant.optimizer for variant in chosen})
        for variant in chosen:
            look = drawn[variant.name]
            runs = of_variant(members, lam, variant)
            _draw(by_steps, runs, "step", variant.name, look)
            _draw(by_seconds, runs, "seconds", variant.name, look)
        _dress(by_steps, members, lam, "training steps")
        _dress(by_seconds, members, lam, "seconds of training")
        by_steps.set_ylabel("R-D loss, held out")
        if by_steps.lines:
            by_steps.legend(frameon=False, fontsize=8, loc="best", handlelength=4)
    with writing(path):
        figure.savefig(path, dpi=110)


def _draw(axes: Axes, runs: list[Run], key: str, label: str, look: dict[str, Any]) -> None:
    """Mean over seeds, and from the lowest to the highest of them; seconds are means too."""
    values, places = (band(runs, what) for what in ("rd_loss", key))
    if not values:
        return
    x = [fmean(column) for column in places[: len(values)]]
    axes.plot(x, [fmean(column) for column in values], label=label, **look)
    low, high = ([pick(column) for column in values] for pick in (min, max))
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _dress(axes: Axes, members: Group, lam: float, xlabel: str) -> None:
    loss_frame(axes, xlabel)
    axes.set_title(f"{members.name}, lambda {lam:g}")
