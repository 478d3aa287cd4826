"""Drawings of the report: step time by phase, and kernels and ops under a machine's roofs.

Points of a roofline come from `python -m bench kernels` and `pytest bench/`, roofs from
`python -m bench roof` on the same machine, or from what `pytest bench/` has measured along.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.envelope import ResultFile, Row

PHASES = {
    "first_ms": "first call",
    "plain_ms": "plain",
    "refresh_ms": "with a refresh",
    "mean_ms": "mean",
}
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


# Step time by phase ----------------------------------------------------------------------------


def draw_phases(files: Sequence[ResultFile], path: Path) -> None:
    """A panel per model and file, a group of bars per phase, a bar per optimizer."""
    panels = [(model, file, rows) for file in files for model, rows in by_model(file.rows).items()]
    names = list(dict.fromkeys(row["name"] for _, _, rows in panels for row in rows))
    colors = {name: COLORS[place % len(COLORS)] for place, name in enumerate(names)}
    from matplotlib.patches import Patch

    figure, axes = subplots(len(panels))
    for (model, file, rows), panel in zip(panels, axes, strict=True):
        width = 0.8 / len(rows)
        for place, row in enumerate(rows):
            known = [(i, row[p]) for i, p in enumerate(PHASES) if row.get(p) is not None]
            lefts = [i - 0.4 + (place + 0.5) * width for i, _ in known]
            heights = [height for _, height in known]
            panel.bar(lefts, heights, width, color=colors[row["name"]])
        panel.set_xticks(range(len(PHASES)), list(PHASES.values()), fontsize="small")
        where = file.machine.get("gpu") if "cuda" in str(rows[0].get("device")) else None
        panel.set_title(f"{model}, {where or file.machine.get('processor')}", fontsize="medium")
        panel.set_ylabel("ms")
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), fontsize="small")
    save(figure, path)


def by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows with times, by what was stepped."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if any(row.get(phase) is not None for phase in PHASES):
            found.setdefault(str(row.get("shapes")), []).append(row)
    return found


# Roofline --------------------------------------------------------------------------------------

UNITS = {"GB/s": 1e9, "GFLOP/s": 1e9}
MARKERS = "osv^DPX*"


@dataclass
class Chart:
    """What belongs to one device: points, and roofs in flops and bytes per second.

    Attributes:
        points: flops, bytes and seconds by what computed and who.
    """

    points: list[tuple[str, str, float, float, float]] = field(default_factory=list)
    products: dict[str, float] = field(default_factory=dict)
    copy: float | None = None

    def add_roof(self, name: str, rate: float) -> None:
        """Of several measurements of a roof the highest: other work only lowers it."""
        if name == "copy":
            self.copy = max(rate, self.copy or 0.0)
        elif name.startswith("gemm_"):
            precision = name.removeprefix("gemm_")
            self.products[precision] = max(rate, self.products.get(precision, 0.0))


def charts(files: Iterable[ResultFile]) -> dict[str, Chart]:
    """By device, those that have points."""
    found: dict[str, Chart] = {}
    for file in files:
        for row in file.rows:
            kind = str(row.get("device") or "cpu").partition(":")[0]
            where = file.machine.get("gpu" if kind == "cuda" else "processor")
            chart = found.setdefault(f"{where}, {kind}", Chart())
            seconds = 1e-6 * row["us"] if "us" in row else row.get("seconds")
            if "roof" in row:
                chart.add_roof(row["roof"], row["value"] * UNITS.get(row["unit"], 1.0))
            elif seconds and row.get("flops") and row.get("bytes"):
                what, by = row.get("op") or row.get("name"), row.get("backend") or row.get("by")
                chart.points.append((str(what), str(by), row["flops"], row["bytes"], seconds))
            if "roof_flops_per_second" in row:
                chart.add_roof("gemm_float32", row["roof_flops_per_second"])
                chart.add_roof("copy", row["roof_bytes_per_second"])
    return {place: chart for place, chart in found.items() if chart.points}


def draw_roofline(found: dict[str, Chart], path: Path) -> None:
    """A panel per device: GFLOP/s over flops per byte."""
    figure, panels = subplots(len(found))
    for (where, chart), panel in zip(found.items(), panels, strict=True):
        groups = list(dict.fromkeys(what for what, *_ in chart.points))
        backends = list(dict.fromkeys(by for _, by, *_ in chart.points))
        for what, by, flops, moved, seconds in chart.points:
            color = COLORS[groups.index(what) % len(COLORS)]
            look = {"color": color, "marker": MARKERS[backends.index(by) % len(MARKERS)]}
            label = f"{what} {by}"
            panel.plot(flops / moved, flops / seconds / 1e9, linestyle="", label=label, **look)
        ends = panel.get_xlim()[0] / 2, panel.get_xlim()[1] * 2
        for place, (precision, rate) in enumerate(sorted(chart.products.items())):
            corner = rate / chart.copy if chart.copy else ends[0]
            xs = sorted({max(ends[0], 1e-3), min(max(corner, 1e-3), ends[1]), ends[1]})
            ys = [min(rate, (chart.copy or rate / x) * x) / 1e9 for x in xs]
            style = ("-", "--", ":", "-.")[place % 4]
            panel.plot(xs, ys, color="black", linestyle=style, linewidth=1, label=precision)
        panel.set(title=where, xlabel="flops per byte", ylabel="GFLOP/s")
        logarithmic(panel.xaxis, panel.yaxis)
        handles, labels = panel.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        beside = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)}  # points may be anywhere
        panel.legend(once.values(), once.keys(), fontsize="x-small", **beside)
    save(figure, path)


def without_roofs(found: dict[str, Chart]) -> Sequence[str]:
    """Devices whose points stand alone."""
    return [w for w, chart in found.items() if chart.copy is None or not chart.products]
