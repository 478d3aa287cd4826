"""Rate-distortion curves over lambda, and how far apart two of them are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

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
