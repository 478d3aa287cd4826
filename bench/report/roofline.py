"""Roofline: what kernels and ops reach, under what the machine can do at most.

Points come from `python -m bench kernels` and `pytest bench/`, roofs from `python -m bench roof` on
the same machine, or from what `pytest bench/` has measured along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.command import Row
from bench.output.files import ResultFile
from bench.report.figures import COLORS, logarithmic, save, subplots

UNITS = {"GB/s": 1e9, "GFLOP/s": 1e9}
MARKERS = "osv^DPX*"
Place = tuple[str, str]  # processor or GPU, kind of device


@dataclass(frozen=True)
class Point:
    """One op, timed.

    Attributes:
        group: points of one colour. `by`: of one marker, who computed.
    """

    group: str
    by: str
    flops: float
    bytes: float
    seconds: float


@dataclass
class Chart:
    """What belongs to one device: points, and roofs in flops and bytes per second."""

    points: list[Point] = field(default_factory=list)
    products: dict[str, float] = field(default_factory=dict)
    copy: float | None = None


def charts(files: Iterable[ResultFile]) -> dict[Place, Chart]:
    """By device, those that have points."""
    found: dict[Place, Chart] = {}
    for file in files:
        for row in file.rows:
            chart = found.setdefault(_place(file, row), Chart())
            if "roof" in row:
                _add_roof(chart, row["roof"], row["value"], row["unit"])
            elif (point := _point(row)) is not None:
                chart.points.append(point)
                for name, value in _roofs_along(row):
                    _add_roof(chart, name, value, UNITS_ALONG[name])
    return {place: chart for place, chart in found.items() if chart.points}


def _place(file: ResultFile, row: Row) -> Place:
    kind = str(row.get("device") or "cpu").partition(":")[0]
    return str(file.machine.get("gpu" if kind == "cuda" else "processor")), kind


def _point(row: Row) -> Point | None:
    """None where the flops or the time are not known, or there are none."""
    seconds = 1e-6 * row["us"] if "us" in row else row.get("seconds")
    if not (seconds and row.get("flops") and row.get("bytes")):
        return None
    by = row.get("backend") or row.get("by") or ""
    return Point(str(row.get("op") or row.get("name")), by, row["flops"], row["bytes"], seconds)


UNITS_ALONG = {"gemm_float32": "flop/s", "copy": "B/s"}


def _roofs_along(row: Row) -> Iterator[tuple[str, float]]:
    if "roof_flops_per_second" in row:
        yield "gemm_float32", row["roof_flops_per_second"]
        yield "copy", row["roof_bytes_per_second"]


def _add_roof(chart: Chart, name: str, value: float, unit: str) -> None:
    """Of several measurements of a roof the highest: other work only lowers it."""
    value *= UNITS.get(unit, 1.0)
    if name == "copy":
        chart.copy = max(value, chart.copy or 0.0)
    elif name.startswith("gemm_"):
        precision = name.removeprefix("gemm_")
        chart.products[precision] = max(value, chart.products.get(precision, 0.0))


def draw(found: dict[Place, Chart], path: Path) -> None:
    """A panel per device: GFLOP/s over flops per byte."""
    figure, panels = subplots(len(found))
    for ((where, kind), chart), panel in zip(found.items(), panels, strict=True):
        intensities = [point.flops / point.bytes for point in chart.points]
        _draw_roofs(panel, chart, min(intensities), max(intensities))
        groups = list(dict.fromkeys(point.group for point in chart.points))
        backends = list(dict.fromkeys(point.by for point in chart.points))
        for point, intensity in zip(chart.points, intensities, strict=True):
            panel.plot(
                intensity,
                point.flops / point.seconds / 1e9,
                color=COLORS[groups.index(point.group) % len(COLORS)],
                marker=MARKERS[backends.index(point.by) % len(MARKERS)],
                linestyle="",
                markersize=4,
                label=f"{point.group} {point.by}".strip(),
            )
        panel.set(title=f"{where}, {kind}", xlabel="flops per byte", ylabel="GFLOP/s")
        logarithmic(panel.xaxis, panel.yaxis)
        handles, labels = panel.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        beside = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)}  # points may be anywhere
        panel.legend(once.values(), once.keys(), fontsize="x-small", **beside)
    save(figure, path)


def _draw_roofs(panel: Any, chart: Chart, least: float, most: float) -> None:
    """Up the slope of the copy to the level of each precision."""
    for place, (precision, rate) in enumerate(sorted(chart.products.items())):
        start, end = least / 2, most * 2
        corner = rate / chart.copy if chart.copy else start
        xs = sorted({start, min(max(corner, start), end), end})
        ys = [min(rate, chart.copy * x) if chart.copy else rate for x in xs]
        style = ("-", "--", ":", "-.")[place % 4]
        heights = [y / 1e9 for y in ys]
        panel.plot(xs, heights, color="black", linestyle=style, linewidth=1, label=precision)


def without_roofs(found: dict[Place, Chart]) -> Sequence[str]:
    """Devices whose points stand alone."""
    return [
        f"{where}, {kind}"
        for (where, kind), chart in found.items()
        if chart.copy is None or not chart.products
    ]
