"""R-D curves over lambda: how far apart two are, and drawings of them and of decoded images.

Beside them when other runs were as good as Adam at its end, and what they needed for it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from bench.files import writing
from bench.lic.evaluation.runs import Group, Run
from bench.lic.style import frame, lines, plain_text

# Bjøntegaard's own examples have four points, and so has every published table since. The curve
# through fewer is mostly the interpolation's.
FEWEST = 4
SHARED = 0.5  # part of the smaller PSNR range; the mean over less is of a corner of the curves


class RDPoint(NamedTuple):
    lam: float
    bpp: float
    psnr: float  # dB
    runs: int  # seeds, over which bpp and PSNR are means


class Difference(NamedTuple):
    """BD-rate in per cent, negative where fewer bits are needed; or why there is none."""

    percent: float | None
    reason: str = ""


def points(measured: list[tuple[float, float, float]]) -> list[RDPoint]:
    """Points in order of lambda from (lambda, bpp, PSNR) of runs; equal lambdas are averaged."""
    lambdas = sorted({lam for lam, _, _ in measured})
    found = []
    for lam in lambdas:
        of_it = [(bpp, psnr) for one, bpp, psnr in measured if one == lam]
        bpp, psnr = (fmean(column) for column in zip(*of_it, strict=True))
        found.append(RDPoint(lam, bpp, psnr, len(of_it)))
    return found


def bd_rate(anchor: list[RDPoint], test: list[RDPoint]) -> Difference:
    """Mean difference in rate at equal PSNR, of `test` relative to `anchor`.

    Over the PSNRs that both curves have, by piecewise cubic interpolation of log rate (pchip, as
    in the common test conditions of JVET); the `bjontegaard` package computes it.

    Raises:
        ImportError: the package is missing.
    """
    lambdas = sorted({p.lam for p in anchor} & {p.lam for p in test})
    if len(lambdas) < FEWEST:
        return Difference(
            None, f"values of lambda in common: {len(lambdas)}; BD-rate needs at least {FEWEST}"
        )
    both = [[p for p in curve if p.lam in lambdas] for curve in (anchor, test)]
    for name, curve in zip(("the anchor's", "this"), both, strict=True):
        if any(a.psnr >= b.psnr or a.bpp >= b.bpp for a, b in pairwise(curve)):
            return Difference(
                None, f"{name} curve does not rise with lambda: train longer, or more seeds"
            )
    overlap = min(c[-1].psnr for c in both) - max(c[0].psnr for c in both)
    smaller = min(c[-1].psnr - c[0].psnr for c in both)
    if overlap < SHARED * smaller:
        return Difference(
            None,
            f"the curves share {max(overlap, 0):.2f} dB of the {smaller:.2f} dB of the shorter "
            f"one; BD-rate needs {SHARED:.0%}",
        )
    percent = _interpolated(*both)
    if not math.isfinite(percent):
        return Difference(None, "the curves cannot be interpolated: see their points")
    return Difference(percent)


def against(anchors: Sequence[str], curves: Mapping[str, list[RDPoint]]) -> list[dict[str, Any]]:
    """A row for each curve and each anchor, of which there may be several, or none."""
    rows: list[dict[str, Any]] = []
    for variant, curve in curves.items():
        if variant in anchors:  # of two anchors the later one against the earlier
            chosen = anchors[: anchors.index(variant)]
        else:
            chosen = anchors
            if not anchors:
                absent = {"percent": None, "reason": "no run of adam in this group"}
                rows.append({"variant": variant, "anchor": None, **absent})
        for anchor in chosen:
            try:
                percent, reason = bd_rate(curves[anchor], curve)
            except ImportError:
                percent, reason = None, "needs the package bjontegaard: pip install it"
            found: dict[str, Any] = {"percent": percent, "reason": reason or None}
            rows.append({"variant": variant, "anchor": anchor, **found})
    return rows


def _interpolated(anchor: list[RDPoint], test: list[RDPoint]) -> float:
    import bjontegaard

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an overlap that is not the whole
        columns = [[p[key] for p in curve] for curve in (anchor, test) for key in (1, 2)]
        percent = float(
            bjontegaard.bd_rate(*columns, method="pchip", require_matching_points=False)
        )
    return percent


Point = dict[str, Any]  # of a curve: step, seconds, rd_loss, bpp, psnr


def first_at(curve: list[Point], goal: float) -> Point | None:
    """The first evaluation with an R-D loss of at most `goal`; None where there is none."""
    found = (p for p in curve if p["rd_loss"] is not None and p["rd_loss"] <= goal)
    return next(found, None)


def to_adams_loss(group: Group, adam: str = "adam") -> list[dict[str, Any]]:
    """A row for each run that has an Adam to be compared with: of the same lambda and seed.

    Adam is the optimizer of the name `adam`. Of several (other rates, options, steps) it is the
    one with the lowest loss.

    Adam's own row tells when it first was as good as at its end; of a loss that swings, earlier.

    steps and seconds are those of the first evaluation that was no worse than Adam's last one,
    None if there was none; steps_ratio and seconds_ratio are to Adam's whole run. Seconds are of
    training, without evaluations, and None where the two did not run on equal terms; why is then
    in `clock`.
    """
    rows = []
    for label, runs in group.variants().items():
        for run in runs:
            goal = _adam_of(run, group, adam)
            if goal is not None:
                rows.append({"group": group.name, "variant": label, **_row(run, goal)})
    return rows


def _adam_of(run: Run, group: Group, adam: str) -> Run | None:
    adams = [
        other
        for other in group.runs
        if other.optimizer == adam
        and other.lam == run.lam
        and other.config["seed"] == run.config["seed"]
        and not other.diverged
    ]
    return min(adams, key=lambda other: float(other.summary["rd_loss"]), default=None)


def _row(run: Run, adam: Run) -> dict[str, Any]:
    mine, theirs = run.summary, adam.summary
    point = None if run.diverged else first_at(mine["curve"], theirs["rd_loss"])
    apart = [
        f"{key} {run.clock[key]} and {adam.clock.get(key)}"
        for key in run.clock
        if run.clock[key] != adam.clock.get(key)
    ]
    steps, seconds = (point["step"], point["seconds"]) if point else (None, None)
    if apart:
        seconds = None
    same_memory = mine.get("peak_memory_of") == theirs.get("peak_memory_of")
    memory = (mine.get("peak_memory"), theirs.get("peak_memory")) if same_memory else (None, None)
    return {
        "run": run.name,
        "adam": adam.name,
        "lam": run.lam,
        "seed": run.config["seed"],
        "rd_loss": mine["rd_loss"],
        "adam_rd_loss": theirs["rd_loss"],
        "steps": steps,
        "steps_ratio": _ratio(steps, theirs["steps"]),
        "seconds": seconds,
        "seconds_ratio": _ratio(seconds, theirs["seconds"]),
        "clock": "; ".join(apart) or None,
        "memory_ratio": _ratio(*memory),
        "memory_of": mine.get("peak_memory_of"),
    }


def _ratio(mine: float | None, adams: float | None) -> float | None:
    return mine / adams if mine is not None and adams else None


# (group, data set) -> variant -> its curve
Curves = dict[tuple[str, str], dict[str, list[RDPoint]]]

DETAIL = 128  # pixels, side of the part from the middle that is shown enlarged
PANEL = 3.6  # inches
DOT: dict[str, Any] = {"marker": "o", "markersize": 4}
RING: dict[str, Any] = {"marker": "o", "markersize": 9, "markerfacecolor": "none"}


class Shown(NamedTuple):
    """A decoded image and what is said about it."""

    title: str
    image: Tensor  # float32 [3, H, W] in [0, 1]


@plain_text()
def rate_distortion(
    curves: Curves, path: Path, optimizers: Mapping[str, str] | None = None
) -> None:
    """A panel for every group on every data set.

    Args:
        optimizers: of each variant; None where its label begins with it.
    """
    groups, sets = (list(dict.fromkeys(key[place] for key in curves)) for place in (0, 1))
    figure = Figure(figsize=(1 + 4 * len(sets), 0.6 + PANEL * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), len(sets), squeeze=False)
    for row, group in zip(panels, groups, strict=True):
        for axes, data in zip(row, sets, strict=True):
            found = curves.get((group, data), {})
            drawn = lines(
                {label: (optimizers or {}).get(label, label.partition(" (")[0]) for label in found}
            )
            for variant, curve in found.items():
                look = drawn[variant]
                axes.plot(
                    [point.bpp for point in curve],
                    [point.psnr for point in curve],
                    label=variant,
                    **(RING if "linestyle" in look else DOT),  # a dot in a ring shows both
                    **look,
                )
            axes.set(title=f"{group}\n{data}", xlabel="bits per pixel", ylabel="PSNR (dB)")
            axes.title.set_fontsize(9)
            frame(axes)
            if axes.lines:
                axes.legend(frameon=False, fontsize=8, loc="best", handlelength=4)
    with writing(path):
        figure.savefig(path, dpi=120)


@plain_text()
def reconstructions(shown: list[Shown], path: Path) -> None:
    """The images side by side, and a part from the middle of each, enlarged, below it."""
    height, width = shown[0].image.shape[1:]
    size = (PANEL * len(shown), PANEL * height / width + PANEL + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    ratios = [height / width, 1]
    panels = figure.subplots(2, len(shown), squeeze=False, height_ratios=ratios)
    side = min(DETAIL, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    for (whole, detail), (title, image) in zip(panels.T, shown, strict=True):
        pixels = image.permute(1, 2, 0).numpy()  # [H, W, 3]
        whole.imshow(pixels)
        whole.set_title(title, fontsize=9)
        detail.imshow(pixels[top : top + side, left : left + side], interpolation="nearest")
        for axes in (whole, detail):
            axes.set_axis_off()
    with writing(path):
        figure.savefig(path, dpi=100)
