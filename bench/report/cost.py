"""Cost against size: results of `python -m bench scaling` as tables and one drawing."""

from __future__ import annotations

from pathlib import Path

from bench.command import Row
from bench.report.figures import COLORS, logarithmic, save, subplots
from bench.report.markdown import table

METRICS = {
    "first_ms": "first call",
    "refresh_ms": "with a refresh",
    "plain_ms": "plain",
    "mean_ms": "mean of a period",
}


def parts(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The points of a result, and the fits."""
    return [row for row in rows if "x" in row], [row for row in rows if "exponent" in row]


def draw(points: list[Row], fits: list[Row], path: Path) -> None:
    """A panel per sweep, both axes logarithmic; a fitted exponent stands with its line."""
    names = list(dict.fromkeys(point["sweep"] for point in points))
    figure, panels = subplots(len(names))
    for name, panel in zip(names, panels, strict=True):
        of_sweep = sorted((p for p in points if p["sweep"] == name), key=lambda p: p["x"])
        for color, (metric, label) in zip(COLORS, METRICS.items(), strict=False):
            known = [(p["x"], p[metric]) for p in of_sweep if p[metric] is not None]
            if not known:
                continue
            fit = _fit(fits, name, metric)
            if fit is not None:
                ends = (fit["start"], fit["end"])
                heights = [fit["factor"] * x ** fit["exponent"] for x in ends]
                panel.plot(ends, heights, color=color, linewidth=4, alpha=0.25)
                label = f"{label}, x^{fit['exponent']:.2f}"
            panel.plot(
                *zip(*known, strict=True), color=color, marker="o", markersize=4, label=label
            )
        panel.set(xlabel=of_sweep[0]["axis"], ylabel="ms")
        logarithmic(panel.xaxis, panel.yaxis)
        panel.legend(fontsize="small")
    save(figure, path)


def markdown(points: list[Row], fits: list[Row]) -> str:
    """A table per sweep, sizes down, kinds of call across, exponents at the foot."""
    parts = []
    for name in dict.fromkeys(point["sweep"] for point in points):
        of_sweep = [point for point in points if point["sweep"] == name]
        body = [[p["x"], *(p[metric] for metric in METRICS)] for p in of_sweep]
        found = [_fit(fits, name, metric) for metric in METRICS]
        body.append(["exponent", *(None if fit is None else _told(fit) for fit in found)])
        header = [of_sweep[0]["axis"], *(f"{label}, ms" for label in METRICS.values())]
        parts.append(table(header, body))
    return "\n".join(parts)


def _told(fit: Row) -> str:
    if fit["stderr"] is None:
        return f"{fit['exponent']:.2f}"
    return f"{fit['exponent']:.2f} ± {fit['stderr']:.2f}"


def _fit(fits: list[Row], sweep: str, metric: str) -> Row | None:
    found = (fit for fit in fits if (fit["sweep"], fit["metric"]) == (sweep, metric))
    return next(found, None)
