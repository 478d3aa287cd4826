"""Scores and outliers along training, and by layer at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bench.files import writing
from bench.lic.comparison.plan import variants
from bench.lic.comparison.runner import Comparison
from bench.lic.comparison.statistics import of_variant
from bench.lic.evaluation.runs import Run, group
from bench.lic.style import frame, lines, logarithmic, plain_text

SHOWN = {
    "intra": "intra-step score",
    "inter": "inter-step score",
    "kurtosis": "kurtosis, median of layers",
}
BINS = 60

# (model, lambda) -> variant -> the latent y of a held-out image
Latents = Mapping[tuple[str, float], Mapping[str, Tensor]]


@plain_text()
def along(comparison: Comparison, path: Path) -> None:
    """A row for each model and lambda, a column for each of SHOWN, against steps.

    Means over seeds; at the compared frequency from the lowest to the highest too.
    """
    parts = [
        (members, lam)
        for members in group(comparison.runs)
        for lam in sorted({run.lam for run in members.runs})
    ]
    figure = Figure(figsize=(14, 0.3 + 3.4 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), len(SHOWN), squeeze=False)
    chosen = variants(comparison.preset)
    drawn = lines({variant.name: variant.optimizer for variant in chosen})
    for row, (members, lam) in zip(panels, parts, strict=True):
        for axes, (key, what) in zip(row, SHOWN.items(), strict=True):
            for variant in chosen:
                runs = of_variant(members, lam, variant)
                filled = variant.frequency == comparison.preset.frequency
                _draw(axes, runs, key, filled, label=variant.name, **drawn[variant.name])
            axes.set(xlabel="training steps", ylabel=what, title=f"{members.name}, lambda {lam:g}")
            axes.title.set_fontsize(9)
            frame(axes)
        if row[0].lines:
            row[0].legend(frameon=False, fontsize=8, handlelength=4)
    with writing(path):
        figure.savefig(path, dpi=110)


def _draw(axes: Axes, runs: list[Run], key: str, filled: bool, **look: Any) -> None:
    """Mean over seeds, and from the lowest to the highest; where all seeds have a number."""
    seen = [run.summary.get("watched", []) for run in runs]
    points = [
        (column[0]["step"], [one[key] for one in column])
        for column in zip(*seen, strict=False)
        if all(one[key] is not None for one in column)
    ]
    if not points:
        return
    steps = [step for step, _ in points]
    axes.plot(steps, [fmean(values) for _, values in points], **look)
    if not filled:
        return
    low, high = ([pick(values) for _, values in points] for pick in (min, max))
    axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)


@plain_text()
def layers(comparison: Comparison, latents: Latents, path: Path) -> None:
    """Kurtosis of each layer at the end, in the order of the model; histograms of y.

    Of the first seed of Adam and of soap_fast at the compared frequency.
    """
    figure = Figure(figsize=(14, 0.3 + 3.4 * len(latents)), layout="constrained")
    panels = figure.subplots(len(latents), 2, squeeze=False)
    chosen = [v for v in variants(comparison.preset) if v.frequency == comparison.preset.frequency]
    drawn = lines({variant.name: variant.optimizer for variant in chosen})
    by_name = {members.name: members for members in group(comparison.runs)}
    for (left, right), ((name, lam), values) in zip(panels, latents.items(), strict=True):
        for variant in chosen:
            runs = of_variant(by_name[name], lam, variant)
            looks = runs[0].summary.get("watched") if runs else None
            if looks:
                found = [seen[0] for seen in looks[-1]["layers"].values()]
                found = [value for value in found if value is not None]
                color = drawn[variant.name]["color"]
                left.plot(found, ".", color=color, label=variant.name)
        scaled = {v: (y / _rms(y)).flatten().numpy() for v, y in values.items()}
        span = max(abs(y).max() for y in scaled.values())
        for variant_name, y in scaled.items():
            look = {"range": (-span, span), "histtype": "step", **drawn[variant_name]}
            right.hist(y, BINS, label=variant_name, **look)
        left.set(xlabel="layer", ylabel="kurtosis", title=f"{name}, lambda {lam:g}")
        right.set(xlabel="y over its rms", ylabel="values")
        for axes in (left, right):
            axes.title.set_fontsize(9)
            logarithmic(axes)
            frame(axes)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=8)
    with writing(path):
        figure.savefig(path, dpi=110)


def _rms(y: Tensor) -> Tensor:
    """Above 0, also of a latent that training has left at 0."""
    return y.square().mean().sqrt().clamp(min=torch.finfo(y.dtype).tiny)
